"""Report sections of sparse and of pruned models: their layers, savings and changed decisions.

sparsity.json is written by the SparseTraining callback, pruning.json by `consilium prune`.
"""

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

SPARSITY_FILE, PRUNING_FILE = "sparsity.json", "pruning.json"
CHANGED_FILE = "changed.csv"
MAX_ROWS = 200  # changed decisions in a report; their number is always stated
PRUNING_NOTE = "The dense model was not fine-tuned for the additional epochs."


def effective_macs(dense: int, layers: Iterable[tuple[int, int, int]]) -> int:
    """Multiply-accumulates by weights that are not pruned.

    `dense` is their number in the dense model; a layer is (size, nonzeros, positions).
    """
    return dense - sum((size - nonzeros) * positions for size, nonzeros, positions in layers)


def sparsity_sections(folder: Path, table: PredictionTable) -> list[html.Section]:
    """Sections of a run folder with sparsity.json, else none."""
    if not (folder / SPARSITY_FILE).is_file():
        return []
    content = read_json(folder / SPARSITY_FILE)
    compared = compare_with_run(folder, content.get("control"), table, "sparse", "control")
    return [*describe_sparsity(content), *compared]


def pruning_sections(folder: Path, table: PredictionTable) -> list[html.Section]:
    """Sections of a run folder with pruning.json, else none."""
    if not (folder / PRUNING_FILE).is_file():
        return []
    content = read_json(folder / PRUNING_FILE)
    compared = compare_with_run(folder, content["dense"], table, "pruned", "dense")
    return [*describe_pruning(content), *compared]


def describe_sparsity(content: Mapping[str, Any]) -> list[html.Section]:
    """The fraction of zeros in a sentence, and one row a pruned layer, of sparsity.json."""
    rows: list[tuple[html.Cell, ...]] = [
        (
            layer["name"],
            " x ".join(map(str, layer["shape"])),
            layer["nonzeros"],
            layer["nonzeros"] / layer["size"],
            layer["macs"],
            layer["macs_theoretical"],
        )
        for layer in content["layers"]
    ]
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


def compare_with_run(
    folder: Path, run: str | None, table: PredictionTable, name: str, other: str
) -> list[html.Section]:
    """`compare_tables` with the table of another run, given by its path from `folder`."""
    if run is None:
        return []
    try:
        return compare_tables(table, read_other_table(folder, run, table), name=name, other=other)
    except (OSError, ValueError) as error:
        return [html.Text(f"Not compared with {other} {run}: {error}", "Decisions")]


def read_other_table(folder: Path, run: str, table: PredictionTable) -> PredictionTable:
    """Predictions of another run, given by its path from `folder`, on the split of `table`."""
    split = str(table.rows["split"].iloc[0])
    return PredictionTable.read(folder / run / "predictions" / f"{split}.parquet")


def compare_tables(
    sparse: PredictionTable,
    control: PredictionTable,
    *,
    name: str = "sparse",
    other: str = "control",
    max_rows: int = MAX_ROWS,
) -> list[html.Section]:
    """Differences of accuracy and of each class's sensitivity, and the first changed decisions.

    Both tables must contain the same images. `name` and `other` are the two models in the text.
    """
    sparse, control = align([sparse, control])
    difference = paired_differences(sparse, control)["accuracy"].estimate
    columns = ("", f"accuracy, {name} minus {other}")
    changed = changed_decisions(sparse, control, name, other)
    return [
        html.Table(
            columns,
            [("all", html.SignedEstimate(difference))],
            f"Comparison with the {other} model",
        ),
        sensitivity_table(sparse, control, name, other),
        changed_table(changed, len(sparse), name, other, max_rows),
    ]


def sensitivity_table(
    sparse: PredictionTable, control: PredictionTable, name: str, other: str
) -> html.Table:
    """One row a class with its sensitivity in both aligned tables and the difference."""
    rows_and_reasons = [
        _sensitivity_row(c, sparse, control) for c in range(len(sparse.class_names))
    ]
    reasons = "".join(f" {row[0]}: {reason}." for row, reason in rows_and_reasons if reason)
    columns = ("class", "images", other, name, "change", "lost", "gained")
    note = (
        "Lost and gained are images of the class that only one model classifies correctly. The "
        f"change has its 95 % confidence interval.{reasons}"
    )
    rows = [row for row, _ in rows_and_reasons]
    return html.Table(columns, rows, "Sensitivity of each class", note)


def changed_decisions(
    sparse: PredictionTable, control: PredictionTable, name: str = "sparse", other: str = "control"
) -> pd.DataFrame:
    """One row an image with different predictions, with the probabilities of both."""
    sparse, control = align([sparse, control])
    after, before = sparse.predictions, control.predictions
    rows, names = np.flatnonzero(after != before), np.array([*sparse.class_names, "unknown"])
    return pd.DataFrame({
        "id": sparse.rows["id"].to_numpy()[rows],
        "label": names[sparse.labels[rows]],  # -1 is the last
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


def _sensitivity_row(
    c: int, sparse: PredictionTable, control: PredictionTable
) -> tuple[tuple[html.Cell, ...], str]:
    """The row of class `c`, and why its change has no interval."""
    name, of_class = sparse.class_names[c], np.flatnonzero(sparse.labels == c)
    if not len(of_class):
        return (name, 0, None, None, None, 0, 0), "no image"
    sparse, control = sparse.take(of_class), control.take(of_class)
    # the accuracy on the images of a class is its sensitivity
    change = mean_paired_differences([(sparse, control)])["accuracy"].estimate
    after, before = (table.predictions == c for table in (sparse, control))
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    sensitivities = float(before.mean()), float(after.mean())
    return (
        name,
        len(after),
        *sensitivities,
        html.SignedEstimate(change),
        lost,
        gained,
    ), change.reason
