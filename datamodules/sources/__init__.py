"""Dataset sources, found by class_path; a new one is a subclass of ``Source``."""

from datamodules.sources.chest_xrays import ChestXray14, CheXpert
from datamodules.sources.files import has_split_folders, scan_folder
from datamodules.sources.findings import Findings
from datamodules.sources.folders import Folders, Mura, Source
from datamodules.sources.table import Phantoms, Table

__all__ = [
    "CheXpert", "ChestXray14", "Findings", "Folders", "Mura", "Phantoms", "Source", "Table",
    "has_split_folders", "scan_folder",
]  # fmt: skip
