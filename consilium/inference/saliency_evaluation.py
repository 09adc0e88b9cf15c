"""Measures heat maps: do they point at the lesion, and do the places they name carry the answer."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from rich.progress import track
from torch import nn

from consilium.inference import panels
from consilium.inference.predictor import Model, load
from datamodules.images import read
from evaluation import saliency
from evaluation.files import read_json, write_bytes, write_json
from evaluation.reports import html
from evaluation.saliency import Measured
from evaluation.stats.estimate import Estimate

EXAMPLES = "examples"
EXAMPLE = "The first picture of a class that all classify rightly, by the first method."
NAMES = ("pointing", "energy_in_box", "deletion", "insertion")
RANDOM = "weights randomized"
NOTE = (
    "Pictures that were rightly classified by all; the map is of their class. pointing: the peak "
    "lies in the lesion's box grown by 5 % of the long side. energy_in_box: share of the map in "
    "that box. deletion: area under the probability while the best places are blurred away (low "
    "is good); insertion: while they are put into the blurred picture (high is good). With "
    "randomized weights pointing must be lost. In brackets: 95 % intervals over patients."
)
Row = tuple[str, str, dict[str, Estimate]]


def measure(
    path: Path,
    methods: Sequence[str],
    right: pd.DataFrame,
    device: torch.device | None = None,
    seed: int = 0,
) -> list[Row]:
    """Figures of every member, and of the ensemble, by method; then with weights randomized.

    `right`: the rows of pictures that all classify rightly, see `correct`.
    """
    rows = []
    for method in methods:
        rows += _measured(load(path, method, device), method, right, f"measuring {method}")
    strange = randomized(load(path, methods[0], device), seed)
    rows += _measured(strange, f"{methods[0]}, {RANDOM}", right, "with random weights")
    return rows


def correct(model: Model, table: pd.DataFrame) -> pd.DataFrame:
    """The rows that every member and the ensemble classify rightly, those with a box if any has."""
    rows = table[table["label"] >= 0]
    boxed = np.array([text != "" for text in _boxes(rows)], dtype=bool)
    rows = rows[boxed] if boxed.any() else rows
    seen = zip(rows["path"], rows["label"], model.parts_of(rows), strict=True)
    kept = [
        all(vote.argmax() == label for vote in model.ask(read(path), part))
        for path, label, part in track(list(seen), "asking")
    ]
    return rows[kept]


def randomized(model: Model, seed: int = 0) -> Model:
    """The model with the entries of each of its weights shuffled."""
    generator = torch.Generator().manual_seed(seed)
    for member in model.members:
        net: nn.Module = member.module.net
        for weight in net.parameters():
            order = torch.randperm(weight.numel(), generator=generator)
            weight.data = weight.data.flatten()[order.to(weight.device)].view_as(weight)
    return model


def examples(model: Model, right: pd.DataFrame, folder: Path) -> None:
    """A panel of the first of these pictures of every class; those of an earlier time go."""
    shutil.rmtree(folder / EXAMPLES, ignore_errors=True)
    for label in sorted(right["label"].unique()):
        first = right[right["label"] == label].head(1)
        name, picture = str(first["id"].item()), read(first["path"].item())
        looked = model.look(picture, int(label), model.parts_of(first)[0])
        drawn = panels.panel(name, picture, looked, model)
        write_bytes(folder / EXAMPLES / f"{label}.png", html.to_png(drawn))


def write(folder: Path, rows: Sequence[Row]) -> None:
    """faithfulness.json, and report.html with the examples that lie there."""
    plain: list[dict[str, Any]] = [
        {"member": member, "method": method, "figures": {k: asdict(f) for k, f in found.items()}}
        for member, method, found in rows
    ]
    write_json(folder / saliency.FILE, {"version": 1, "rows": plain})
    many = rows[0][2]["deletion"]
    lead = (
        f"Heat maps of {many.n:,} pictures of {many.patients:,} patients, measured."
        if many.n
        else "No labeled picture is rightly classified by all, so no map was measured."
    )
    sections = [html.Text(lead, lead=True), section(rows), *pictures(folder)]
    html.write_report(folder / "report.html", "Are the heat maps faithful?", sections)


def read_rows(folder: Path) -> list[Row]:
    """What `write` has written."""
    said = read_json(folder / saliency.FILE)["rows"]
    return [
        (row["member"], row["method"], {k: Estimate(**f) for k, f in row["figures"].items()})
        for row in said
    ]


def pictures(folder: Path, heading: str = "Where they look") -> list[html.Section]:
    """The examples of a folder, by class."""
    files = sorted((folder / EXAMPLES).glob("*.png"), key=lambda file: int(file.stem))
    shown = [html.Picture(file.read_bytes(), EXAMPLE) for file in files]
    return [replace(one, heading=heading if one is shown[0] else "") for one in shown]


def section(rows: Sequence[Row]) -> html.Table:
    """The table of members and methods."""
    cells: list[tuple[html.Cell, ...]] = [
        (member, method, found["deletion"].n, *(found[name] for name in NAMES))
        for member, method, found in rows
    ]
    return html.Table(("member", "method", "n", *NAMES), cells, "Faithfulness", NOTE, digits=3)


def _measured(model: Model, method: str, rows: pd.DataFrame, what: str) -> list[Row]:
    found: dict[str, list[Measured]] = {name: [] for name in _names(model)}
    boxes = _boxes(rows)
    parts = model.parts_of(rows)
    todo = zip(rows["path"], rows["label"], rows["patient"], boxes, parts, strict=True)
    for path, label, patient, box, part in track(list(todo), what):
        picture = read(path)
        looked = model.look(picture, int(label), part)
        for at, (name, heat) in enumerate(zip(found, [*looked.maps, looked.heat], strict=False)):
            said = Asked(model, at, int(label), part)
            found[name].append(_one(said, picture, heat, str(patient), box))
    return [(name, method, saliency.figures(each)) for name, each in found.items()]


def _names(model: Model) -> list[str]:
    """Whose maps there are: each member's and, of several, their ensemble's."""
    names = [member.name for member in model.members]
    return [*names, f"ensemble ({model.kind})"] if len(names) > 1 else names


def _boxes(rows: pd.DataFrame) -> list[str]:
    """The lesion's box of each row, empty where none is known."""
    known = rows["box"].fillna("") if "box" in rows else [""] * len(rows)
    return [str(text) for text in known]


def _one(said: "Asked", picture: np.ndarray, heat: np.ndarray, patient: str, box: str) -> Measured:
    lesion = saliency.box_of(box)
    inside = None if lesion is None else saliency.grown(lesion, heat.shape)
    blank = cv2.GaussianBlur(picture, (0, 0), max(picture.shape[:2]) / 20)
    return Measured(
        patient,
        None if inside is None else saliency.points_into(heat, inside),
        None if inside is None else saliency.energy_inside(heat, inside),
        saliency.deletion(said, picture, blank, heat),
        saliency.insertion(said, picture, blank, heat),
    )


class Asked:
    """The probability of one class that a member, or after all members the ensemble, gives."""

    def __init__(self, model: Model, at: int, label: int, part: str) -> None:
        self.model, self.at, self.label, self.part = model, at, label, part

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Probabilities (n,) of pictures (n, H, W, ...)."""
        if self.at < len(self.model.members):
            member = self.model.members[self.at]
            seen = [member.preprocess(picture).to(self.model.device) for picture in pictures]
            return member.votes(torch.stack(seen))[:, self.label]
        return np.array([self.model.ask(p, self.part)[-1][self.label] for p in pictures])
