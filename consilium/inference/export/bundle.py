"""A folder of exported members: written with what describes it, and read as an ensemble."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from callbacks.model_card import describe
from consilium.inference.export.formats import FORMATS, Format, Network, outputs_of, write
from consilium.inference.predictor import Member, Model, Runtime
from datamodules.preprocess import Preprocess
from evaluation.files import file_names, read_json, write_bytes, write_json
from evaluation.voters import store
from lightning_modules.cam import Explainer
from lightning_modules.checkpoints import REGISTRY, versions
from lightning_modules.one_vs_one import log_coupled

FILE, VERSION = "export.json", 1


def save(
    folder: Path, kind: str, model: Model, done: Callable[[str], None] = lambda name: None
) -> list[Path]:
    """One file a member, whose paths are given back, voter.json and export.json.

    `done` is told each member's name before its turn.
    """
    members: dict[str, dict[str, Any]] = {}
    names = file_names([member.name for member in model.members])
    for member, name in zip(model.members, names, strict=True):
        done(member.name)
        about = metadata(member)
        data = write(kind, member.module, about, member.block)
        file = f"{name}{FORMATS[kind].suffix}"
        write_bytes(folder / file, data)
        members[member.name] = {"file": file, "sha256": _sha(data), "about": about}
    store.save(folder, model.ensemble)
    said = {"version": VERSION, "format": kind, "class_names": model.class_names}
    write_json(folder / FILE, {**said, "members": members})
    return [folder / one["file"] for one in members.values()]


def metadata(member: Member) -> dict[str, Any]:
    """What the file of a member says of itself: how pictures are prepared, what comes out."""
    module = member.module
    about = describe(cast(Any, module), member.preprocess.to_dict())
    return {
        **about,
        "init_args": {**module.init_args, "pretrained": False},
        "weights": member.weights,
        "output": outputs_of(module),
        "versions": versions(),
    }


def load(folder: Path) -> Model:
    """The ensemble of an export; members whose format holds no gradients have no maps."""
    said = read_json(folder / FILE)
    if said.get("version") != VERSION or said.get("format") not in FORMATS:
        found = (said.get("version"), said.get("format"))
        raise ValueError(f"{folder / FILE}: version and format {found}, this reads {VERSION} and "
                         f"{', '.join(FORMATS)}")  # fmt: skip
    names, kind = list(said["class_names"]), FORMATS[said["format"]]
    members = [_member(folder, name, one, kind, names) for name, one in said["members"].items()]
    ensemble = store.load(folder, [one.weights for one in members], names)
    return Model(members, ensemble, torch.device("cpu"))


def _member(
    folder: Path, name: str, one: dict[str, Any], kind: Format, class_names: list[str]
) -> Member:
    about, file = one["about"], folder / Path(one["file"]).name
    if not file.is_file() or _sha(file.read_bytes()) != one["sha256"]:
        raise ValueError(f"{file}: it is missing, or not the file that {FILE} speaks of")
    if about["module"] not in REGISTRY:
        raise ValueError(f"{folder / FILE}: module {about['module']!r} is unknown")
    outputs = kind.read(file, about)
    view = Preprocess.from_dict(about["preprocess"])
    order = [about["class_names"].index(k) for k in class_names]
    if isinstance(outputs, Network):
        return Member(name, about["weights"], view, order, Explainer(outputs.held[0], view.size))
    return Member(name, about["weights"], view, order, runtime=_runtime(outputs, about))


def _runtime(outputs: Callable[[torch.Tensor], torch.Tensor], about: dict[str, Any]) -> Runtime:
    pairs, classes = about["output"] == "pair_logits", len(about["class_names"])

    def logits(images: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            found = outputs(images)
            return np.asarray((log_coupled(found, classes) if pairs else found).float().numpy())

    return logits


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
