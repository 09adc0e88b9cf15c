"""Data: dataset sources, manifests, preprocessing, augmentation and loaders."""

from typing import TYPE_CHECKING

from datamodules.sources import ChestXray14, CheXpert, Folders, Mura, Phantoms, Table

if TYPE_CHECKING:
    from datamodules.datamodule import ImageDataModule

__all__ = [
    "CheXpert", "ChestXray14", "Folders", "ImageDataModule", "Mura", "Phantoms", "Table",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Imports ``ImageDataModule``, hence torch and Lightning, at first use; audits need neither."""
    if name != "ImageDataModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from datamodules.datamodule import ImageDataModule

    return ImageDataModule
