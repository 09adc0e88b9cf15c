"""Dataset sources, found by class_path; a new one is a subclass of ``Source``."""

from datamodules.sources.files import find_image_files, has_split_folders
from datamodules.sources.folders import Folders, Mura, Source
from datamodules.sources.table import Phantoms, Table

__all__ = [
    "Folders", "Mura", "Phantoms", "Source", "Table", "find_image_files", "has_split_folders",
]  # fmt: skip
