"""A checkpoint or an ensemble applied to one picture: votes, weights and saliency maps."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from datamodules.preprocess import Preprocess
from evaluation.voters.shares import shares
from evaluation.voters.store import FittedEnsemble
from lightning_modules import ImageClassifier, checkpoints
from lightning_modules.cam import Explainer
from lightning_modules.ensemble import EnsembleModule, load_ensemble


@dataclass(frozen=True)
class Looked:
    """What was seen in one picture of H x W pixels by M members, with K classes.

    Args:
        heat: (H, W) float32 from 0 to 1, the members' maps under their weights.
        maps: (M, H, W), each member's.
        votes: (M, K) probabilities.
        weights: (M,) each member's share in the score of the class.
        probabilities: (K,) the answer.
        asked: the class that the maps are of.
    """

    heat: np.ndarray
    maps: np.ndarray
    votes: np.ndarray
    weights: np.ndarray
    probabilities: np.ndarray
    asked: int


Runtime = Callable[[torch.Tensor], np.ndarray]


@dataclass(frozen=True)
class Member:
    """One network: its own view of a picture, and its classes in the ensemble's order.

    Args:
        name: what it is called in the ensemble.
        weights: hash of its weights.
        preprocess: what it sees of a picture.
        order: where the ensemble's classes stand in its own order.
        explain: what makes its maps; None where its file has none to make them with.
        runtime: what gives its logits (n, K) instead of the module that `explain` holds.
        block: what its checkpoint says, where it comes from one.
    """

    name: str
    weights: str
    preprocess: Preprocess
    order: list[int]
    explain: Explainer | None = None
    runtime: Runtime | None = None
    block: checkpoints.Block | None = None

    @property
    def maps(self) -> Explainer:
        """What makes its maps."""
        if self.explain is None:
            raise ValueError(f"{self.name}: this export has no maps; explain its checkpoint")
        return self.explain

    @property
    def module(self) -> ImageClassifier:
        """The module behind its votes and maps."""
        return cast(ImageClassifier, self.maps.module)

    def logits(self, images: torch.Tensor) -> np.ndarray:
        """Logits (n, K), in its own order of classes."""
        if self.runtime is not None:
            return self.runtime(images)
        with torch.inference_mode():
            return np.asarray(self.module(images).float().cpu().numpy())

    def votes(self, images: torch.Tensor) -> np.ndarray:
        """Probabilities (n, K) of what its Preprocess made of n pictures."""
        return self.odds(self.logits(images))

    def look(self, image: torch.Tensor, asked: int | None) -> tuple[np.ndarray, np.ndarray]:
        """A map (size, size) of the class, or of its own answer, and its vote (K,)."""
        classes = None if asked is None else [self.order[asked]]
        found = self.maps(image[None], classes)
        return found.maps[0], self.odds(found.logits)[0]

    def odds(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities (n, K) in the ensemble's order of classes, from logits in its own."""
        logits = logits[:, self.order].astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Model:
    """Members and how they vote; a single checkpoint is an ensemble of one."""

    members: list[Member]
    ensemble: FittedEnsemble
    device: torch.device

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of the probabilities."""
        return self.ensemble.class_names

    @property
    def kind(self) -> str:
        """The voter's kind."""
        return self.ensemble.kind

    @property
    def attribute(self) -> str:
        """What must be known of a picture beside its pixels, or ''."""
        return self.ensemble.attribute

    @property
    def has_maps(self) -> bool:
        """Whether every member can say where it looked."""
        return all(member.explain is not None for member in self.members)

    def ask(self, picture: np.ndarray, part: str = "") -> np.ndarray:
        """Probabilities of each member and, last, of the ensemble, (M + 1, K)."""
        return self.answer([self.prepare(picture)], [part])[:, 0]

    def prepare(self, picture: np.ndarray) -> dict[str, torch.Tensor]:
        """What the members see of a picture, by the name of their Preprocess."""
        views = {one.preprocess.name: one.preprocess for one in self.members}
        return {name: view(picture) for name, view in views.items()}

    def answer(self, seen: Sequence[dict[str, torch.Tensor]], parts: Sequence[str]) -> np.ndarray:
        """Probabilities of each member and, last, of the ensemble for n pictures, (M + 1, n, K)."""
        names = {one.preprocess.name for one in self.members}
        views = {n: torch.stack([one[n] for one in seen]).to(self.device) for n in names}
        votes = np.stack([one.votes(views[one.preprocess.name]) for one in self.members])
        return np.concatenate([votes, self.ensemble(votes, self._parts(parts))[None]])

    def require_unseen(self, ids: Iterable[str], split: str) -> None:
        """Refuses samples that a member was trained on, or of a test that it was chosen by."""
        ids = list(ids)
        for member in self.members:
            if member.block is not None:
                where = f"split {split!r}: member {member.name!r}"
                checkpoints.refuse_seen(member.block, ids, split, where)

    def parts_of(self, rows: pd.DataFrame, other: str = "") -> list[str]:
        """What the voter must know of each row, `other` where the rows do not say it."""
        known = self.attribute in rows
        return [str(part) for part in rows[self.attribute]] if known else [other] * len(rows)

    def _parts(self, parts: Sequence[str]) -> np.ndarray | None:
        return np.array(parts, dtype=object) if self.attribute else None

    def look(self, picture: np.ndarray, asked: int | None = None, part: str = "") -> Looked:
        """Votes, and maps of the class asked for, or of the common answer, over the picture."""
        if asked is None and len(self.members) > 1:
            asked = int(self.ask(picture, part)[-1].argmax())
        return self.over(picture, self.prepare(picture), asked, part)

    def over(
        self, picture: np.ndarray, seen: dict[str, torch.Tensor], asked: int | None, part: str = ""
    ) -> Looked:
        """The same of what was prepared before; `picture` may be a smaller copy to lay maps on."""
        parts = self._parts([part])
        looked = [m.look(seen[m.preprocess.name].to(self.device), asked) for m in self.members]
        votes = np.stack([vote for _, vote in looked])
        answer = self.ensemble(votes[:, None], parts)[0]
        asked = int(answer.argmax()) if asked is None else asked
        weights = shares(self.ensemble.voter, votes[:, None], np.array([asked]), parts)[0]
        views = zip(self.members, looked, strict=True)
        maps = np.stack([m.preprocess.back(found, picture) for m, (found, _) in views])
        common = np.einsum("m,mhw->hw", weights, maps).astype(np.float32)
        return Looked(common, maps, votes, weights, answer, asked)


def folder_of(path: Path) -> Path:
    """The run folder that a model lies in, or is."""
    return path if path.is_dir() else path.parent


def load(path: Path, method: str = "GradCAM", device: torch.device | None = None) -> Model:
    """The model of a checkpoint, a run folder or an ensemble.json."""
    device = device or torch.device("cpu")
    folder = folder_of(path)
    if path.name == "ensemble.json" or (path.is_dir() and (folder / "ensemble.json").is_file()):
        ensemble = load_ensemble(path)
    else:
        ensemble = alone(path)
    ensemble.to(device)
    modules: Any = ensemble.members
    blocks = zip(ensemble.member_names, ensemble.blocks, ensemble.orders, modules, strict=True)
    members = [
        Member(name, block.weights, view, order, Explainer(module, view.size, method), block=block)
        for name, block, order, module in blocks
        for view in [Preprocess.from_dict(block.preprocess)]
    ]
    return Model(members, ensemble.ensemble, device)


def alone(path: Path) -> EnsembleModule:
    """An ensemble of one checkpoint, or of the best of a run folder."""
    file = path / "best.ckpt" if path.is_dir() else path
    return EnsembleModule(checkpoints.read(file)[0].class_names, [str(file)])
