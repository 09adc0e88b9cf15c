"""What a model saw in one picture, drawn: overlay, raw maps, and a panel of every member."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Drawing

from consilium.inference.predictor import Looked, Model
from consilium.inference.thumbnails import png
from datamodules.images import read
from datamodules.manifest import Manifest
from evaluation.files import write_bytes
from evaluation.plots import maps
from evaluation.plots.maps import Shown
from evaluation.reports.html import to_png


def write(folder: Path, name: str, picture: np.ndarray, looked: Looked, model: Model) -> None:
    """Overlay, raw maps and panel of one picture."""
    overlaid = maps.overlay(picture, looked.heat)
    write_bytes(folder / f"{name}.png", png(overlaid))
    write_bytes(folder / f"{name}.npy", _npy(looked.heat))
    if len(model.members) > 1:
        write_bytes(folder / f"{name}.members.npy", _npy(looked.maps))
    write_bytes(folder / f"{name}-panel.png", to_png(panel(name, picture, looked, model)))


def panel(name: str, picture: np.ndarray, looked: Looked, model: Model) -> Drawing:
    """The picture, each member and the ensemble, side by side."""
    return maps.panel(picture, shown(name, looked, model))


def explained(model: Model, manifest: Manifest, ids: Sequence[str]) -> list[Drawing]:
    """A panel of each of these samples: what every member says, and where it looks."""
    rows = manifest.table.set_index("id").loc[list(ids)]
    drawn = []
    for name, path, part in zip(ids, rows["path"], model.parts_of(rows), strict=True):
        picture = read(path)
        drawn.append(panel(name, picture, model.look(picture, part=part), model))
    return drawn


def shown(name: str, looked: Looked, model: Model) -> list[Shown]:
    """What stands in the panel: the picture, each member, the ensemble."""
    names, about = model.class_names, model.class_names[looked.asked]
    found = [Shown("Original", name)]
    for at, member in enumerate(model.members):
        vote = looked.votes[at]
        lines = [said(vote, names)]
        if vote.argmax() != looked.asked:
            lines.append(f"map: {about} {vote[looked.asked]:.3f}")
        if len(model.members) > 1:
            lines.append(f"weight {looked.weights[at]:.2f}")
        if not looked.maps[at].any():
            lines.append(f"sees nothing for {about}")
        found.append(Shown(member.name, "\n".join(lines), looked.maps[at]))
    if len(model.members) > 1:
        lines = [said(looked.probabilities, names), f"map: {about}", _poll(looked, names)]
        found.append(Shown(f"Ensemble ({model.kind})", "\n".join(lines), looked.heat))
    return found


def said(probabilities: np.ndarray, names: list[str]) -> str:
    """The answer and its confidence."""
    return f"{names[int(probabilities.argmax())]} {probabilities.max():.3f}"


def _poll(looked: Looked, names: list[str]) -> str:
    votes = np.bincount(looked.votes.argmax(axis=1), minlength=len(names))
    return "votes: " + ", ".join(f"{names[k]} {votes[k]}" for k in np.flatnonzero(votes))


def _npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()
