"""The ensemble: trained checkpoints look at one image and vote."""

import glob
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from evaluation.files import read_json
from evaluation.predictions import PredictionTable
from evaluation.run_folder import voters_of
from evaluation.voters import simple, store
from evaluation.voters.store import FittedEnsemble
from lightning_modules import checkpoints
from lightning_modules.base import BaseModule
from lightning_modules.batch import Batch

UNFITTED = {voter.kind: voter for voter in (simple.Soft, simple.Geometric, simple.Majority)}


class EnsembleModule(BaseModule):
    """Members from checkpoints, each with its own view of the image, and a voter.

    The members' logits are gathered like those of a single model and pooled on the whole table by
    the same function that pools prediction tables offline.

    Args:
        class_names: the classes in the order of the logits; linked from the data.
        members: checkpoint files, run folders (their best.ckpt), or patterns of either.
        voter: soft, geometric or majority, or the folder of a fitted voter (voter.json), which is
            held against the members.
        one_at_a_time: keep only the member that is looking on the device; the others stay in their
            files, which the system reads again as memory allows.
        channels_last: keep weights in the layout that GPUs with tensor cores prefer.
        compile: compile each member at its first batch.
    """

    def __init__(
        self,
        class_names: list[str],
        members: list[str],
        voter: str = "soft",
        one_at_a_time: bool = False,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.class_names = class_names
        self.paths = paths = find_members(members)
        self.member_names = tuple(member_names(paths))
        loaded = [checkpoints.load(path, mapped=one_at_a_time) for path in paths]
        self.blocks = [block for _, block in loaded]
        self.orders = [self._order(p, b) for p, b in zip(paths, self.blocks, strict=True)]
        self.ensemble = self._convened(voter)
        modules = [_prepared(module, channels_last, compile) for module, _ in loaded]
        self.apart = modules if one_at_a_time else []
        self.members = nn.ModuleList([] if one_at_a_time else modules)
        self.views: list[str] = []

    def setup(self, stage: str) -> None:
        """Asks the data for one view for each distinct Preprocess; refuses training images."""
        if stage == "fit":
            raise ValueError("an ensemble is not trained: fit its members, then test it")
        self.views = self.data.view_names([block.preprocess for block in self.blocks])
        split = self.held_out(stage)
        for name, block in zip(self.member_names, self.blocks, strict=True):
            if split:
                checkpoints.refuse_seen(block, self.ids(split), split, f"member {name!r}")

    def votes(self, batch: Batch) -> Tensor:
        """Logits of every member in the ensemble's class order, (B, M, K)."""
        images = batch["image"]
        if not isinstance(images, dict):
            raise ValueError("an ensemble needs a batch of views; its data module gave one image")
        said = [
            self._asked(member, images[view])[:, order].float()
            for member, view, order in zip(
                self.apart or self.members, self.views, self.orders, strict=True
            )
        ]
        return torch.stack(said, dim=1)

    def combine(
        self, members: dict[str, PredictionTable], meta: dict[str, Any]
    ) -> dict[str, PredictionTable]:
        """The members' tables and, under "", the ensemble's."""
        pooled = simple.pool(self.ensemble, list(members.values()))
        return {"": replace(pooled, meta=meta), **members}

    def member_meta(self, name: str, meta: dict[str, Any]) -> dict[str, Any]:
        """A member's table states the member's own weights."""
        block = self.blocks[self.member_names.index(name)]
        kept = {key: value for key, value in meta.items() if key not in ("members", "voter")}
        return {**kept, "module": block.module, "weights": block.weights}

    def weights(self) -> dict[str, Tensor]:
        """Those of all members, named alike whether they are kept apart or not."""
        apart = enumerate(member.state_dict() for member in self.apart)
        known = {f"members.{at}.{name}": t for at, state in apart for name, t in state.items()}
        return {**super().weights(), **known}

    def describe(self) -> dict[str, Any]:
        """What the ensemble's prediction table says of the weights behind it."""
        members = {
            name: {"path": str(path), "weights": block.weights}
            for name, path, block in zip(self.member_names, self.paths, self.blocks, strict=True)
        }
        voter = {"kind": self.ensemble.kind, "fitted_on": self.ensemble.fitted_on}
        return {**super().describe(), "voter": voter, "members": members}

    def _asked(self, member: nn.Module, image: Tensor) -> Tensor:
        """A member's logits; one that is kept apart comes to the device and leaves again."""
        if not self.apart:
            return cast(Tensor, member(image))
        logits: Tensor = member.to(image.device)(image)
        member.to("cpu")
        return logits

    def _convened(self, voter: str) -> FittedEnsemble:
        hashes = [block.weights for block in self.blocks]
        if (Path(voter) / "voter.json").is_file():
            return store.load(voter, hashes, self.class_names)
        if voter not in UNFITTED:
            raise ValueError(
                f"voter: {voter!r} is neither one of {', '.join(UNFITTED)} nor a folder with "
                "voter.json"
            )
        return FittedEnsemble(UNFITTED[voter](), hashes, list(self.class_names))

    def _order(self, path: Path, block: checkpoints.Block) -> list[int]:
        if sorted(block.class_names) != sorted(self.class_names):
            raise ValueError(
                f"{path}: its classes are {block.class_names}, the ensemble's {self.class_names}"
            )
        return [block.class_names.index(name) for name in self.class_names]


def _prepared(module: nn.Module, channels_last: bool, compile: bool) -> nn.Module:
    if compile:
        module.compile()
    return module.to(memory_format=torch.channels_last) if channels_last else module


def find_members(patterns: list[str]) -> list[Path]:
    """Checkpoint files of paths, run folders and globs, in the order given, each once."""
    found = [Path(hit) for pattern in patterns for hit in _matches(pattern)]
    return list(dict.fromkeys(path / "best.ckpt" if path.is_dir() else path for path in found))


def member_names(paths: list[Path]) -> list[str]:
    """A short distinct name for each member: its run folder's, else the path itself."""
    short = [p.parent.name if p.stem in ("best", "last") else p.stem for p in paths]
    return (
        short if len(set(short)) == len(short) else [p.as_posix().replace("/", "-") for p in paths]
    )


def _matches(pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        return [pattern]
    anchor = Path(pattern).anchor
    hits = sorted(map(str, Path(anchor).glob(str(Path(pattern).relative_to(anchor)))))
    if not hits:
        raise ValueError(f"members: nothing matches {pattern!r}")
    return hits


def load_ensemble(path: str | Path) -> EnsembleModule:
    """The ensemble of an ensemble.json, or of the run folder that holds it.

    Members are found from the file's folder and must have the hashes that it states; a fitted
    voter is read from voter.json in that folder, in its `voters`, or in its study's voters of it.
    """
    file = Path(path) / "ensemble.json" if Path(path).is_dir() else Path(path)
    said = read_json(file)
    if said.get("format") != 1:
        raise ValueError(f"{file}: format {said.get('format')!r}, this reads 1")
    members = {name: file.parent / one["path"] for name, one in said["members"].items()}
    ensemble = EnsembleModule(
        said["class_names"], [str(p) for p in members.values()], _voter(file, said["voter"])
    )
    for block, (name, one) in zip(ensemble.blocks, said["members"].items(), strict=True):
        if block.weights != one["weights"]:
            raise ValueError(f"{file}: member {name!r} has other weights than the ensemble's")
    ensemble.member_names = tuple(members)
    return ensemble.eval()


def _voter(file: Path, said: dict[str, str]) -> str:
    """The folder of the voter that an ensemble states, or its kind where nothing was fitted."""
    folder, kind = file.resolve().parent, said["kind"]
    places = [folder, folder / "voters", folder / "voters" / kind, voters_of(folder)]
    for place in places:
        if (place / "voter.json").is_file() and _is_stated(place, said):
            return str(place)
    if kind not in UNFITTED or said.get("fitted_on"):
        looked = ", ".join(str(place) for place in places)
        raise ValueError(f"{file}: no voter.json of its voter {kind!r} in {looked}")
    return kind


def _is_stated(folder: Path, said: dict[str, str]) -> bool:
    found = read_json(folder / "voter.json")
    kind = found.get("voter", {}).get("kind")
    return (kind, found.get("fitted_on", "")) == (said["kind"], said.get("fitted_on", ""))
