"""What is seen: sources, manifests, preprocessing, augmentation, loaders."""

from datamodules.datamodule import ImageDataModule
from datamodules.sources import Folders, Mura, Phantoms, Table

__all__ = ["Folders", "ImageDataModule", "Mura", "Phantoms", "Table"]
