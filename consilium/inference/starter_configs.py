"""Config files for a new dataset: data.yaml, and an experiment with three small networks."""

import os
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from consilium import ROOT
from consilium.inference.data_config import Columns, find_table, resolve_columns
from datamodules.manifest import Manifest, read_table
from datamodules.sources import find_image_files, has_split_folders
from datamodules.splits import DERIVED_SPLITS
from evaluation.files import write_text

DATA_FILE, QUARANTINE = "data.yaml", "quarantine.csv"
DATA = """\
# The images of {target}; check them again with: consilium audit --config {file}
class_path: datamodules.ImageDataModule
init_args:
  source:
    class_path: {class_path}
    init_args: {source}
  class_names: {names}
  preprocess: {{size: {size}}}  # more pixels show more detail and take longer
  augment: gradcam  # mild; to see all policies: consilium audit {target} --augmentations
  balance: {{class_weights: sqrt}}
"""
EXCLUDE = "  exclude: {file}  # leaking and unreadable samples, by the audit\n"
CONFIGS = ("base", "model/resnet10t", "model/regnety_002", "model/mobilenetv3_small",
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


def check_folder(folder: Path, manifest: Manifest) -> None:
    """Raises ValueError if config files exist already, or if the samples have no labels."""
    for file in (experiment_file(folder), folder / DATA_FILE):
        if file.exists():
            raise ValueError(f"-o {folder}: {file.name} exists already; name another folder")
    if (manifest.table["label"] < 0).all():
        raise ValueError("an experiment needs labels; --label names their column")


def experiment_file(folder: Path) -> Path:
    """The experiment file of a folder; it has the name of the folder."""
    return folder / f"{folder.resolve().name}.yaml"


def write_configs(
    folder: Path, target: Path, columns: Columns, manifest: Manifest, size: int, quarantine: str
) -> Path:
    """Writes data.yaml, the experiment and the quarantine; returns the experiment's file."""
    file, data_file = experiment_file(folder), folder / DATA_FILE
    class_path, args, has_splits = _source(target, columns)
    splits = set(manifest.table["split"]) if has_splits else {"train"}
    fractions = {name: 0.15 for name in DERIVED_SPLITS if name not in splits}
    args |= {"fractions": fractions} if fractions else {}
    text = DATA.format(
        target=quote(str(target)), file=quote(str(data_file)), class_path=class_path,
        source=_to_yaml(args), names=_to_yaml(list(manifest.class_names)), size=size,
    )  # fmt: skip
    if quarantine.count("\n") > 1:  # more than the header
        write_text(folder / QUARANTINE, quarantine)
        text += EXCLUDE.format(file=_to_yaml(str((folder / QUARANTINE).resolve())))
    write_text(data_file, text)
    absolute, prefix = folder.resolve(), str(ROOT / "configs")
    if absolute.is_relative_to(ROOT):
        prefix = os.path.relpath(prefix, absolute)
    paths = {name: _to_yaml([f"{prefix}/{name}.yaml"])[1:-1] for name in CONFIGS}
    title = _to_yaml(absolute.name)
    write_text(file, EXPERIMENT.format(file=quote(str(file)), title=title, paths=paths))
    return file


def _source(target: Path, columns: Columns) -> tuple[str, dict[str, Any], bool]:
    """Class path and arguments of the source, and whether the files give splits."""
    table = find_table(target)
    if table is None:
        args = {"root": str(target.resolve()), "patient": columns["patient"]}
        return "datamodules.Folders", args, has_split_folders(find_image_files(target))
    names = resolve_columns(read_table(table), columns)
    args = {"files": str(table.resolve()), **names}
    return "datamodules.Table", args, names["split"] is not None


def _to_yaml(value: object) -> str:
    """A value as YAML in one line."""
    line = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return str(line).removesuffix("...\n").strip()
