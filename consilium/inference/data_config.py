"""Loads a dataset from config files, from a table, or from a folder of images."""

from argparse import ArgumentError
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jsonargparse import ArgumentParser

from consilium import config_files
from consilium.config_files import shorten_parser_error
from datamodules.manifest import Manifest, cell_text, normalize_text, read_table
from datamodules.sources import Folders, Table, has_split_folders, scan_folder
from datamodules.sources.files import SUFFIXES
from datamodules.splits import SplitFractions

if TYPE_CHECKING:
    from datamodules.datamodule import ImageDataModule

COLUMN_ALIASES = {  # usual names of columns, in lower case
    "path": ["path", "filename", "file", "image", "image_path", "id_code", "filepath", "file_path",
             "file_name", "image_name"],
    "label": ["label", "class", "diagnosis", "dr_grade", "target", "labels", "class_name"],
    "split": ["split", "fold", "set", "subset"],
    "patient": ["patient", "patient_id", "subject", "subject_id", "session_group"],
}  # fmt: skip
NO_COLUMN = "none"  # given as a column: the table has none, whatever its names are
TABLE_NAMES = ("manifest.csv", "manifest.parquet")  # a table in a folder is used if it exists
ONE_SPLIT = "the dataset has no splits: leaks between splits cannot be detected"
NO_CLASSES = "the dataset has no classes: confounds cannot be measured"
NO_LABEL_COLUMN = "no column was recognized as the label; --label names it: {}"
UNKNOWN_CLASS = ["unknown"]
ALL_TRAIN = SplitFractions(0.0, 0.0)

Columns = dict[str, str | None]  # column of each role in COLUMN_ALIASES, None to detect it


def load_datamodule(paths: list[str]) -> "ImageDataModule":
    """The data module of config files; later files override earlier ones."""
    from datamodules.datamodule import ImageDataModule  # imports torch

    settings: dict[str, Any] = {}
    for path in paths:
        settings = config_files.merge(settings, _data_settings(Path(path)))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    try:
        data = parser.instantiate(parser.parse_object({"data": settings})).data
    except ArgumentError as error:
        raise ValueError(f"{paths[-1]}: {shorten_parser_error(str(error))}") from error
    if not isinstance(data, ImageDataModule):
        raise ValueError(f"{paths[-1]}: data is a {type(data).__name__}, not an ImageDataModule")
    return data


def _data_settings(path: Path) -> dict[str, Any]:
    """The section `data` of a config file, or the whole file if it is a data config."""
    content = config_files.read_config(path)
    section = content if "class_path" in content else content.get("data", {})
    settings = config_files.resolve_references(path.parent, section)
    return dict(settings) if isinstance(settings, dict) else {}


def read_split(
    configs: list[str], split: str, class_names: list[str], limit: int | None = None
) -> pd.DataFrame:
    """At most `limit` rows of a split of the data in configs; ValueError for other classes."""
    data = load_datamodule(configs)
    if data.class_names != class_names:
        raise ValueError(f"the data has classes {data.class_names}, the model {class_names}")
    data.prepare_data()
    table: pd.DataFrame = data.load_manifest().table.query("split == @split")
    if table.empty:
        raise ValueError(f"--split {split}: the dataset has no images in this split")
    return evenly_spaced(table, limit or len(table))


def sample_rows(manifest: Manifest, split: str, count: int) -> pd.DataFrame:
    """At most `count` labeled samples of a split, evenly spaced."""
    table = manifest.table
    return evenly_spaced(table[(table["split"] == split) & (table["label"] >= 0)], count)


def evenly_spaced(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, evenly spaced, because a table may be sorted by class."""
    rows = np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int)
    return table.iloc[rows]


def load_target(target: Path, columns: Columns) -> tuple[Manifest, str]:
    """Manifest and name of a dataset: a table, a folder with a table, or a folder of images."""
    table = find_table(target)
    if table is not None:
        return manifest_from_table(table, columns), name_of_file(table)
    if options := [f"--{role}" for role in ("path", "label", "split") if columns[role]]:
        raise ValueError(f"{' '.join(options)}: {target} is no table and has no manifest.csv")
    return manifest_from_folder(target, patient_pattern(columns)), target.resolve().name


def patient_pattern(columns: Columns) -> str | None:
    """The regex that finds the patient in a path; None: each image is a patient of its own."""
    return None if columns["patient"] == NO_COLUMN else columns["patient"]


def name_of_file(file: Path) -> str:
    """Name of the dataset in a table or config: FOLDER-FILE, or FOLDER if it is manifest.csv."""
    folder = file.resolve().parent.name
    return folder if file.name in TABLE_NAMES else f"{folder}-{file.stem}".lstrip("-")


def find_table(target: Path) -> Path | None:
    """The target if it is a file, else the table in the folder, if any."""
    files = [target, *(target / name for name in TABLE_NAMES)]
    return next((file for file in files if file.is_file()), None)


def manifest_from_table(file: Path, columns: Columns) -> Manifest:
    """The manifest of a table; columns that are not given are found by their usual names."""
    if file.suffix.lower() in SUFFIXES:
        raise ValueError(f"{file}: is an image; give a folder of images, or a table of their paths")
    table = read_table(file)
    names = resolve_columns(file, table, columns)
    if table.empty:
        raise ValueError(f"{file}: the table has no rows")
    if names["path"] is None:
        raise ValueError(f"{file}: --path must name the column of paths, one of {list(table)}")
    if names["split"] is not None and names["label"] is None:
        raise ValueError(f"{file}: --label must name the column of classes, one of {list(table)}")
    classes = _class_names(table, names["label"])
    fractions, notes = (ALL_TRAIN, [ONE_SPLIT]) if names["split"] is None else (None, [])
    if names["label"] is None:
        notes += [] if columns["label"] else [NO_LABEL_COLUMN.format(list(table))]
        notes.append(NO_CLASSES)
    manifest = Table(str(file), **names, fractions=fractions).manifest(classes or UNKNOWN_CLASS)
    return _with_notes(manifest, *notes, *_case_notes(classes))


def resolve_columns(file: Path, table: pd.DataFrame, columns: Columns) -> dict[str, Any]:
    """Column name of each role in COLUMN_ALIASES: the given one, else a usual one, else None.

    `patient` may be a list of columns. The given name `none` and a split column without any cell
    filled in give None.
    """
    by_lower_case = {str(name).strip().lower(): str(name) for name in reversed(list(table))}
    names: dict[str, Any] = {
        role: columns.get(role) or next(filter(None, map(by_lower_case.get, aliases)), None)
        for role, aliases in COLUMN_ALIASES.items()
    }
    names |= {role: None for role, n in names.items() if n == NO_COLUMN and n not in table}
    if names["patient"] not in (None, *table) and "," in names["patient"]:
        names["patient"] = names["patient"].split(",")
    flat = [n for name in names.values() for n in (name if isinstance(name, list) else [name])]
    if missing := [name for name in flat if name and name not in table]:
        raise ValueError(f"{file}: no columns {missing}; the table has {list(table)}")
    if names["split"] is not None and cell_text(table[names["split"]]).eq("").all():
        names["split"] = None
    return names


def manifest_from_folder(folder: Path, patient: str | None) -> Manifest:
    """The manifest of a folder with or without split folders and class folders."""
    files, skipped = scan_folder(folder)
    has_splits = has_split_folders(files)
    classes = sorted({p.parts[has_splits] for p in files if len(p.parts) > 1 + has_splits})
    source = Folders(str(folder), patient, None if has_splits else ALL_TRAIN)
    if classes:
        notes = [ONE_SPLIT] * (not has_splits) + _case_notes(classes)
        return _with_notes(source.manifest(classes), *notes)
    table, patient_notes = source.patient_table(files)
    manifest = Manifest(table.assign(label=-1, split="predict"), UNKNOWN_CLASS, patient_notes)
    return _with_notes(manifest, ONE_SPLIT, NO_CLASSES, *skipped)


def _with_notes(manifest: Manifest, *notes: str) -> Manifest:
    """The manifest with these notes before its own."""
    return replace(manifest, notes=(*notes, *manifest.notes))


def _class_names(table: pd.DataFrame, column: str | None) -> list[str]:
    """The distinct labels in a column, stripped and sorted (numbers by value); [] for None."""
    if column is None:
        return []
    names = sorted(set(normalize_text(table[column])) - {""})
    are_numbers = all(name.replace(".", "", 1).isdecimal() for name in names)
    return sorted(names, key=float) if are_numbers else names


def _case_notes(names: list[str]) -> list[str]:
    """[A note on labels that differ only in case], or [] if there are none."""
    keys = dict.fromkeys(map(str.lower, names))
    same = ([name for name in names if name.lower() == key] for key in keys)
    pairs = ", ".join(" and ".join(map(repr, group)) for group in same if len(group) > 1)
    return [f"labels that differ only in case are separate classes: {pairs}"] if pairs else []
