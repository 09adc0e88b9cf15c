"""What a sparse model is: its layers, what it costs in theory, and what it changed.

sparsity.json is written by the training; this turns it into sections of the run's report.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.files import read_json
from evaluation.predictions import PredictionTable, align
from evaluation.reports import html
from evaluation.stats import paired_tests

FILE = "sparsity.json"
CHANGED = "changed.csv"
LISTED = 200  # changed decisions that a report lists; their number is always said


def macs(dense: int, layers: Iterable[tuple[int, int, int]]) -> int:
    """Multiply-accumulates that are not by a pruned number; layers are (size, kept, positions)."""
    return dense - sum((size - kept) * positions for size, kept, positions in layers)


def sentence(said: Mapping[str, Any]) -> str:
    """What was saved, in plain words."""
    return (
        f"{100 * said['weights_zero_fraction']:.1f} % of all weights are 0, and "
        f"{100 * said['macs_theoretical_ratio']:.1f} % of the multiply-accumulates are not by "
        f"one of them. Nothing was measured to get faster or to need less energy: dense kernels "
        "multiply by zeros as by any other number."
    )


def of_run(folder: Path, table: PredictionTable) -> list[html.Section]:
    """The sections of a run folder, none when the run was not sparse."""
    if not (folder / FILE).is_file():
        return []
    said = read_json(folder / FILE)
    return [*sections(said), *beside(folder, said.get("control"), table)]


def beside(
    folder: Path, control: str | None, table: PredictionTable, name: str = "sparse",
    other: str = "control",
) -> list[html.Section]:  # fmt: skip
    """The table of a run beside that of its control, a run folder as seen from `folder`."""
    if control is None:
        return []
    try:
        return against_control(table, of_other(folder, control, table), name=name, other=other)
    except (OSError, ValueError) as error:
        return [html.Text(f"Not set beside {other} {control}: {error}", "Decisions")]


def of_other(folder: Path, run: str, table: PredictionTable) -> PredictionTable:
    """What another run, as seen from `folder`, said of the split of `table`."""
    split = str(table.rows["split"].iloc[0])
    return PredictionTable.read(folder / run / "predictions" / f"{split}.parquet")


def sections(said: Mapping[str, Any]) -> list[html.Section]:
    """The sentence, and one row a pruned layer."""
    rows: list[tuple[html.Cell, ...]] = [
        (
            layer["name"],
            " x ".join(map(str, layer["shape"])),
            layer["kept"],
            layer["kept"] / layer["numbers"],
            layer["macs"],
            layer["macs_theoretical"],
        )
        for layer in said["layers"]
    ]
    columns = ("layer", "shape", "kept", "density", "MACs", "theoretical MACs")
    note = f"{len(said['left_out'])} further weights were not pruned; {FILE} says why."
    return [
        html.Text(sentence(said), "Sparsity"),
        html.Table(columns, rows, "Pruned layers", note),
    ]


def against_control(
    sparse: PredictionTable,
    control: PredictionTable,
    *,
    name: str = "sparse",
    other: str = "control",
    listed: int = LISTED,
) -> list[html.Section]:
    """What sparsity cost: accuracy, sensitivity of each class, and the first changed decisions.

    Both tables must hold the same images.
    `name` and `other` are what the two are called.
    """
    sparse, control = align([sparse, control])
    gap = paired_tests.differences(sparse, control)["accuracy"].figure
    return [
        html.Table(("", f"accuracy, {name} minus {other}"), [("all", html.Gap(gap))],
                     f"Beside the {other} model"),
        sensitivities(sparse, control, name, other),
        changed(decisions(sparse, control, name, other), len(sparse), name, other, listed),
    ]  # fmt: skip


def sensitivities(
    sparse: PredictionTable, control: PredictionTable, name: str, other: str
) -> html.Table:
    """One row a class: what became of its sensitivity; `sparse` and `control` are aligned."""
    each = [_sensitivity(k, sparse, control) for k in range(len(sparse.class_names))]
    reasons = "".join(f" {row[0]}: {reason}." for row, reason in each if reason)
    columns = ("class", "images", other, name, "change", "lost", "gained")
    note = f"Lost and gained are images of the class. The change has its 95 % interval.{reasons}"
    rows = [row for row, _ in each]
    return html.Table(columns, rows, "Sensitivity of each class", note)


def decisions(
    sparse: PredictionTable, control: PredictionTable, name: str = "sparse", other: str = "control"
) -> pd.DataFrame:
    """One row an image that the two decide otherwise, with the probability of what each said."""
    sparse, control = align([sparse, control])
    now, then = (table.logits.argmax(axis=1) for table in (sparse, control))
    where, names = np.flatnonzero(now != then), np.array([*sparse.class_names, "unknown"])
    return pd.DataFrame({
        "id": sparse.rows["id"].to_numpy()[where],
        "label": names[sparse.labels[where]],  # -1 is the last
        f"{other}_said": names[then[where]],
        f"{name}_said": names[now[where]],
        f"{other}_probability": control.probabilities[where, then[where]],
        f"{name}_probability": sparse.probabilities[where, now[where]],
    })  # fmt: skip


def changed(found: pd.DataFrame, images: int, name: str, other: str, listed: int) -> html.Table:
    """The first of `decisions`; the note says how many there are in all."""
    said = found[["id", "label", f"{other}_said", f"{name}_said"]].head(listed)
    rows = [tuple(map(str, row)) for row in said.to_numpy()]
    more = f"; the first {listed} are listed, {CHANGED} holds all of them"
    note = f"{len(found)} of {images} decisions changed{more if len(found) > listed else ''}."
    return html.Table(("image", "label", other, name), rows, "Changed decisions", note)


def _sensitivity(
    k: int, sparse: PredictionTable, control: PredictionTable
) -> tuple[tuple[html.Cell, ...], str]:
    """The row of class `k`, and why its change has no interval."""
    name, of_class = sparse.class_names[k], np.flatnonzero(sparse.labels == k)
    if not len(of_class):
        return (name, 0, None, None, None, 0, 0), "no image"
    sparse, control = sparse.take(of_class), control.take(of_class)
    # the accuracy on the images of a class is its sensitivity
    change = paired_tests.mean_differences([(sparse, control)])["accuracy"].figure
    right, before = (table.logits.argmax(axis=1) == k for table in (sparse, control))
    lost, gained = int((before & ~right).sum()), int((right & ~before).sum())
    shares = float(before.mean()), float(right.mean())
    return (name, len(right), *shares, html.Gap(change), lost, gained), change.reason
