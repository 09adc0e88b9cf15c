"""A study to begin with: two short files that say where a data set lies and what to train on it."""

import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from consilium import ROOT
from consilium.inference import data_config
from datamodules.manifest import Manifest
from datamodules.tables import read_table
from evaluation.files import write_text

CUT = ("val", "test")
DATA = """\
# The pictures of {where}; looked at again with: consilium audit --config {file}
class_path: datamodules.ImageDataModule
init_args:
  source:
    class_path: {kind}
    init_args: {source}
  class_names: {names}
  preprocess: {{size: {size}}}  # more pixels show more and take longer
  augment: gradcam  # a mild one; all: consilium audit {where} --augmentations
  balance: {{class_weights: sqrt}}
"""
LEFT_OUT = "  reading: {reading}  # what the audit put into quarantine\n"
CONFIGS = ("base", "model/resnet10t", "model/regnety_002", "model/mobilenetv3_small",
           "model/ensemble", "logger/wandb")  # fmt: skip
STUDY = """\
# consilium experiment run {file}
title: {title}
base: {of[base]}
members:  # others: consilium backbones; weights to start from: model.init_args.pretrained: FILE
  resnet10t: &member
    data: data.yaml
    model: {of[model/resnet10t]}
    trainer: {{accelerator: auto, devices: 1, max_epochs: 10}}
  regnety_002: {{<<: *member, model: {of[model/regnety_002]}}}
  mobilenetv3_small: {{<<: *member, model: {of[model/mobilenetv3_small]}}}
ensemble: {{<<: *member, model: {of[model/ensemble]}}}
# overrides: [{of[logger/wandb]}]
"""


@dataclass(frozen=True)
class Source:
    """A data module's source as a config says it.

    Args:
        kind: its class.
        arguments: of the class.
        split: whether the files say splits.
        where: what the audit was given.
    """

    kind: str
    arguments: dict[str, Any]
    split: bool
    where: str


def write(folder: Path, source: Source, manifest: Manifest, size: int, left: str) -> Path:
    """Writes data.yaml and the study, named like the folder; returns the study's file.

    Splits that the source lacks are cut from train by patient; `left` is a table of samples to
    leave out, or "".
    """
    study = _file(folder)
    write_text(folder / "data.yaml", data(folder / "data.yaml", source, manifest, size, left))
    whole, configs = folder.resolve(), ROOT / "configs"
    near = os.path.relpath(configs, whole) if whole.is_relative_to(ROOT) else configs
    of = {name: flow([f"{near}/{name}.yaml"])[1:-1] for name in CONFIGS}
    write_text(study, STUDY.format(file=quote(str(study)), title=flow(whole.name), of=of))
    return study


def refuse(folder: Path, manifest: Manifest) -> None:
    """An error where no study can be written of these samples, or none into this folder."""
    if _file(folder).exists() or (folder / "data.yaml").exists():
        raise ValueError(f"--start {folder}: holds a study already; name another folder")
    if (manifest.table["label"] < 0).all():
        raise ValueError("--start: a study needs labels; --label names their column")


def _file(folder: Path) -> Path:
    return folder / f"{folder.resolve().name}.yaml"


def data(file: Path, source: Source, manifest: Manifest, size: int, left: str) -> str:
    """The data's config."""
    given = set(manifest.table["split"]) if source.split else {"train"}
    lacking = {name: 0.15 for name in CUT if name not in given}
    arguments = source.arguments | ({"fractions": lacking} if lacking else {})
    text = DATA.format(
        where=quote(source.where), file=quote(str(file)), kind=source.kind, source=flow(arguments),
        names=flow(list(manifest.class_names)), size=size,
    )  # fmt: skip
    return text + (LEFT_OUT.format(reading=flow({"leave_out": left})) if left else "")


def source_of(target: Path, given: dict[str, str | None]) -> Source:
    """The source of a table, or of a folder of class folders, as the audit went by it."""
    table = data_config.table_in(target)
    if table is not None:
        return _of_table(table, given)
    arguments = {"root": str(target.resolve()), "patient": given["patient"]}
    return Source("datamodules.Folders", arguments, data_config.has_splits(target), str(target))


def _of_table(file: Path, given: dict[str, str | None]) -> Source:
    columns = data_config.columns_of(read_table(file), given)
    arguments = {"files": str(file.resolve()), **columns}
    return Source("datamodules.Table", arguments, columns["split"] is not None, str(file))


def flow(value: object) -> str:
    """YAML on one line."""
    line = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return str(line).removesuffix("...\n").strip()
