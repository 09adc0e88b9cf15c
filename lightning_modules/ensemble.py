"""EnsembleModule: members from checkpoints, each with its own preprocessing, and a voter."""

import glob
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.preprocess import Preprocess
from evaluation.files import (
    DIGEST,
    json_digest,
    naming,
    read_json,
    require_digest,
    require_types,
    write_json,
)
from evaluation.findings import require_one_label
from evaluation.results import voters_folder
from evaluation.voters import simple, store, unfitted_voters, voter_spec
from evaluation.voters.store import FittedEnsemble
from lightning_modules import checkpoints
from lightning_modules.base import BaseModule, Metadata, Tables
from lightning_modules.classifier import ImageClassifier
from lightning_modules.tta import Images

FILE, FORMAT = "ensemble.json", 2


class EnsembleModule(BaseModule):
    """Members from checkpoints, each with its own view of the image, combined by a voter.

    The members' tables are combined like prediction tables from files. A batch has one view for
    each distinct Preprocess in `member_preprocesses`, which `ImageDataModule` reads.

    Args:
        class_names: the classes in the order of the logits; taken from the data.
        members: checkpoint files, run folders (their best.ckpt), or glob patterns of either.
        voter: name of a voter that needs no fitting (soft, geometric, majority), or the folder of
            a fitted voter (voter.json), which must have been fitted for these members.
        one_at_a_time: keep one member at a time on the device and the others in their files.
        compile: compile each member at its first batch.
    """

    def __init__(
        self, class_names: list[str], members: list[str], voter: str = "soft",
        one_at_a_time: bool = False, compile: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.class_names = class_names
        self.paths = paths = find_members(members)
        if not paths:
            raise ValueError("members: is empty; name checkpoints or run folders")
        self.member_names = tuple(member_names(paths))
        loaded = [checkpoints.load(path, mmap=one_at_a_time) for path in paths]
        self.blocks = [block for _, block in loaded]
        self.class_orders = list(map(self._class_order, paths, self.blocks))
        hashes = [block.weights for block in self.blocks]
        self.ensemble = load_voter(voter, hashes, class_names)
        self.member_preprocesses = [block.preprocess for block in self.blocks]
        self.views = [Preprocess.from_dict(values).name for values in self.member_preprocesses]
        modules = [module for module, _ in loaded]
        for path, module in zip(paths, modules, strict=True):
            if isinstance(module, ImageClassifier) and module.head.is_multi_label:
                reason = "has several findings per image; combining, exporting, explaining and"
                raise ValueError(f"{path}: {reason} serving need one label per image")
        for module in modules if compile else []:
            module.compile()
        #: members that are no submodules, so that they do not move to the device together
        self.offloaded = modules if one_at_a_time else []
        self.members = nn.ModuleList([] if one_at_a_time else modules)

    def setup(self, stage: str) -> None:
        """Refuses training, another precision, and samples that a member was trained on."""
        if stage == "fit":
            raise ValueError("an ensemble is not trained: fit its members, then test it")
        fitted, own = self.ensemble.precision, self.trainer.precision
        if fitted not in ("", own):
            reason = f"its voter was fitted on predictions of its members in {fitted}"
            raise ValueError(f"trainer.precision: {own}, but {reason}; use that precision")
        if split := self.evaluation_split(stage):
            paths = self.datamodule.paths(split) if self.datamodule else []
            for name, block in zip(self.member_names, self.blocks, strict=True):
                checkpoints.refuse_trained_samples(block, paths, split, f"member {name!r}")

    def member_logits(self, images: Images) -> Tensor:
        """Logits of every member in the ensemble's class order, (B, M, K)."""
        if not isinstance(images, dict):
            raise ValueError("an ensemble needs a batch of views; its data module gave one image")
        members, logits = self.offloaded or self.members, []
        for member, view, order in zip(members, self.views, self.class_orders, strict=True):
            if self.offloaded:
                member.to(images[view].device)
            logits.append(member(images[view])[:, order].float())
            if self.offloaded:
                member.to("cpu")
        return torch.stack(logits, dim=1)

    def combine_tables(self, members: Tables, meta: Metadata) -> Tables:
        """The members' tables, with hashes of their own weights, and under "" the ensemble's."""
        voter, calibration = self.ensemble.voter, self.ensemble.calibration
        own_tables = require_one_label(members)
        pooled = simple.pool_tables(voter, list(own_tables.values()), calibration)
        tables: Tables = {"": replace(pooled, meta=meta)}
        shared = {key: value for key, value in meta.items() if key not in ("members", "voter")}
        for (name, table), block in zip(own_tables.items(), self.blocks, strict=True):
            own = {"module": block.module, "weights": block.weights}
            tables[name] = replace(table, meta={**shared, **own})
        for name, fitted in zip(members, self.ensemble.member_calibrations, strict=False):
            tables[name].meta["calibration"] = asdict(fitted)
        return tables

    def all_weights(self) -> dict[str, Tensor]:
        """Weights of all members, with the same names whether they are offloaded or not."""
        states = enumerate(member.state_dict() for member in self.offloaded)
        offloaded = {f"members.{i}.{name}": t for i, state in states for name, t in state.items()}
        return {**super().all_weights(), **offloaded}

    def metadata(self) -> Metadata:
        """Metadata of the ensemble's table: its voter and the weights of its members."""
        files = zip(self.member_names, self.paths, self.blocks, strict=True)
        members = {name: {"path": str(path), "weights": block.weights, DIGEST: block.digest}
                   for name, path, block in files}  # fmt: skip
        name, fitted_on = self.ensemble.voter.name, self.ensemble.fitted_on
        voter = {"name": name, "fitted_on": fitted_on, DIGEST: store.digest(self.ensemble)}
        return {**super().metadata(), "voter": voter, "members": members}

    def _class_order(self, path: Path, block: checkpoints.Block) -> list[int]:
        """Positions of the ensemble's classes in those of a member; ValueError if they differ."""
        theirs, ours = block.class_names, self.class_names
        if sorted(theirs) != sorted(ours):
            raise ValueError(f"{path}: its classes are {theirs}, the ensemble's {ours}")
        if not block.preprocess:
            raise ValueError(f"{path}: has no Preprocess; train it with an ImageDataModule")
        return [theirs.index(name) for name in ours]


def load_voter(voter: str, members: list[str], class_names: list[str]) -> FittedEnsemble:
    """The voter of a name, or a fitted one from its folder; `members` are weight hashes."""
    if (Path(voter) / store.FILE).is_file():
        return store.load(voter, members, class_names)
    if voter not in unfitted_voters():
        names, file = ", ".join(unfitted_voters()), store.FILE
        raise ValueError(f"voter: {voter!r} is neither one of {names} nor a folder with {file}")
    return FittedEnsemble(voter_spec(voter).voter_class(), members, list(class_names))


def find_members(patterns: list[str]) -> list[Path]:
    """Checkpoint files of paths, run folders and glob patterns, in the given order, each once."""
    paths: list[Path] = []
    for pattern in patterns:
        matches = [Path(pattern)]
        if glob.has_magic(pattern) and not Path(pattern).exists():
            anchor = Path(pattern).anchor
            matches = sorted(Path(anchor).glob(str(Path(pattern).relative_to(anchor))), key=str)
        if not matches:
            raise ValueError(f"members: nothing matches {pattern!r}")
        paths += (path / "best.ckpt" if path.is_dir() else path for path in matches)
    return list(dict.fromkeys(paths))


def member_names(paths: list[Path]) -> list[str]:
    """A short distinct name for each member: its run folder's, else the whole path."""
    short = [p.parent.name if p.stem in ("best", "last") else p.stem for p in paths]
    is_distinct = len(set(short)) == len(short)
    return short if is_distinct else [p.as_posix().replace("/", "-") for p in paths]


def find_ensemble_file(path: Path) -> Path | None:
    """The ensemble.json that a path is, or that a run folder contains; None if there is none."""
    file = path / FILE if path.is_dir() else path
    return file if file.name == FILE and file.is_file() else None


def read_ensemble_file(file: Path) -> dict[str, Any]:
    """The content of an ensemble.json, with the members' paths joined to its folder."""
    content = read_json(file)
    with naming(file):
        if content.get("format") != FORMAT:
            raise ValueError(f"format {content.get('format')!r}, this version reads {FORMAT}")
        require_types(content, {"class_names": list[str], "members": dict[str, dict[str, str]],
                                "voter": dict[str, str]})  # fmt: skip
        for member in content["members"].values():
            require_types(member, dict.fromkeys(("path", "weights", DIGEST), str))
        require_types(content["voter"], dict.fromkeys(("name", DIGEST), str))
        require_digest(content, _digest(content))
    for member in content["members"].values():
        member["path"] = file.parent / member["path"]
    return content


def write_ensemble_file(
    folder: Path, class_names: list[str], members: dict[str, dict[str, str]], voter: dict[str, str]
) -> None:
    """Writes the ensemble.json of a run folder; `members` and `voter` as in its metadata."""
    members = {
        name: {**member, "path": os.path.relpath(member["path"], folder)}
        for name, member in members.items()
    }
    content = {"format": FORMAT, "class_names": class_names, "members": members, "voter": voter}
    write_json(folder / FILE, {**content, DIGEST: _digest(content)})


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of an ensemble.json without the members' paths: folders may be moved."""
    members = [[name, m["weights"], m[DIGEST]] for name, m in content["members"].items()]
    return json_digest({**content, "members": members})


def load_ensemble(path: str | Path) -> EnsembleModule:
    """The ensemble of an ensemble.json, or of its run folder, as it was evaluated.

    A fitted voter's voter.json is in the folder, in its `voters`, or in those of the experiment.
    """
    file = find_ensemble_file(Path(path))
    if file is None:
        raise ValueError(f"{path}: is neither an {FILE} nor a folder with one")
    content = read_ensemble_file(file)
    members, voter = content["members"], _voter_argument(file, content["voter"])
    paths = [str(member["path"]) for member in members.values()]
    ensemble = EnsembleModule(content["class_names"], paths, voter)
    for name, block in zip(members, ensemble.blocks, strict=True):
        if block.weights != members[name]["weights"]:
            raise ValueError(f"{file}: member {name!r} has other weights than the ensemble's")
        if block.digest != members[name][DIGEST]:
            reason = "other classes, preprocessing or metadata than the ensemble's"
            raise ValueError(f"{file}: member {name!r} has {reason}")
    _require_voter(file, content, ensemble.ensemble)
    ensemble.member_names = tuple(members)
    return ensemble.eval()


def read_voter(file: Path, content: dict[str, Any]) -> FittedEnsemble:
    """The voter of an ensemble.json with this content; ValueError if it has changed since."""
    hashes = [member["weights"] for member in content["members"].values()]
    voter = load_voter(_voter_argument(file, content["voter"]), hashes, content["class_names"])
    _require_voter(file, content, voter)
    return voter


def _require_voter(file: Path, content: dict[str, Any], voter: FittedEnsemble) -> None:
    """ValueError unless `voter` has the digest in the content of an ensemble.json."""
    if store.digest(voter) != content["voter"][DIGEST]:
        raise ValueError(f"{file}: {store.FILE} of its voter {voter.voter.name!r} is another one")


def _voter_argument(file: Path, voter: dict[str, str]) -> str:
    """The folder of an ensemble's fitted voter, or the name of a voter that needs no fitting."""
    folder, name, fitted_on = file.resolve().parent, voter["name"], voter.get("fitted_on", "")
    folders = [folder, folder / "voters", folder / "voters" / name, voters_folder(folder)]
    for candidate in folders:
        if (candidate / store.FILE).is_file():
            stored = read_json(candidate / store.FILE)
            of_voter = stored.get("voter")
            own_name = of_voter.get("name") if isinstance(of_voter, dict) else None
            identity = own_name, stored.get("fitted_on", "")
            if identity == (name, fitted_on):
                return str(candidate)
    if name not in unfitted_voters() or fitted_on:
        searched = ", ".join(str(candidate) for candidate in folders)
        raise ValueError(f"{file}: no voter.json of its voter {name!r} in {searched}")
    return name
