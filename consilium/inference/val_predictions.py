"""The predictions of a model on its val split, and prediction sets that are fitted on them."""

from dataclasses import replace
from itertools import compress
from pathlib import Path

from consilium.inference.predictor import Predictor, run_folder_of
from evaluation.metrics.conformal import BY_CLASS, ConformalSets, fit_conformal_sets
from evaluation.predictions import SETS, PredictionTable
from evaluation.results import voters_folder
from evaluation.voters import store


def prediction_sets(model: Path, predictor: Predictor, rate: float) -> ConformalSets:
    """Sets that contain the class at this rate, within each class, by limits fitted on val."""
    return fit_conformal_sets(val_table(model, predictor, "--sets"), 1 - rate, BY_CLASS)


def val_table(model: Path, predictor: Predictor, flag: str) -> PredictionTable:
    """The model's predictions of the val split; an error about ``flag`` if there are none."""
    file = val_table_path(model, predictor, flag)
    table = PredictionTable.read(file)
    if not is_table_of(table, file.parents[1], predictor):
        what = "was not predicted by this model (classes, weights or voter)"
        raise ValueError(f"{flag}: {file} {what}")
    return table


def is_table_of(table: PredictionTable, folder: Path, predictor: Predictor) -> bool:
    """Whether the model predicted a folder's val table; a voter of other members is an error."""
    weights = [member.weights_hash for member in predictor.members]
    if (folder / "voter.json").is_file():
        fitted = store.load(folder, weights, predictor.class_names)
        return fitted.voter.name == predictor.ensemble.voter.name
    sources = list(table.meta.get("members", {}).values()) or [table.meta]
    table_weights = [source.get("weights") for source in sources]
    return (table.class_names, table_weights) == (predictor.class_names, weights)


def val_table_path(model: Path, predictor: Predictor, flag: str) -> Path:
    """The val table in the run folder of a model, or in the folder of the ensemble's voters."""
    folder = run_folder_of(model).resolve()
    candidates = [folder / "predictions" / "val.parquet"]
    voters = voters_folder(folder)
    if len(predictor.members) > 1 and (voters / "voter.json").is_file():
        candidates.append(voters / "predictions" / "val.parquet")
    if file := next(filter(Path.is_file, candidates), None):
        return file
    raise ValueError(f"{flag}: no val predictions in {', '.join(map(str, candidates))}")


def write_sets(file: Path, sets: ConformalSets) -> None:
    """Adds the set of each row, names of classes joined by commas, to a prediction table."""
    table = PredictionTable.read(file)
    names = [", ".join(compress(table.class_names, is_in)) for is_in in sets.of_table(table)]
    replace(table, rows=table.rows.assign(**{SETS: names})).write(file)
