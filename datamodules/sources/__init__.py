"""Where samples come from: class folders, tables, generated pictures; each gives a manifest."""

from datamodules.sources.folders import Folders
from datamodules.sources.generated import Phantoms
from datamodules.sources.mura import Mura
from datamodules.sources.source import SPLIT_FOLDERS, Source, picture_files
from datamodules.sources.table import Table

__all__ = ["SPLIT_FOLDERS", "Folders", "Mura", "Phantoms", "Source", "Table", "picture_files"]
