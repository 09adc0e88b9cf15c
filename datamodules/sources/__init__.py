"""Dataset sources, found by class_path: image folders, tables, MURA and generated images.

A source of your own is a subclass of ``Source`` that returns a ``Manifest``.
"""

from datamodules.sources.folders import Folders, Mura, Source, find_image_files, has_split_folders
from datamodules.sources.table import Phantoms, Table

__all__ = [
    "Folders", "Mura", "Phantoms", "Source", "Table", "find_image_files", "has_split_folders",
]  # fmt: skip
