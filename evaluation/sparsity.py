"""Report sections of sparse and of pruned models: their layers, savings and changed decisions."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.files import read_json
from evaluation.predictions import PredictionTable, align
from evaluation.reports import html
from evaluation.stats.estimate import Estimate
from evaluation.stats.paired_tests import mean_paired_differences, paired_differences

SPARSITY_FILE, PRUNING_FILE = "sparsity.json", "pruning.json"  # of training, `consilium prune`
MODEL_NAMES = {SPARSITY_FILE: ("sparse", "control"), PRUNING_FILE: ("pruned", "dense")}
CHANGED_FILE = "changed.csv"
MAX_ROWS = 200  # changed decisions in a report; their number is always stated
PRUNING_NOTE = "The dense model was not fine-tuned for the additional epochs."


def theoretical_macs(dense: int, layers: Iterable[tuple[int, int, int]]) -> int:
    """Multiply-accumulates of a network that are not by zero; `dense` is the number of all.

    `layers` are (weights, nonzero weights, positions at which each weight is used).
    """
    return dense - sum((size - nonzeros) * positions for size, nonzeros, positions in layers)


def savings_sections(folder: Path, table: PredictionTable) -> list[html.Section]:
    """Sections on sparsity.json or pruning.json of a run folder, and on changed decisions."""
    sections: list[html.Section] = []
    for file, content in read_savings_files(folder).items():
        describe = describe_sparsity if file == SPARSITY_FILE else describe_pruning
        name, other = MODEL_NAMES[file]
        sections += describe(content)
        if run := content.get(other):
            try:
                sections += compare_tables(table, read_other_table(folder, run, table), name, other)
            except (OSError, ValueError) as error:
                reason = f"Not compared with {other} {run}: {error}"
                sections.append(html.Text(reason, "Decisions"))
    return sections


def read_savings_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The contents of sparsity.json and pruning.json in a run folder, as far as they exist."""
    return {file: read_json(folder / file) for file in MODEL_NAMES if (folder / file).is_file()}


def describe_sparsity(content: Mapping[str, Any]) -> list[html.Section]:
    """The fraction of zeros in a sentence, and one row a pruned layer, of sparsity.json."""
    rows: list[tuple[html.Cell, ...]] = [
        (layer["name"], " x ".join(map(str, layer["shape"])), layer["nonzeros"],
         layer["nonzeros"] / layer["size"], layer["macs"], layer["macs_theoretical"])
        for layer in content["layers"]
    ]  # fmt: skip
    columns = ("layer", "shape", "nonzeros", "density", "MACs", "theoretical MACs")
    count = len(content["excluded"])
    note = f"{count} further weights are excluded from pruning; see {SPARSITY_FILE}."
    return [
        html.Text(sparsity_sentence(content), "Sparsity"),
        html.Table(columns, rows, "Pruned layers", note),
    ]


def sparsity_sentence(content: Mapping[str, Any]) -> str:
    """The fractions of zeros and of remaining multiply-accumulates; no claim of a speedup."""
    return (
        f"{100 * content['weights_zero_fraction']:.1f} % of all weights are 0, and "
        f"{100 * content['macs_theoretical_ratio']:.1f} % of the multiply-accumulates are not by "
        "zero. No speedup and no energy saving was measured: dense kernels multiply by zeros like "
        "by any other number."
    )


def describe_pruning(content: Mapping[str, Any]) -> list[html.Section]:
    """The speedup in a sentence, the measured ratios, and one row a pruned layer."""
    latency, energy = content["latency"], Estimate(**content["energy"])
    rows: list[tuple[html.Cell, ...]] = [
        ("multiply-accumulates, theoretical", content["macs_theoretical_ratio"]),
        ("parameters", content["parameters"] / content["parameters_dense"]),
        *((f"latency, batch of {size}", Estimate(**ratio)) for size, ratio in latency.items()),
        ("energy per image", energy),
    ]
    layers: list[tuple[html.Cell, ...]] = [
        (layer["name"], layer["in"], layer["in_left"], layer["out"], layer["out_left"])
        for layer in content["layers"]
    ]
    columns = ("layer", "inputs", "inputs left", "outputs", "outputs left")
    note = f"Medians of alternating pairs of measurements, {content['machine']}."
    note += f" {energy.reason}." if energy.reason else ""
    return [
        html.Text(pruning_sentence(content), "Channels"),
        html.Table(("pruned / dense", ""), rows, "", note),
        html.Table(columns, layers, "Layers with fewer channels", PRUNING_NOTE),
    ]


def pruning_sentence(content: Mapping[str, Any]) -> str:
    """Remaining multiply-accumulates and parameters, and the measured speedup."""
    speedups = [
        f"{1 / ratio['value']:.2f} times as fast ({1 / ratio['high']:.2f} to "
        f"{1 / ratio['low']:.2f}) with a batch of {size}"
        for size, ratio in content["latency"].items()
    ]
    parameters = content["parameters"] / content["parameters_dense"]
    return (
        f"{100 * content['macs_theoretical_ratio']:.1f} % of the dense model's "
        f"multiply-accumulates and {100 * parameters:.1f} % of its parameters are left. Measured "
        f"next to the dense model, it is {' and '.join(speedups)}."
    )


def read_other_table(folder: Path, run: str, table: PredictionTable) -> PredictionTable:
    """Predictions of another run, given by its path from `folder`, on the split of `table`."""
    split = str(table.rows["split"].iloc[0])
    return PredictionTable.read(folder / run / "predictions" / f"{split}.parquet")


def compare_tables(
    sparse: PredictionTable, control: PredictionTable, name: str = "sparse", other: str = "control"
) -> list[html.Section]:
    """Difference of accuracy, sensitivity of each class, and the first changed decisions."""
    sparse, control = align([sparse, control])
    gap = html.SignedEstimate(paired_differences(sparse, control)["accuracy"].estimate)
    columns, title = ("", f"accuracy, {name} minus {other}"), f"Comparison with the {other} model"
    changed = changed_decisions(sparse, control, name, other)
    return [
        html.Table(columns, [("all", gap)], title),
        sensitivity_table(sparse, control, name, other),
        changed_table(changed, len(sparse), name, other),
    ]


def sensitivity_table(
    sparse: PredictionTable, control: PredictionTable, name: str, other: str
) -> html.Table:
    """One row a class with its sensitivity in both aligned tables and the difference."""
    rows, reasons = [], ""
    for c, class_name in enumerate(sparse.class_names):
        row, reason = _sensitivity_row(c, sparse, control)
        rows.append((class_name, *row))
        reasons += f" {class_name}: {reason}." if reason else ""
    columns = ("class", "images", other, name, "change", "lost", "gained")
    note = (
        "Lost and gained are images of the class that only one model classifies correctly. The "
        f"change has its 95 % confidence interval.{reasons}"
    )
    return html.Table(columns, rows, "Sensitivity of each class", note)


def _sensitivity_row(
    c: int, sparse: PredictionTable, control: PredictionTable
) -> tuple[tuple[html.Cell, ...], str]:
    """The row of class `c` without its name, and why its change has no interval."""
    of_class = np.flatnonzero(sparse.labels == c)
    if not len(of_class):
        return (0, None, None, None, 0, 0), "no image"
    sparse, control = sparse.take(of_class), control.take(of_class)
    # the accuracy on the images of a class is its sensitivity
    change = mean_paired_differences([(sparse, control)])["accuracy"].estimate
    after, before = (table.predictions == c for table in (sparse, control))
    counts = int((before & ~after).sum()), int((after & ~before).sum())
    rates = float(before.mean()), float(after.mean())
    return (len(after), *rates, html.SignedEstimate(change), *counts), change.reason


def changed_decisions(
    sparse: PredictionTable, control: PredictionTable, name: str = "sparse", other: str = "control"
) -> pd.DataFrame:
    """One row per image with different predictions: label, both predictions, probabilities."""
    sparse, control = align([sparse, control])
    after, before = sparse.predictions, control.predictions
    rows, names = np.flatnonzero(after != before), np.array(sparse.class_names)
    return pd.DataFrame({
        "id": sparse.rows["id"].to_numpy()[rows],
        "label": sparse.label_names[rows],
        f"{other}_prediction": names[before[rows]],
        f"{name}_prediction": names[after[rows]],
        f"{other}_probability": control.probabilities[rows, before[rows]],
        f"{name}_probability": sparse.probabilities[rows, after[rows]],
    })  # fmt: skip


def changed_table(
    changed: pd.DataFrame, num_images: int, name: str, other: str, max_rows: int = MAX_ROWS
) -> html.Table:
    """The first rows of `changed_decisions`; the note has the number of all."""
    first = changed[["id", "label", f"{other}_prediction", f"{name}_prediction"]].head(max_rows)
    rows = [tuple(map(str, row)) for row in first.to_numpy()]
    note = f"{len(changed)} of {num_images} decisions changed"
    if len(changed) > max_rows:
        note += f"; the first {max_rows} are listed, {CHANGED_FILE} contains all"
    return html.Table(("image", "label", other, name), rows, "Changed decisions", f"{note}.")
