"""The report of one run, its changed decisions, and its predictions as a table for people."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation import sparsity
from evaluation.files import write_text
from evaluation.metrics.registry import summary_metrics
from evaluation.plots import curves
from evaluation.predictions import PredictionTable
from evaluation.reports import clinical, grades, html
from evaluation.reports.ensemble import referral_sections
from evaluation.reports.overview import ONE_DATASET, overview
from evaluation.reports.subgroups import subgroup_sections, subgroup_sentence
from evaluation.results import CALIBRATED_MEMBER, Results
from evaluation.stats.estimate import Estimates
from evaluation.voters.registry import voter_spec

FILE = "report.html"
ZERO_TOLERANCE = 0.005  # a few weights are 0 without pruning
RATIOS = ("weights_zero_fraction", "macs_theoretical_ratio", "latency_ratio_measured",
          "energy_ratio_measured")  # fmt: skip


def write_run_report(folder: Path, results: Results, sections: Sequence[html.Section]) -> Path:
    """Writes report.html for the test split, report.<split>.html for another; returns the file."""
    name = FILE if results.split == "test" else f"report.{results.split}.html"
    html.write_report(folder / name, f"{results.name}: {results.split} split", sections)
    return folder / name


def run_sections(
    results: Results, table: PredictionTable, history: pd.DataFrame | None = None,
    further: Sequence[html.Section] = (), environment: Mapping[str, object] = {},
    val: PredictionTable | None = None,
) -> list[html.Section]:  # fmt: skip
    """The report of a run made in `environment`, with `further` sections after its summary.

    With `val`, the predictions of that split, it has referral and prediction sets fitted on them.
    """
    metrics, page = results.metrics, list[html.Section]()
    page.append(html.accuracy_sentence(results.name, metrics["accuracy"]))
    groups = [subgroup_sentence(results.subgroups)] if results.subgroups else []
    notes = [ONE_DATASET, *map(str, results.meta.get("notes", []))]
    points = results.operating_points
    page.append(overview(what_it_is(results), metrics, table, points, groups, notes))
    if results.others:
        models = labeled_models(results)
        page.append(html.models_table(models, "Ensemble and members", strong=[0]))
    summary = {name: metrics[name] for name in summary_metrics() if name in metrics}
    page += [html.metrics_table(summary), *further]
    page += clinical.operating_point_tables(results.operating_points, table)
    page += [clinical.outcome_table(metrics, table), *prediction_sections(table)]
    page += [*clinical.decision_curves({"": table}), *clinical.calibration_curves(table)]
    if val is not None:
        page += referral_sections(val, table)
    page += subgroup_sections(results.subgroups, metrics, table)
    if history is not None:
        plot = curves.learning_curves(history)
        page.append(html.Plot(plot, "One point per epoch.", "Learning curves"))
    all_metrics = html.metrics_table(metrics, "All metrics")
    return [*page, all_metrics, html.Details({**readable_details(results), **environment})]


def what_it_is(results: Results) -> str:
    """`An ensemble of 3 networks`, or `A network`."""
    count = len(results.meta.get("members") or ())
    return f"An ensemble of {count} networks" if count > 1 else "A network"


def labeled_models(results: Results) -> dict[str, Estimates]:
    """Metrics of a run and its members by name, labeled as calibrated or raw if it has members."""
    if not results.others:
        return {results.name: results.metrics}
    prefix, others = CALIBRATED_MEMBER, results.others
    calibrated = {f"{name.removeprefix(prefix)}, calibrated": metrics
                  for name, metrics in others.items() if name.startswith(prefix)}  # fmt: skip
    raw = {f"{name}, raw": m for name, m in others.items() if not name.startswith(prefix)}
    own = f"{results.name}, {'calibrated' if calibrated else 'raw'}"
    return {own: results.metrics, **calibrated, **raw}


def prediction_sections(table: PredictionTable, name: str = "") -> list[html.Plot | html.Table]:
    """Confusion matrix, distances of grades, ROC curves and reliability of one table."""
    bars = curves.reliability_caption([table])
    return [
        html.Plot(curves.confusion_plot(table), "Rows are the true classes.", "Confusion matrix"),
        *grades.misgrading_tables(table),
        html.Plot(curves.roc_plot(table), "Each class against the others.", "ROC"),
        html.Plot(curves.reliability_plot({name: table}), bars, "Reliability"),
    ]


def run_details(results: Results) -> dict[str, object]:
    """Hashes, versions and settings of a run."""
    return {k: v for k, v in results.meta.items() if k not in ("members", "notes")}


def readable_details(results: Results) -> dict[str, object]:
    """`run_details` with the label of the voter in place of its name."""
    details = run_details(results)
    if isinstance(voter := details.get("voter"), dict):
        fitted = "fitted on validation" if voter.get("fitted_on") else "not fitted"
        details["voter"] = f"{voter_spec(voter['name']).label}, {fitted}"
    return details


def write_changed_decisions(folder: Path, table: PredictionTable) -> None:
    """Writes changed.csv (changed.<split>.csv): images that control or dense decides otherwise."""
    split = table.rows["split"].iloc[0]
    file = folder / (sparsity.CHANGED_FILE if split == "test" else f"changed.{split}.csv")
    file.unlink(missing_ok=True)
    for source, content in sparsity.read_savings_files(folder).items():
        name, other = sparsity.MODEL_NAMES[source]
        with suppress(OSError, ValueError):  # the report states the reason
            if run := content.get(other):
                reference = sparsity.read_other_table(folder, run, table)
                changed = sparsity.changed_decisions(table, reference, name, other)
                write_text(file, changed.to_csv(index=False))


def describes_weights(folder: Path, num_parameters: int, zero_fraction: float) -> bool:
    """Whether sparsity.json or pruning.json of a folder is of weights of this size and sparsity."""
    savings = read_savings(folder)  # the folder contains the dense model as well
    is_same_size = savings.get("parameters", num_parameters) == num_parameters
    zeros = savings.get("weights_zero_fraction", zero_fraction)
    return bool(is_same_size and abs(zeros - zero_fraction) < ZERO_TOLERANCE)


def read_savings(folder: Path) -> dict[str, Any]:
    """Content of pruning.json, else sparsity.json, of a run folder; empty without both."""
    savings = sparsity.read_savings_files(folder)
    return savings.get(sparsity.PRUNING_FILE) or savings.get(sparsity.SPARSITY_FILE, {})


def measured_ratios(folder: Path) -> dict[str, float | None]:
    """`RATIOS` of a sparse or pruned run, None if not measured; empty for other runs."""
    savings = read_savings(folder)
    return {key: savings[key] for key in RATIOS} if savings else {}


def predictions_frame(table: PredictionTable) -> pd.DataFrame:
    """Label, prediction, whether it is correct, confidence and probabilities of each image.

    Patient, study and attributes are left out, but an id may still name its patient.
    """
    probabilities, predictions = table.probabilities, table.predictions
    correct = np.where(predictions == table.labels, "yes", "no")
    return pd.DataFrame({
        "id": table.rows["id"],
        "true": table.label_names,
        "predicted": np.array(table.class_names)[predictions],
        "correct": np.where(table.labels < 0, "unknown", correct),
        "confidence": probabilities.max(axis=1),
        **{f"p({name})": p for name, p in zip(table.class_names, probabilities.T, strict=True)},
    })  # fmt: skip


def anonymized_predictions(table: PredictionTable) -> pd.DataFrame:
    """`predictions_frame` with a hash in place of each id."""
    frame = predictions_frame(table)
    return frame.assign(id=[hashed_id(str(name)) for name in frame["id"]])


def hashed_id(name: str) -> str:
    """Hash of an id: an id is a path, which may name its patient."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def most_confident(table: PredictionTable, correct: bool, count: int = 4) -> list[str]:
    """Ids of the most confident correct, or wrong, predictions, alternating between classes."""
    frame = predictions_frame(table)
    selected = frame[frame["correct"] == ("yes" if correct else "no")]
    ordered = selected.sort_values("confidence", ascending=False, kind="stable")
    turns = ordered.groupby("true").cumcount().sort_values(kind="stable")
    return [str(name) for name in ordered.loc[turns.index[:count], "id"]]
