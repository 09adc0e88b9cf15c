"""What taking channels out of a model cost and saved, beside the dense model it comes from.

pruning.json is written before the fine-tuning; this turns it into sections of the run's report.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation import sparsity
from evaluation.files import read_json
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.stats.estimate import Estimate

FILE = "pruning.json"
BESIDE = "The dense model beside it has not had the epochs of fine-tuning."


def of_run(folder: Path, table: PredictionTable) -> list[html.Section]:
    """The sections of a run folder, none when no channels were pruned."""
    if not (folder / FILE).is_file():
        return []
    said = read_json(folder / FILE)
    return [*sections(said), *sparsity.beside(folder, said["dense"], table, "pruned", "dense")]


def sections(said: Mapping[str, Any]) -> list[html.Section]:
    """The sentence, what was measured, and one row a layer with fewer channels."""
    rows: list[tuple[html.Cell, ...]] = [
        ("multiply-accumulates, theoretical", said["macs_theoretical_ratio"]),
        ("parameters", said["parameters"] / said["parameters_dense"]),
        *((f"time of a batch of {size}", _figure(f)) for size, f in said["latency"].items()),
        ("energy an image", _figure(said["energy"])),
    ]
    layers: list[tuple[html.Cell, ...]] = [
        (layer["name"], layer["in"], layer["in_left"], layer["out"], layer["out_left"])
        for layer in said["layers"]
    ]
    columns = ("layer", "inputs", "left", "outputs", "left")
    reason = said["energy"]["reason"]
    note = f"Medians of pairs in turns, {said['machine']}." + (f" {reason}." if reason else "")
    return [
        html.Text(sentence(said), "Channels"),
        html.Table(("pruned / dense", ""), rows, "", note),
        html.Table(columns, layers, "Layers with fewer channels", BESIDE),
    ]


def sentence(said: Mapping[str, Any]) -> str:
    """What got faster, in plain words."""
    times = [f"{1 / f['value']:.2f} times as fast ({1 / f['high']:.2f} to {1 / f['low']:.2f}) on a "
             f"batch of {size}" for size, f in said["latency"].items()]  # fmt: skip
    return (
        f"{100 * said['macs_theoretical_ratio']:.1f} % of the dense model's multiply-accumulates "
        f"and {100 * said['parameters'] / said['parameters_dense']:.1f} % of its parameters are "
        f"left. Measured beside it, it is {' and '.join(times)}."
    )


def _figure(said: Mapping[str, Any]) -> Estimate:
    return Estimate(**said)
