"""What a sparse model is: its layers, what it costs in theory, and what it changed.

sparsity.json is written by the training; this turns it into sections of the run's report.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import comparison, report
from evaluation.files import read_json
from evaluation.table import PredictionTable, align

FILE = "sparsity.json"
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


def of_run(folder: Path, table: PredictionTable) -> list[report.Section]:
    """The sections of a run folder, none when the run was not sparse."""
    if not (folder / FILE).is_file():
        return []
    said = read_json(folder / FILE)
    return [*sections(said), *beside(folder, said.get("control"), table)]


def beside(
    folder: Path, control: str | None, table: PredictionTable, name: str = "sparse",
    other: str = "control",
) -> list[report.Section]:  # fmt: skip
    """The table of a run beside that of its control, a run folder as seen from `folder`."""
    if control is None:
        return []
    split = str(table.rows["split"].iloc[0])
    file = folder / control / "predictions" / f"{split}.parquet"
    try:
        return against_control(table, PredictionTable.read(file), name=name, other=other)
    except (OSError, ValueError) as error:
        return [report.Text(f"Not set beside {other} {control}: {error}", "Decisions")]


def sections(said: Mapping[str, Any]) -> list[report.Section]:
    """The sentence, and one row a pruned layer."""
    rows: list[tuple[report.Cell, ...]] = [
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
        report.Text(sentence(said), "Sparsity"),
        report.Table(columns, rows, "Pruned layers", note),
    ]


def against_control(
    sparse: PredictionTable,
    control: PredictionTable,
    *,
    name: str = "sparse",
    other: str = "control",
) -> list[report.Section]:
    """What sparsity cost: accuracy, sensitivity of each class, and every changed decision.

    Both tables must hold the same images.
    `name` and `other` are what the two are called.
    """
    sparse, control = align([sparse, control])
    gap = comparison.differences(sparse, control)["accuracy"].figure
    now, then = (t.probabilities.argmax(1) for t in (sparse, control))
    rows = [_sensitivity(k, label, sparse.labels, now, then) for k, label in
            enumerate(sparse.class_names)]  # fmt: skip
    columns = ("class", "images", other, name, "change", "lost", "gained")
    return [
        report.Table(("", f"accuracy, {name} minus {other}"), [("all", report.Gap(gap))],
                     f"Beside the {other} model"),
        report.Table(columns, rows, "Sensitivity of each class",
                     "Lost and gained are images of the class."),
        changed(sparse, now, then, name, other),
    ]  # fmt: skip


def changed(
    table: PredictionTable, now: np.ndarray, then: np.ndarray, name: str, other: str
) -> report.Table:
    """The images whose decision the control and the sparse model do not share."""
    where, names = np.flatnonzero(now != then), table.class_names
    rows = [
        (
            str(table.rows["id"].iloc[i]),
            _name(names, table.labels[i]),
            names[then[i]],
            names[now[i]],
        )
        for i in where[:LISTED]
    ]
    note = f"{len(where)} of {len(now)} decisions changed" + (
        f"; the first {LISTED} are listed." if len(where) > LISTED else "."
    )
    return report.Table(("image", "label", other, name), rows, "Changed decisions", note)


def _sensitivity(
    k: int, name: str, labels: np.ndarray, now: np.ndarray, then: np.ndarray
) -> tuple[report.Cell, ...]:
    of_class = labels == k
    n = int(of_class.sum())
    right, before = (now == k) & of_class, (then == k) & of_class
    lost, gained = int((before & ~right).sum()), int((right & ~before).sum())
    if not n:
        return (name, 0, None, None, None, 0, 0)
    share, old = int(right.sum()) / n, int(before.sum()) / n
    return (name, n, old, share, share - old, lost, gained)


def _name(names: list[str], label: int) -> str:
    return names[label] if label >= 0 else "unknown"
