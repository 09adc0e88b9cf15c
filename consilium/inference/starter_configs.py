"""Config files for a new dataset: data.yaml, and an experiment with three small networks."""

import os
from pathlib import Path
from shlex import quote
from typing import Any

import pandas as pd
import yaml

from consilium import CONFIGS, IS_INSTALLED, ROOT
from consilium.inference.data_config import Columns, find_table, resolve_columns
from datamodules.images import split_frame_number
from datamodules.manifest import Manifest, read_table
from datamodules.sources import Folders, Table
from datamodules.splits import DERIVED_SPLITS, SplitFractions
from evaluation.files import write_text

DATA_FILE, QUARANTINE, COPIES = "data.yaml", "quarantine.csv", "copies.csv"
DATA = """\
# The images of {target}; check them again with: consilium audit --config {file}
class_path: datamodules.ImageDataModule
init_args:
  source:
    class_path: datamodules.{class_path}
    init_args: {source}
  class_names: {names}
  preprocess: {{size: {size}}}  # more pixels show more detail and take longer
  augment: gradcam  # mild; to see it: consilium audit --config {file} --augmentations
  balance: {{class_weights: sqrt}}
"""
EXCLUDE = "  exclude: {file}  # leaking and unreadable samples, by the audit\n"
USED_CONFIGS = ("base", "model/resnet10t", "model/regnety_002", "model/mobilenetv3_small",
                "model/ensemble", "logger/wandb")  # fmt: skip
EXPERIMENT = """\
# consilium experiment run {file}
title: {title}
base: {paths[base]}
members:  # more: consilium backbones; pretrained weights: model.init_args.pretrained: true or FILE
  resnet10t: &member
    data: data.yaml
    model: {paths[model/resnet10t]}
    trainer: {{accelerator: auto, devices: 1, max_epochs: 10}}
  regnety_002: {{<<: *member, model: {paths[model/regnety_002]}}}
  mobilenetv3_small: {{<<: *member, model: {paths[model/mobilenetv3_small]}}}
ensemble: {{<<: *member, model: {paths[model/ensemble]}}}
# overrides: [{paths[logger/wandb]}]
"""


def check_dataset(folder: Path, target: Path, manifest: Manifest) -> None:
    """Raises ValueError if config files exist, or if the samples have no classes or files."""
    for file in (experiment_file(folder), folder / DATA_FILE):
        if file.exists():
            raise ValueError(f"-o {folder}: {file.name} exists already; name another folder")
    table = find_table(target)
    if (manifest.table["label"] < 0).all():
        raise ValueError(f"{target}: an experiment needs labels; {_how_to_label(target, table)}")
    if len(names := manifest.class_names) < 2:
        message = f"an experiment needs two classes or more, not only {names}"
        raise ValueError(f"{target}: {message}; {_how_to_label(target, table)}")
    paths = manifest.table["path"]
    if table and not any(split_frame_number(path)[0].is_file() for path in paths):
        message = f"none of the {len(paths)} images exists, such as {paths[0]}"
        remedy = "paths are relative to the folder of the table, and --path names their column"
        raise ValueError(f"{table}: {message}; {remedy}")


def _how_to_label(target: Path, table: Path | None) -> str:
    """What to do about a dataset without classes."""
    if table is not None:
        return f"--label names their column: {list(read_table(table))}"
    tables = [file for file in sorted(target.iterdir()) if file.suffix in (".csv", ".parquet")]
    if tables:
        return f"to read them from a table: consilium init {quote(str(tables[0]))}"
    return "put the images of each class into a folder, or list path and label in a CSV"


def experiment_file(folder: Path) -> Path:
    """The experiment file of a folder; it has the name of the folder."""
    return folder / f"{folder.resolve().name}.yaml"


def write_configs(
    folder: Path,
    target: Path,
    columns: Columns,
    manifest: Manifest,
    size: int,
    quarantine: pd.DataFrame,
    copies: pd.DataFrame,
) -> Path:
    """Writes data.yaml, the experiment and both tables; returns the experiment's file."""
    file, data_file = experiment_file(folder), folder / DATA_FILE
    source_class, args = _source(target, columns)
    splits = set(manifest.table["split"])
    if missing := [name for name in DERIVED_SPLITS if name not in splits]:
        args["fractions"] = {name: 0.15 for name in missing} | {"stratified": True}
        if len(copies):
            write_text(folder / COPIES, copies.to_csv(index=False))
            args["fractions"]["copies"] = str((folder / COPIES).resolve())
    fractions = SplitFractions(**args["fractions"]) if missing else None
    source = source_class(**{**args, "fractions": fractions})
    _check_splits(target, source.manifest(manifest.class_names), set(quarantine["id"]))
    text = DATA.format(
        target=quote(str(target)), file=quote(str(data_file)), class_path=source_class.__name__,
        source=_to_yaml(args), names=_to_yaml(list(manifest.class_names)), size=size,
    )  # fmt: skip
    if len(quarantine):
        write_text(folder / QUARANTINE, quarantine.to_csv(index=False))
        text += EXCLUDE.format(file=_to_yaml(str((folder / QUARANTINE).resolve())))
    write_text(data_file, text)
    absolute, prefix = folder.resolve(), str(CONFIGS)
    if absolute.is_relative_to(ROOT) and not IS_INSTALLED:
        prefix = os.path.relpath(prefix, absolute)
    paths = {name: _to_yaml([f"{prefix}/{name}.yaml"])[1:-1] for name in USED_CONFIGS}
    title = _to_yaml(absolute.name)
    write_text(file, EXPERIMENT.format(file=quote(str(file)), title=title, paths=paths))
    return file


def _source(target: Path, columns: Columns) -> tuple[type[Folders | Table], dict[str, Any]]:
    """Class and arguments of the source."""
    table = find_table(target)
    if table is None:
        return Folders, {"root": str(target.resolve()), "patient": columns["patient"]}
    names = resolve_columns(read_table(table), columns)
    return Table, {"files": str(table.resolve()), **names}


def _check_splits(target: Path, manifest: Manifest, excluded: set[str]) -> None:
    """Raises ValueError if a split has no images but excluded ones, or train lacks a class."""
    if excluded >= set(manifest.table["id"]):
        raise ValueError(f"the audit excludes all {len(excluded)} images; see its report")
    manifest = manifest.drop(excluded, "excluded")
    num_patients, remedy = manifest.table["patient"].nunique(), "add images, or name their splits"
    for split in ("train", *DERIVED_SPLITS):
        if not len(manifest.rows(split)):
            message = f"the {num_patients} patients leave the split {split!r} without images"
            raise ValueError(f"{target}: {message}; {remedy}")
    labels = set(manifest.table["label"].iloc[manifest.rows("train")])
    if absent := [name for k, name in enumerate(manifest.class_names) if k not in labels]:
        message = f"the split 'train' has no images of the classes {absent}"
        raise ValueError(f"{target}: {message}; {remedy}")


def _to_yaml(value: object) -> str:
    """A value as YAML in one line."""
    line = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
    )
    return str(line).removesuffix("...\n").strip()
