"""What the arguments of `serve` mean for a model: from when to refer, which pictures to offer."""

import argparse
from pathlib import Path

from consilium.inference.predictor import Model, folder_of
from datamodules.images import ImageError, read
from evaluation.predictions import PredictionTable
from evaluation.run_folder import voters_of
from evaluation.selective import fit_referral
from evaluation.voters import store

TOKEN = "CONSILIUM_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def refer_below(asked: argparse.Namespace, model: Model) -> float | None:
    """The referral threshold asked for; one for a risk is chosen on val."""
    if asked.refer_risk is None:
        return None if asked.refer_below is None else float(asked.refer_below)
    file = val_table(asked.model, model)
    table = PredictionTable.read(file)
    if not is_of(table, file.parents[1], model):
        raise ValueError(f"--refer-risk: {file} is not of this model's classes, weights and voter")
    return fit_referral(table, asked.refer_risk).threshold


def is_of(table: PredictionTable, folder: Path, model: Model) -> bool:
    """Whether a folder's val table is what this model says; a voter of others is refused."""
    weights = [member.weights for member in model.members]
    if (folder / "voter.json").is_file():
        return store.load(folder, weights, model.class_names).kind == model.kind
    said = list(table.meta.get("members", {}).values()) or [table.meta]
    found = [one.get("weights") for one in said]
    return (table.class_names, found) == (model.class_names, weights)


def val_table(path: Path, model: Model) -> Path:
    """What the model said of val: in its run folder, or in its study's folder of voters."""
    folder = folder_of(path).resolve()
    own = [folder / "predictions" / "val.parquet"]
    if len(model.members) > 1 and (voters_of(folder) / "voter.json").is_file():
        own.append(voters_of(folder) / "predictions" / "val.parquet")
    found = [file for file in own if file.is_file()]
    if not found:
        raise ValueError(f"--refer-risk: no val table in {', '.join(map(str, own))}")
    return found[0]


def examples(folder: Path | None) -> list[Path]:
    """The first twelve pictures of a folder; files that are none are left out."""
    if folder is None:
        return []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [path for path in files[:200] if _reads(path)][:12]
    if not found:
        raise ValueError(f"--examples {folder}: no pictures in it")
    return found


def _reads(path: Path) -> bool:
    try:
        read(path)
    except ImageError:
        return False
    return True
