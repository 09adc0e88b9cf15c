"""Images, saliency maps and predictions as files: thumbnails, panels of members, explain.json."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

from consilium.inference.predictor import ImageExplanation, Predictor
from datamodules.images import (
    ImageError,
    encode_png,
    read_image,
    split_frame_number,
)
from datamodules.manifest import Manifest
from evaluation.files import unique_file_names, write_bytes, write_json
from evaluation.plots import maps
from evaluation.plots.maps import Panel
from evaluation.reports.html import render_png
from evaluation.voters.registry import voter_spec
from lightning_modules.cam import CLASS_INDEPENDENT

VERSION = 1  # of explain.json


def explain_images(
    predictor: Predictor,
    model: Path,
    images: Sequence[tuple[str, str, str]],
    folder: Path,
    label: int | None = None,
) -> tuple[int, list[str]]:
    """Writes maps, panels and explain.json of images; returns their number and reading errors.

    `images` are name, path and group of each, `model` is the path in explain.json. Names of files
    differ in the part before the first dot, so that no file replaces another.
    """
    entries, errors = [], []
    names = unique_file_names([name for name, _, _ in images])
    _refuse_to_overwrite(folder, names, [path for _, path, _ in images])
    pairs = list(zip(images, names, strict=True))
    for (_, path, group), name in track(pairs, "explaining", disable=len(images) < 2):
        try:
            pixels = read_image(path)
        except ImageError as error:
            errors.append(str(error))
            continue
        explanation = predictor.explain(pixels, label, group)
        overlay = maps.overlay(pixels, explanation.saliency_map)
        write_bytes(folder / f"{name}.png", encode_png(overlay))
        write_bytes(folder / f"{name}.npy", _npy_bytes(explanation.saliency_map))
        if len(predictor.members) > 1:
            write_bytes(folder / f"{name}.members.npy", _npy_bytes(explanation.member_maps))
        panel = plot_panel(name, pixels, explanation, predictor)
        write_bytes(folder / f"{name}.panel.png", render_png(panel))
        entries.append({"path": path, "name": name, **_image_entry(pixels, explanation, predictor)})
    if entries:
        content = {"version": VERSION, "model": str(model), **_model_entries(predictor)}
        write_json(folder / "explain.json", content | {"images": entries})
    return len(entries), errors


def _refuse_to_overwrite(folder: Path, names: list[str], paths: list[str]) -> None:
    """Raises ValueError if a file to be written is one of the images."""
    images = {split_frame_number(path)[0].resolve() for path in paths}
    written = (folder / f"{name}{end}" for name in names for end in (".png", ".panel.png"))
    if overwritten := next((file for file in written if file.resolve() in images), None):
        raise ValueError(f"--output {folder}: {overwritten} is one of the images; name another")


def plot_panel(
    name: str, image: np.ndarray, explanation: ImageExplanation, predictor: Predictor
) -> Figure:
    """The image, then its saliency maps by each member and by the ensemble, side by side."""
    names, index = predictor.class_names, explanation.class_index
    is_ensemble = len(predictor.members) > 1
    cells = [Panel("Original", name)]
    for row, member in enumerate(predictor.members):
        probabilities = explanation.member_probabilities[row]
        is_other = bool(probabilities.argmax() != index)
        is_empty = not explanation.member_maps[row].any()
        lines = [_prediction_text(probabilities, names)]
        lines += [f"map of {names[index]} {probabilities[index]:.3f}"] * is_other
        lines += [f"weight {explanation.member_weights[row]:.2f}"] * is_ensemble
        lines += [f"no evidence for {names[index]}"] * is_empty
        cells.append(Panel(member.name, "\n".join(lines), explanation.member_maps[row]))
    if is_ensemble:
        counts = np.bincount(explanation.member_probabilities.argmax(axis=1), minlength=len(names))
        count_text = ", ".join(f"{names[k]} {counts[k]}" for k in np.flatnonzero(counts))
        lines = [_prediction_text(explanation.probabilities, names), f"map of {names[index]}"]
        caption, voter = "\n".join(lines), voter_spec(predictor.ensemble.voter.name).label
        title = f"Ensemble ({voter})"
        cells.append(Panel(title, f"{caption}\nmembers: {count_text}", explanation.saliency_map))
    return maps.panel_grid([image] * len(cells), cells)


def plot_explanations(predictor: Predictor, manifest: Manifest, ids: Sequence[str]) -> list[Figure]:
    """A panel of each of these samples, with the maps of the predicted class."""
    rows = manifest.table.set_index("id").loc[list(ids)]
    columns = zip(ids, map(read_image, rows["path"]), predictor.groups_of(rows), strict=True)
    return [
        plot_panel(name, image, predictor.explain(image, group=group), predictor)
        for name, image, group in columns
    ]


def _prediction_text(probabilities: np.ndarray, names: list[str]) -> str:
    """The predicted class and its probability, such as `fracture 0.934`."""
    return f"{names[int(probabilities.argmax())]} {probabilities.max():.3f}"


def _model_entries(predictor: Predictor) -> dict[str, Any]:
    """The entries of explain.json that all images share: method, classes, voter and members."""
    explainers = [member.require_explainer() for member in predictor.members]
    members = {
        member.name: {"weights": member.weights_hash, "layers": [x.name for x in explainer.layers]}
        for member, explainer in zip(predictor.members, explainers, strict=True)
    }
    return {
        "method": explainers[0].method,
        "depends_on_class": explainers[0].method not in CLASS_INDEPENDENT,
        "class_names": predictor.class_names,
        "voter": predictor.ensemble.voter.name,
        "members": members,
    }


def _image_entry(
    image: np.ndarray, explanation: ImageExplanation, predictor: Predictor
) -> dict[str, Any]:
    """The entry of one image in explain.json: predictions and peaks of the maps."""
    names = predictor.class_names
    members = {
        member.name: {
            "class": names[int(explanation.member_probabilities[row].argmax())],
            "probabilities": explanation.member_probabilities[row].tolist(),
            "weight": float(explanation.member_weights[row]),
            "peak": _peak(explanation.member_maps[row]),
        }
        for row, member in enumerate(predictor.members)
    }
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "class": names[int(explanation.probabilities.argmax())],
        "probability": float(explanation.probabilities.max()),
        "probabilities": explanation.probabilities.tolist(),
        "explained_class": names[explanation.class_index],
        "peak": _peak(explanation.saliency_map),
        "members": members,
    }


def _peak(saliency_map: np.ndarray) -> list[int] | None:
    """Pixel [x, y] of the map's maximum; None for an empty map."""
    if not saliency_map.any():
        return None
    y, x = np.unravel_index(int(saliency_map.argmax()), saliency_map.shape)
    return [int(x), int(y)]


def _npy_bytes(values: np.ndarray) -> bytes:
    """The content of a .npy file of the values."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()
