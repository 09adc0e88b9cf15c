"""Finds the data set that a person names: a config, a table, or a folder of pictures."""

from argparse import ArgumentError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from jsonargparse import ArgumentParser

from consilium.cli import words
from consilium.experiments import config_files
from datamodules.datamodule import ImageDataModule
from datamodules.manifest import Manifest
from datamodules.sources import SPLIT_FOLDERS, Folders, Table, picture_files
from datamodules.splits import Fractions
from datamodules.tables import read_table

GUESSES = {
    "path": ["path", "filename", "file", "image", "image_path", "id_code"],
    "label": ["label", "class", "diagnosis", "dr_grade", "target"],
    "split": ["split", "fold", "set", "subset"],
    "patient": ["patient", "patient_id", "subject", "subject_id", "session_group"],
}
TABLES = ("manifest.csv", "manifest.parquet")  # in a folder, they say it all
ONE_SPLIT = "no splits are given: leaks between splits cannot be seen"
UNKNOWN = ["unknown"]  # the classes where none are given
NONE_CUT = Fractions(0.0, 0.0)  # all that has a label is train
NO_CLASSES = "no classes are given: confounds cannot be judged"


def from_configs(paths: list[str]) -> ImageDataModule:
    """The data module of config files; a later file changes what an earlier one says."""
    values: dict[str, Any] = {}
    for path in paths:
        values = config_files.merged(values, _data_part(Path(path)))
    made = _built(paths[-1], values)
    if not isinstance(made, ImageDataModule):
        raise ValueError(f"{paths[-1]}: data is a {type(made).__name__}, not an ImageDataModule")
    return made


def _built(path: str, values: dict[str, Any]) -> object:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    try:
        return parser.instantiate_classes(parser.parse_object({"data": values})).data
    except ArgumentError as error:
        raise ValueError(f"{path}: {words.in_short(str(error))}") from error


def table_in(target: Path) -> Path | None:
    """The table that says it all: what is named, or what lies in the folder that is."""
    files = [target, *(target / name for name in TABLES)]
    return next((file for file in files if file.is_file()), None)


def from_table(file: Path, given: dict[str, str | None]) -> Manifest:
    """A table whose columns are named or have one of the usual names."""
    raw = read_table(file)
    columns = columns_of(raw, given)
    if raw.empty:
        raise ValueError(f"{file}: the table has no rows")
    if columns["path"] is None:
        raise ValueError(f"{file}: --path must name the column of the pictures: {list(raw)}")
    if columns["split"] is not None and columns["label"] is None:
        raise ValueError(f"{file}: --label must name the column of the classes: {list(raw)}")
    names = _class_names(raw, columns["label"])
    if columns["split"] is not None:
        return _noted(Table(str(file), **columns).manifest(names), *_alike(names))
    found = Table(str(file), **columns, fractions=NONE_CUT).manifest(names or UNKNOWN)
    return _noted(found, ONE_SPLIT, *_alike(names))


def columns_of(raw: pd.DataFrame, given: dict[str, str | None]) -> dict[str, Any]:
    """The column of each role, as given or by one of the usual names, else None.

    Several columns, told with commas, name a patient together.
    """
    columns: dict[str, Any] = {role: given.get(role) or _guess(raw, role) for role in GUESSES}
    patient = columns["patient"]
    if patient is not None and patient not in raw and "," in patient:
        columns["patient"] = patient.split(",")
    wrong = [name for role in columns.values() for name in _listed(role) if name not in raw]
    if wrong:
        raise ValueError(f"no columns {wrong}; the table has {list(raw)}")
    return columns


def _listed(column: str | list[str] | None) -> list[str]:
    return column if isinstance(column, list) else [column] if column else []


def from_folder(folder: Path, patient: str | None) -> Manifest:
    """Split and class folders as far as there are any."""
    files, splits = picture_files(folder), has_splits(folder)
    names = sorted({p.parts[splits] for p in files if len(p.parts) > 1 + splits})
    if not names:
        return _noted(_flat(folder, files, patient), ONE_SPLIT, NO_CLASSES)
    if splits:
        return _noted(Folders(str(folder), patient).manifest(names), *_alike(names))
    found = Folders(str(folder), patient, NONE_CUT).manifest(names)
    return _noted(found, ONE_SPLIT, *_alike(names))


def has_splits(folder: Path) -> bool:
    """Whether pictures lie in folders named like splits."""
    return any(path.parts[0].lower() in SPLIT_FOLDERS for path in picture_files(folder))


def _flat(folder: Path, files: list[Path], patient: str | None) -> Manifest:
    """Pictures of no class."""
    ids = pd.Series([path.as_posix() for path in files])
    rows = pd.DataFrame({"id": ids, "path": [str(folder / name) for name in ids]})
    rows["patient"] = rows["study"] = Folders(str(folder), patient).patients(ids)
    return Manifest(rows.assign(label=-1, split="predict"), UNKNOWN)


def _noted(manifest: Manifest, *notes: str) -> Manifest:
    return replace(manifest, notes=(*notes, *manifest.notes))


def _guess(raw: pd.DataFrame, role: str) -> str | None:
    """The column of a usual name, however it is written."""
    written = {str(name).strip().lower(): str(name) for name in reversed(list(raw))}
    return next((written[name] for name in GUESSES[role] if name in written), None)


def _class_names(raw: pd.DataFrame, column: str | None) -> list[str]:
    """The labels that occur, white space around them aside; numbers in their order."""
    if column is None:
        return []
    told = raw[column].astype(object).where(raw[column].notna(), "").astype(str).str.strip()
    values = sorted(set(told) - {""})
    return sorted(values, key=int) if all(value.isdecimal() for value in values) else values


def _alike(names: list[str]) -> list[str]:
    """A note on labels that only capitals tell apart."""
    same = [[n for n in names if n.lower() == one] for one in dict.fromkeys(map(str.lower, names))]
    pairs = [" and ".join(map(repr, each)) for each in same if len(each) > 1]
    return [f"labels that only capitals tell apart are classes of their own: {', '.join(pairs)}"
            ] * bool(pairs)  # fmt: skip


def _data_part(path: Path) -> dict[str, Any]:
    """The data part of a config, whole."""
    said = config_files.mapping(path)
    part = said if "class_path" in said else said.get("data", {})
    found = config_files.whole(path.parent, part)
    return dict(found) if isinstance(found, dict) else {}
