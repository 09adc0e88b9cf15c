"""Data: dataset sources, manifests, preprocessing, augmentation and loaders."""

from datamodules.datamodule import ImageDataModule
from datamodules.sources import Folders, Mura, Phantoms, Table

__all__ = ["Folders", "ImageDataModule", "Mura", "Phantoms", "Table"]
