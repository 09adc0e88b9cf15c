"""Dataset sources, found by class_path: image folders, tables, MURA and generated images.

A source of your own is a subclass of ``Source`` that returns a ``Manifest``.
"""

from datamodules.sources.base import Source, find_image_files
from datamodules.sources.folders import Folders
from datamodules.sources.generated import Phantoms
from datamodules.sources.mura import Mura
from datamodules.sources.table import Table

__all__ = ["Folders", "Mura", "Phantoms", "Source", "Table", "find_image_files"]
