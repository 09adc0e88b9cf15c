"""What is seen: sources, manifests, preprocessing, augmentation, loaders."""

from datamodules.datamodule import ImageDataModule
from datamodules.sources import Folders, Phantoms, Table

__all__ = ["Folders", "ImageDataModule", "Phantoms", "Table"]
