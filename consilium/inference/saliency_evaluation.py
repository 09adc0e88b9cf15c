"""Evaluation of saliency maps on labeled images, as a table and a report."""

import copy
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from rich.progress import track

from consilium.inference.panels import plot_panel
from consilium.inference.predictor import Predictor
from datamodules.images import read_image
from evaluation import saliency
from evaluation.files import read_json, write_bytes, write_json
from evaluation.reports import html
from evaluation.saliency import SaliencyScores, saliency_estimates
from evaluation.stats.estimate import Estimate
from evaluation.voters.registry import voter_spec

VERSION = 2  # of saliency.json
EXAMPLES = "examples"
LABELS = {"pointing": "pointing game", "energy_in_box": "energy in box",
          "deletion": "deletion", "insertion": "insertion"}  # fmt: skip
NOTE = (
    "Images that every member and the ensemble classify correctly; the maps explain the true "
    "class. Pointing game: how often the map's maximum is in the lesion's box, with a margin of "
    "5 % of the long side. Energy in box: fraction of the map's sum in that box. Deletion: area "
    "under the class's probability as the pixels with the largest values are blurred (lower is "
    "better). Insertion: the same as they are restored in the blurred image (higher is better). "
    "Sanity check: with randomized weights the pointing game should drop. In brackets: 95 % "
    "confidence intervals, resampled by patient."
)
EXAMPLE_CAPTION = "The first correctly classified image of each class, by the first method."


class SaliencyResult(NamedTuple):
    """Estimates of the maps of one member or of the ensemble, by one method."""

    member: str
    method: str
    estimates: dict[str, Estimate]


def evaluate_saliency(
    predictor: Predictor, methods: Sequence[str], rows: pd.DataFrame
) -> list[SaliencyResult]:
    """Evaluates the maps of rows by each method, then by the first with randomized weights."""
    results = []
    for method in methods:
        results += evaluate_maps(predictor.with_method(method), method, rows)
    randomized = randomize_weights(copy.deepcopy(predictor).with_method(methods[0]))
    return results + evaluate_maps(randomized, f"{methods[0]}, weights randomized", rows)


def evaluate_maps(predictor: Predictor, method: str, rows: pd.DataFrame) -> list[SaliencyResult]:
    """Estimates of the maps of each member and, if there are several, of the ensemble."""
    names = [member.name for member in predictor.members]
    if len(names) > 1:
        names.append(f"ensemble ({voter_spec(predictor.ensemble.voter.name).label})")
    scores: dict[str, list[SaliencyScores]] = {name: [] for name in names}
    groups = predictor.groups_of(rows)
    columns = zip(rows["path"], rows["label"], rows["patient"], _boxes(rows), groups, strict=True)
    for path, label, patient, box, group in track(list(columns), f"evaluating {method}"):
        image = read_image(path)
        explanation = predictor.explain(image, int(label), group)
        maps = [*explanation.member_maps, explanation.saliency_map]
        for index, (name, saliency_map) in enumerate(zip(names, maps, strict=False)):
            score = _score_function(predictor, index, int(label), group)
            scores[name].append(_score_map(score, image, saliency_map, str(patient), box))
    return [SaliencyResult(k, method, saliency_estimates(v)) for k, v in scores.items()]


def select_correct(predictor: Predictor, table: pd.DataFrame) -> pd.DataFrame:
    """The rows that members and ensemble classify correctly; only rows with a box, if any has."""
    rows = table[table["label"] >= 0]
    has_box = np.array([box != "" for box in _boxes(rows)], dtype=bool)
    rows = rows[has_box] if has_box.any() else rows
    columns = list(zip(rows["path"], rows["label"], predictor.groups_of(rows), strict=True))
    is_correct = [
        bool((predictor.predict(read_image(path), group).argmax(axis=1) == label).all())
        for path, label, group in track(columns, "predicting")
    ]
    return rows[is_correct]


def randomize_weights(predictor: Predictor) -> Predictor:
    """Shuffles the entries of each parameter of the members in place, and returns the predictor."""
    generator = torch.Generator().manual_seed(0)
    for member in predictor.members:
        for weight in member.require_module().net.parameters():
            order = torch.randperm(weight.numel(), generator=generator)
            weight.data = weight.data.flatten()[order.to(weight.device)].view_as(weight)
    return predictor


def write_examples(predictor: Predictor, rows: pd.DataFrame, folder: Path) -> None:
    """Writes a PNG of the maps of the first row of each class; replaces earlier examples."""
    shutil.rmtree(folder / EXAMPLES, ignore_errors=True)
    for label in sorted(rows["label"].unique()):
        first = rows[rows["label"] == label].head(1)
        name, image = str(first["id"].item()), read_image(first["path"].item())
        explanation = predictor.explain(image, int(label), predictor.groups_of(first)[0])
        panel = plot_panel(name, image, explanation, predictor)
        write_bytes(folder / EXAMPLES / f"{label}.png", html.render_png(panel))


def write_results(folder: Path, results: Sequence[SaliencyResult]) -> None:
    """Writes saliency.json, and report.html with the examples in the folder."""
    rows = [
        {**result._asdict(), "estimates": {k: asdict(v) for k, v in result.estimates.items()}}
        for result in results
    ]
    write_json(folder / saliency.FILE, {"version": VERSION, "rows": rows})
    sample = results[0].estimates["deletion"]
    lead = f"Saliency maps of {sample.n:,} images of {sample.patients:,} patients."
    if not sample.n:
        lead = "No labeled image is classified correctly by all members, so no map was evaluated."
    sections = [html.Text(lead, lead=True), results_table(results), *example_sections(folder)]
    html.write_report(folder / "report.html", "Evaluation of saliency maps", sections)


def read_results(folder: Path) -> list[SaliencyResult]:
    """The results in the saliency.json of a folder."""
    results = []
    for row in read_json(folder / saliency.FILE)["rows"]:
        estimates = {name: Estimate(**value) for name, value in row["estimates"].items()}
        results.append(SaliencyResult(**row | {"estimates": estimates}))
    return results


def example_sections(folder: Path, heading: str = "Saliency maps") -> list[html.Section]:
    """The example panels of a folder by class, the first under the heading."""
    files = sorted((folder / EXAMPLES).glob("*.png"), key=lambda file: int(file.stem))
    plots = [html.Plot(file.read_bytes(), EXAMPLE_CAPTION) for file in files]
    return [replace(plot, heading=heading if plot is plots[0] else "") for plot in plots]


def results_table(results: Sequence[SaliencyResult]) -> html.Table:
    """Table of the estimates by member and method."""
    cells: list[tuple[html.Cell, ...]] = [
        (member, method, estimates["deletion"].n, *(estimates[name] for name in LABELS))
        for member, method, estimates in results
    ]
    header = ("member", "method", "n", *LABELS.values())
    return html.Table(header, cells, "Evaluation of saliency maps", NOTE, digits=3)


def _boxes(rows: pd.DataFrame) -> list[str]:
    """The lesion's box of each row as text, "" where it is unknown."""
    return rows["box"].fillna("").astype(str).tolist() if "box" in rows else [""] * len(rows)


def _score_map(
    score: saliency.Score, image: np.ndarray, saliency_map: np.ndarray, patient: str, box: str
) -> SaliencyScores:
    """Scores of one map (H, W); without a `box`, those of the lesion are None."""
    lesion, hit, energy = saliency.parse_box(box), None, None
    if lesion is not None:
        mask = saliency.box_mask(lesion, saliency_map.shape)
        hit = saliency.is_peak_inside(saliency_map, mask)
        energy = saliency.energy_inside(saliency_map, mask)
    blurred = cv2.GaussianBlur(image, (0, 0), max(image.shape[:2]) / 20)
    deletion = saliency.deletion_auc(score, image, blurred, saliency_map)
    insertion = saliency.insertion_auc(score, image, blurred, saliency_map)
    return SaliencyScores(patient, hit, energy, deletion, insertion)


def _score_function(predictor: Predictor, index: int, label: int, group: str) -> saliency.Score:
    """A function from images (n, H, W, ...) to probabilities (n,) of the class `label`.

    They are those of member `index`, or of the ensemble if `index` is the number of members.
    """

    def score(images: np.ndarray) -> np.ndarray:
        """Probabilities (n,) of the class."""
        if index == len(predictor.members):
            inputs = [predictor.preprocess(image) for image in images]
            return np.asarray(predictor.predict_batch(inputs, [group] * len(inputs))[-1, :, label])
        member = predictor.members[index]
        views = [member.preprocess(image).to(predictor.device) for image in images]
        return member.predict(torch.stack(views))[:, label]

    return score
