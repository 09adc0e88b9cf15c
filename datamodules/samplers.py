"""Class balance, and which samples a process gets in which order (a function of seed and epoch)."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.utils.data import DistributedSampler, SequentialSampler, TensorDataset

from datamodules.manifest import Manifest, labels_of

PLACEHOLDER = -1
ClassWeights = Literal["none", "inverse", "sqrt", "effective"]


@dataclass(frozen=True)
class Balance:
    """Class weights of the loss, sampler, and maximum per class, from the training split only.

    Args:
        class_weights: ``inverse`` of the class frequency, its square root (``sqrt``), inverse of
            the ``effective`` number of samples, or a list with one weight per class. They are
            scaled so that their mean over the training samples is 1. With several findings per
            image, the presence and absence of each finding are weighted like two classes.
        sampler: ``shuffled`` gives each sample once per epoch, ``weighted`` draws with replacement
            so that classes are equally likely, ``balanced`` gives each class equally often.
        max_per_class: Maximum number of samples per class; null uses all.
        limited_splits: Whether the maximum is that of ``train``, or of ``all`` splits together.
        beta: For ``effective``: at 0 all weights are equal, near 1 they equal ``inverse``.
    """

    class_weights: ClassWeights | list[float] = "none"
    sampler: Literal["shuffled", "weighted", "balanced"] = "shuffled"
    max_per_class: int | None = None
    limited_splits: Literal["train", "all"] = "train"
    beta: float = 0.999

    def __post_init__(self) -> None:
        if self.max_per_class is not None and self.max_per_class < 1:
            message = "it must be at least 1, or null for all"
            raise ValueError(f"max_per_class is {self.max_per_class}; {message}")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is {self.beta}; it must be from 0 to below 1")
        if self.class_weights != "none" and self.sampler != "shuffled":
            message = f"class_weights and the sampler {self.sampler!r} both favor rare classes"
            warnings.warn(message, stacklevel=2)

    def compute_class_weights(
        self, labels: np.ndarray, names: list[str]
    ) -> list[float] | list[list[float]] | None:
        """One weight per class from the training labels; None if classes are not weighted.

        For labels of several findings (n, K), one weight of absence and one of presence for each
        finding, from its known labels.
        """
        if self.class_weights == "none":
            return None
        if labels.ndim == 2:
            return self._finding_weights(labels, names)
        counts = np.bincount(labels, minlength=len(names)).astype(float)
        if isinstance(self.class_weights, list):
            are_numbers = all(isinstance(w, int | float) for w in self.class_weights)
            raw = np.asarray(self.class_weights if are_numbers else [], float)
            if len(raw) != len(names) or not ((raw >= 0) & (raw < np.inf)).all():
                message = f"give one finite value of at least 0 for each of {names}"
                raise ValueError(f"class_weights is {self.class_weights}; {message}")
        elif not counts.all():
            absent = [name for name, n in zip(names, counts, strict=True) if not n]
            raise ValueError(f"class_weights is {self.class_weights!r}; train has none of {absent}")
        elif self.class_weights == "effective":
            raw = (1 - self.beta) / (1 - self.beta**counts)
        else:
            raw = 1 / counts if self.class_weights == "inverse" else 1 / np.sqrt(counts)
        total = (raw * counts).sum()
        if not total:
            raise ValueError(f"class_weights is {self.class_weights}; all samples have weight 0")
        return [float(weight) for weight in raw * counts.sum() / total]

    def _finding_weights(self, labels: np.ndarray, names: list[str]) -> list[list[float]]:
        """Weights of absence and presence of each finding from labels (n, K), -1 if unknown."""
        if isinstance(self.class_weights, list):
            message = "with several findings per image it is none, inverse, sqrt or effective"
            raise ValueError(f"class_weights is {self.class_weights}; {message}")
        weights = []
        for column, name in zip(labels.T, names, strict=True):
            known = column[column >= 0].astype(int)
            weights.append(self.compute_class_weights(known, [f"no {name}", name]))
        return cast(list[list[float]], weights)

    def limit_manifest(self, manifest: Manifest) -> Manifest:
        """The manifest; if ``limited_splits`` is all, with at most ``max_per_class`` per class."""
        if self.limited_splits == "train":
            return manifest
        table = manifest.table[manifest.table["split"] != "predict"]
        rows = np.arange(len(table))
        remaining = self.limit_rows(rows, labels_of(table), table["id"].tolist())
        excess = set(table["id"].iloc[np.setdiff1d(rows, remaining)])
        return manifest.drop(excess, f"left out, as max_per_class is {self.max_per_class}")

    def limit_rows(self, rows: np.ndarray, labels: np.ndarray, ids: list[str]) -> np.ndarray:
        """At most ``max_per_class`` of the rows per class, chosen by the hash of the id."""
        if self.max_per_class is None:
            return rows
        if labels.ndim == 2:
            raise ValueError(
                "balance.max_per_class needs one label per image, not several findings"
            )
        order = sorted(range(len(rows)), key=lambda k: hashlib.sha256(ids[k].encode()).digest())
        by_class = ([k for k in order if labels[k] == label] for label in np.unique(labels))
        return rows[sorted(k for part in by_class for k in part[: self.max_per_class])]

    def make_sampler(
        self, labels: np.ndarray, seed: int, rank: int, world_size: int
    ) -> "ShuffledSampler":
        """The sampler of the training split for the process ``rank``."""
        if labels.ndim == 2 and self.sampler != "shuffled":
            reason = "needs one label per image; with several findings use class_weights"
            raise ValueError(f"balance.sampler {self.sampler!r} {reason}")
        samplers = {"shuffled": ShuffledSampler, "weighted": WeightedSampler}
        return samplers.get(self.sampler, BalancedSampler)(labels, seed, rank, world_size)


class ShuffledSampler(DistributedSampler[tuple[int, int]]):
    """Every sample once per epoch in an order that depends on (seed, epoch) only.

    Yields ``(epoch, position)``, so that a worker can augment as a function of both. Processes
    take turns along one common order; its beginning is repeated until all have the same length.
    """

    def __init__(
        self, labels: np.ndarray, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        positions = TensorDataset(torch.empty(len(labels), 0))  # only its length is used
        super().__init__(positions, num_replicas=world_size, rank=rank, seed=seed)
        self.labels = labels

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """The positions (n,) of the samples of an epoch; ``rng`` is the same in every process."""
        return rng.permutation(len(self.labels))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = np.resize(self._order(rng), self.total_size)
        for position in order[self.rank :: self.num_replicas]:
            yield self.epoch, int(position)


class FixedSampler(SequentialSampler):
    """Repeats one list of ``(epoch, position)`` in every epoch, such as another sampler's first.

    ``overfit_batches`` needs equal epochs; Lightning leaves a ``SequentialSampler`` in its place,
    and replaces any other.
    """

    def __init__(self, keys: Iterable[tuple[int, int]]) -> None:
        self.keys = list(keys)
        super().__init__(self.keys)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys)


class WeightedSampler(ShuffledSampler):
    """As many samples as there are, drawn with replacement, every class equally likely."""

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        weights = 1 / np.bincount(self.labels)[self.labels]
        return rng.choice(len(weights), len(weights), p=weights / weights.sum())


class BalancedSampler(WeightedSampler):
    """Every class equally often (up to one), in shuffled order, with as few repeats as possible."""

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        classes = rng.permutation(np.unique(self.labels))
        count, remainder = divmod(len(self.labels), len(classes))
        parts = []
        for k, label in enumerate(classes):
            positions, size = np.flatnonzero(self.labels == label), count + (k < remainder)
            rounds = [rng.permutation(positions) for _ in range(-(-size // len(positions)))]
            parts.append(np.concatenate([*rounds, positions[:0]])[:size])
        return rng.permutation(np.concatenate(parts))


class ExactSampler(DistributedSampler[tuple[int, int]]):
    """Every sample exactly once over all processes: rank r of w gets r, r + w, ...

    Yields ``(0, position)``; torch's own sampler would repeat samples to even out the processes.
    """

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        positions = TensorDataset(torch.empty(size, 0))  # only its length is used
        super().__init__(positions, num_replicas=world_size, rank=rank, shuffle=False)
        # Lightning skips the end of a loop on a process without a batch, and the other processes
        # would wait for it forever: it gets a placeholder with ``index`` -1, dropped afterwards
        self.positions = list(range(rank, size, world_size)) or [PLACEHOLDER]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, position) for position in self.positions)
