"""Class balance, and which samples a process gets in which order (a function of seed and epoch)."""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

PLACEHOLDER = -1
ClassWeights = Literal["none", "inverse", "sqrt", "effective"]


@dataclass(frozen=True)
class Balance:
    """Class weights of the loss, sampler, and maximum per class, from the training split only.

    Args:
        class_weights: ``inverse`` of the class frequency, its square root (``sqrt``), inverse of
            the ``effective`` number of samples, or a list with one weight per class. The mean of
            computed weights over the training samples is 1.
        sampler: ``shuffled`` gives each sample once per epoch, ``weighted`` draws with replacement
            so that classes are equally likely, ``balanced`` gives each class equally often.
        max_per_class: Maximum number of training samples per class; null uses all.
        beta: For ``effective``: at 0 all weights are equal, near 1 they equal ``inverse``.
    """

    class_weights: ClassWeights | list[float] = "none"
    sampler: Literal["shuffled", "weighted", "balanced"] = "shuffled"
    max_per_class: int | None = None
    beta: float = 0.999

    def __post_init__(self) -> None:
        if self.max_per_class is not None and self.max_per_class < 1:
            raise ValueError(
                f"max_per_class is {self.max_per_class}; it must be at least 1, or null for all"
            )
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is {self.beta}; it must be from 0 to below 1")
        if self.class_weights != "none" and self.sampler != "shuffled":
            warnings.warn(
                f"class_weights and the sampler {self.sampler!r} both favor rare classes",
                stacklevel=2,
            )

    def compute_class_weights(
        self, labels: np.ndarray, class_names: list[str]
    ) -> list[float] | None:
        """One weight per class from the training labels; None if classes are not weighted."""
        if self.class_weights == "none":
            return None
        if isinstance(self.class_weights, list):
            return _check_class_weights(self.class_weights, class_names)
        counts = np.bincount(labels, minlength=len(class_names)).astype(float)
        if not counts.all():
            absent = [name for name, n in zip(class_names, counts, strict=True) if not n]
            raise ValueError(f"class_weights is {self.class_weights!r}; train has none of {absent}")
        raw = {
            "inverse": 1 / counts,
            "sqrt": 1 / np.sqrt(counts),
            "effective": (1 - self.beta) / (1 - self.beta**counts),
        }[self.class_weights]
        return [float(w) for w in raw * counts.sum() / (raw * counts).sum()]

    def limit_rows(self, rows: np.ndarray, labels: np.ndarray, ids: list[str]) -> np.ndarray:
        """At most ``max_per_class`` rows per class, chosen by the hash of the id."""
        if self.max_per_class is None:
            return rows
        order = sorted(range(len(rows)), key=lambda k: hashlib.sha256(ids[k].encode()).digest())
        chosen: list[int] = []
        for label in np.unique(labels):
            chosen += [k for k in order if labels[k] == label][: self.max_per_class]
        return rows[sorted(chosen)]

    def make_sampler(
        self, labels: np.ndarray, seed: int, rank: int, world_size: int
    ) -> "ShuffledSampler":
        """The sampler of the training split in this process."""
        if self.sampler == "shuffled":
            return ShuffledSampler(len(labels), seed, rank, world_size)
        sampler = WeightedSampler if self.sampler == "weighted" else BalancedSampler
        return sampler(labels, seed, rank, world_size)


def _check_class_weights(weights: list[float], class_names: list[str]) -> list[float]:
    if len(weights) != len(class_names) or min(weights) < 0:
        raise ValueError(
            f"class_weights is {weights}; give one value of at least 0 for each of {class_names}"
        )
    return [float(weight) for weight in weights]


class _Range(Dataset[int]):
    """A dataset of a given length, as ``DistributedSampler`` only needs the length."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class ShuffledSampler(DistributedSampler[tuple[int, int]]):
    """Every sample once per epoch in an order that depends on (seed, epoch) only.

    Yields ``(epoch, position)``, so that a worker can augment as a function of both. Processes
    take turns along one common order; its beginning is repeated until all have the same length.

    Args:
        size: Number of samples.
        seed: Seed of the order, together with the epoch.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(_Range(size), num_replicas=world_size, rank=rank, shuffle=True, seed=seed)
        self.size = size

    def order(self) -> np.ndarray:
        """The positions of this epoch, the same in every process."""
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.resize(self.order(), self.total_size)
        for position in order[self.rank :: self.num_replicas]:
            yield self.epoch, int(position)


class WeightedSampler(ShuffledSampler):
    """As many samples as there are, drawn with replacement, every class equally likely.

    Args:
        labels: The class of each sample.
        seed: Seed of the draws, together with the epoch.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, labels: np.ndarray, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(len(labels), seed, rank, world_size)
        self.labels = labels

    def order(self) -> np.ndarray:
        """The positions of this epoch, the same in every process."""
        rng = np.random.default_rng((self.seed, self.epoch))
        weights = 1 / np.bincount(self.labels)[self.labels]
        return rng.choice(len(weights), len(weights), p=weights / weights.sum())


class BalancedSampler(WeightedSampler):
    """As many samples as there are, every class equally often (up to one), in shuffled order.

    All samples of a class occur before one of them is repeated.
    """

    def order(self) -> np.ndarray:
        """The positions of this epoch, the same in every process."""
        rng = np.random.default_rng((self.seed, self.epoch))
        classes = rng.permutation(np.unique(self.labels))
        count, remainder = divmod(len(self.labels), len(classes))
        parts = [
            _repeat_shuffled(rng, np.flatnonzero(self.labels == label), count + (k < remainder))
            for k, label in enumerate(classes)
        ]
        return rng.permutation(np.concatenate(parts))


def _repeat_shuffled(rng: np.random.Generator, positions: np.ndarray, count: int) -> np.ndarray:
    rounds = [rng.permutation(positions) for _ in range(-(-count // len(positions)))]
    return np.concatenate([*rounds, positions[:0]])[:count]


class ExactSampler(DistributedSampler[tuple[int, int]]):
    """Every sample exactly once over all processes: rank r of w gets r, r + w, ...

    Yields ``(0, position)``; torch's own sampler would repeat samples to even out the processes.
    A process without any sample gets the position ``PLACEHOLDER``, whose ``index`` is -1.

    Args:
        size: Number of samples.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(_Range(size), num_replicas=world_size, rank=rank, shuffle=False)
        # Lightning skips the end of a loop on a process without a batch, and the other processes
        # would wait for it forever: such a process gets a placeholder that is dropped afterwards
        self.positions = list(range(rank, size, world_size)) or [PLACEHOLDER]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, position) for position in self.positions)
