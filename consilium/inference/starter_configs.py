"""Config files for a new dataset: data.yaml, and an experiment on it."""

import os
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from consilium import CONFIGS, IS_INSTALLED, ROOT
from consilium.inference.data_config import Columns, find_table, patient_pattern, resolve_columns
from datamodules.audit.audit import Audit
from datamodules.images import split_frame_number
from datamodules.manifest import Manifest, read_table
from datamodules.sources import Folders, Table
from datamodules.splits import DERIVED_SPLITS, SplitFractions
from evaluation.files import write_text

if TYPE_CHECKING:
    from consilium.inference.starter_plan import Candidate, PlannedMember

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
STRONG = """\
  # strong blur, brightness, contrast and scaling: a statistic of the files tells the class
  augment_args: {soften: 3.0, brightness: 0.4, contrast: 0.5, scale: 0.15}
"""
APPEARANCE = {"sharpness", "bytes_per_pixel", "mean", "std"}  # statistics that those changes cover
EXCLUDE = "  exclude: {file}  # leaking and unreadable samples, by the audit\n"
USED_CONFIGS = ("base", "model/resnet10t", "model/regnety_002", "model/mobilenetv3_small",
                "model/ensemble", "logger/wandb", "recipe/probe", "recipe/probe_then_finetune",
                )  # fmt: skip
EXPERIMENT = """\
# consilium experiment run {file}
title: {title}
base: {paths[base]}
{folds}{members}ensemble:
  data: data.yaml
  model: {paths[model/ensemble]}
  trainer: {{accelerator: auto, devices: 1}}
# overrides: [{paths[logger/wandb]}]
"""
SMALL_NETWORKS = """\
members:  # more: consilium backbones; pretrained weights: model.init_args.pretrained: true or FILE
  resnet10t: &member
    data: data.yaml
    model: {paths[model/resnet10t]}
    trainer: {{accelerator: auto, devices: 1, max_epochs: 10}}
  regnety_002: {{<<: *member, model: {paths[model/regnety_002]}}}
  mobilenetv3_small: {{<<: *member, model: {paths[model/mobilenetv3_small]}}}
"""
PLANNED = """\
  {name}:  # about {minutes:.0f} min
    - data: data.yaml
      model:
        class_path: lightning_modules.ImageClassifier
        init_args: {{backbone: {backbone}, pretrained: {weights}}}
      data.init_args.preprocess: {preprocess}{note}
      trainer: {{accelerator: auto, devices: 1}}
    - {recipe}
"""
FOLD_LINE = "folds: {folds}  # so that every image is tested once: the dataset is small\n"
FOLD_COPIES = "  fold: {{copies: {file}}}  # copies of one image are in the same fold\n"
FOLDS, MAX_FOLDED_PATIENTS, MIN_FOLD_PATIENTS = 5, 400, 5  # the last of each class in a fold
OTHER_NORMALIZATION = "  # not timm's: the weights' first batch norm was trained with this one"
EPOCHS = "    - {{trainer.max_epochs: {epochs}}}\n"


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
    """The end of an error message: how to give classes to the dataset."""
    if table is not None:
        return f"--label names their column: {list(read_table(table))}"
    tables = [file for file in sorted(target.iterdir()) if file.suffix in (".csv", ".parquet")]
    if tables:
        return f"to read them from a table: consilium init {quote(str(tables[0]))}"
    return "put the images of each class into a folder, or list path and label in a CSV"


def experiment_file(folder: Path) -> Path:
    """The path of the experiment file in a folder, such as mydata/mydata.yaml."""
    return folder / f"{folder.resolve().name}.yaml"


def write_configs(
    folder: Path,
    target: Path,
    columns: Columns,
    audit: Audit,
    size: int,
    quarantine: pd.DataFrame,
    candidates: "Sequence[Candidate]" = (),
    minutes: float = 0.0,
) -> "list[PlannedMember]":
    """Writes data.yaml, the experiment, quarantine.csv and copies.csv; returns planned members.

    Without pretrained `candidates` the list is empty: three small networks train from scratch.
    """
    file, data_file = experiment_file(folder), folder / DATA_FILE
    manifest, copies = audit.manifest, audit.copy_groups()
    source_class, args = source_of(target, columns)
    splits = set(manifest.table["split"])
    if missing := [name for name in DERIVED_SPLITS if name not in splits]:
        args["fractions"] = {name: 0.15 for name in missing} | {"stratified": True}
        if len(copies):
            write_text(folder / COPIES, copies.to_csv(index=False))
            args["fractions"]["copies"] = str((folder / COPIES).resolve())
    fractions = SplitFractions(**args["fractions"]) if missing else None
    source = source_class(**{**args, "fractions": fractions})
    split = source.manifest(manifest.class_names).drop(set(quarantine["id"]), "excluded")
    _check_splits(target, split)
    text = DATA.format(
        target=quote(str(target)), file=quote(str(data_file)), class_path=source_class.__name__,
        source=_to_yaml(args), names=_to_yaml(list(manifest.class_names)), size=size,
    )  # fmt: skip
    if APPEARANCE & {suspect.name for suspect in audit.suspects}:
        text += STRONG
    if len(copies) and missing == list(DERIVED_SPLITS):
        text += FOLD_COPIES.format(file=_to_yaml(args["fractions"]["copies"]))
    if len(quarantine):
        write_text(folder / QUARANTINE, quarantine.to_csv(index=False))
        text += EXCLUDE.format(file=_to_yaml(str((folder / QUARANTINE).resolve())))
    write_text(data_file, text)
    absolute, prefix = folder.resolve(), str(CONFIGS)
    if absolute.is_relative_to(ROOT) and not IS_INSTALLED:
        prefix = os.path.relpath(prefix, absolute)
    paths = {name: _to_yaml([f"{prefix}/{name}.yaml"])[1:-1] for name in USED_CONFIGS}
    num_folds = choose_folds(split) if candidates and missing == list(DERIVED_SPLITS) else 0
    plan = _plan(split, candidates, minutes, num_folds)
    members = SMALL_NETWORKS.format(paths=paths)
    if plan:
        members = "members:\n" + "".join(_member_yaml(member, paths) for member in plan)
    title = _to_yaml(absolute.name)
    text = EXPERIMENT.format(
        file=quote(str(file)), title=title, paths=paths, members=members,
        folds=FOLD_LINE.format(folds=num_folds) * (num_folds > 0),
    )  # fmt: skip
    write_text(file, text)
    return plan


def choose_folds(manifest: Manifest) -> int:
    """Number of cross-validation folds; 0 if the dataset is large enough to spare a test split.

    Also 0 if a class is so rare that a fold might lack it.
    """
    patients_of_class = manifest.table.groupby("label")["patient"].nunique()
    is_small = manifest.table["patient"].nunique() < MAX_FOLDED_PATIENTS
    return FOLDS if is_small and patients_of_class.min() >= FOLDS * MIN_FOLD_PATIENTS else 0


def _plan(
    split: Manifest, candidates: "Sequence[Candidate]", minutes: float, num_folds: int
) -> "list[PlannedMember]":
    """The members that fit into the minutes, which all folds share; [] without candidates."""
    if not candidates:
        return []
    from consilium.inference.starter_plan import plan_members

    num_train, num_all = len(split.rows("train")), len(split.table)
    if num_folds:
        num_train, minutes = num_all * (num_folds - 2) // num_folds, minutes / num_folds
    return plan_members(candidates, num_train, num_all - num_train, minutes)


def _member_yaml(member: "PlannedMember", paths: dict[str, str]) -> str:
    """The YAML lines of a member in the experiment file; `paths` are those of shipped configs."""
    candidate = member.candidate
    settings = candidate.preprocess.to_dict()
    preprocess = {name: settings[name] for name in ("size", "mean", "std")}
    text = PLANNED.format(
        name=member.name, minutes=member.minutes, backbone=candidate.backbone,
        weights=_to_yaml(str(candidate.weights)), preprocess=_to_yaml(preprocess),
        note=OTHER_NORMALIZATION * candidate.has_other_normalization,
        recipe=paths[member.recipe],
    )  # fmt: skip
    return text + EPOCHS.format(epochs=member.epochs) * (member.epochs > 0)


def source_of(target: Path, columns: Columns) -> tuple[type[Folders | Table], dict[str, Any]]:
    """The data source class of a folder or table, and its constructor arguments."""
    table = find_table(target)
    if table is None:
        return Folders, {"root": str(target.resolve()), "patient": patient_pattern(columns)}
    names = resolve_columns(table, read_table(table), columns)
    return Table, {"files": str(table.resolve()), **names}


def _check_splits(target: Path, manifest: Manifest) -> None:
    """Raises ValueError if a split has no images, or train lacks a class."""
    if not len(manifest.table):
        raise ValueError("the audit excludes all images; see its report")
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
