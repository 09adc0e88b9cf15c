"""How far exported members are from their checkpoints, on pictures, and how far is too far."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from consilium.inference.export.formats import FORMATS
from consilium.inference.predictor import Model
from datamodules.phantoms.generate import Recipe, films


@dataclass(frozen=True)
class Parity:
    """A member's file and its largest differences from the checkpoint."""

    file: str
    bytes: int
    logit: float
    probability: float


def compare(
    model: Model, other: Model, pictures: Sequence[np.ndarray], files: Sequence[Path]
) -> dict[str, Parity]:
    """Differences by member, of one picture alone and of all in one batch."""
    found = {}
    for ours, theirs, file in zip(model.members, other.members, files, strict=True):
        seen = [ours.preprocess(picture) for picture in pictures]
        batches = [torch.stack(seen[:1]), torch.stack(seen)]
        pairs = [(ours.logits(batch), theirs.logits(batch)) for batch in batches]
        votes = [(ours.odds(a), theirs.odds(b)) for a, b in pairs]
        size = file.stat().st_size
        found[ours.name] = Parity(file.name, size, _apart(pairs), _apart(votes))
    return found


def refuse(kind: str, found: dict[str, Parity]) -> None:
    """An error where an exported member answers otherwise than its checkpoint."""
    limit = FORMATS[kind].limit
    for name, each in found.items():
        if not each.probability <= limit:
            raise ValueError(
                f"{name}: as {kind} a probability differs by {each.probability:.1e} from torch's, "
                f"more than {limit:.0e}; nothing was written"
            )


def generated(count: int) -> list[np.ndarray]:
    """Generated radiographs and, every fourth, a generated fundus picture in color."""
    gray = films(Recipe("fracture", count, 1, 256, seed=7))
    color = films(Recipe("retina", count, 1, 256, seed=7))
    return [next(color if at % 4 == 3 else gray)[1] for at in range(count)]


def _apart(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in pairs)
