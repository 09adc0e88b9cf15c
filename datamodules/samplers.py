"""Which samples a process sees and in which order, as a function of seed, epoch, rank and world."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

STAND_IN = -1


class _Count(Dataset[int]):
    """What torch's sampler asks of a data set: how many there are."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class ShuffledSampler(DistributedSampler[tuple[int, int]]):
    """Every sample once an epoch in an order that is a function of (seed, epoch).

    Yields ``(epoch, position)``, so that a worker can augment as a function of both. Processes
    take turns along one common order; its beginning is repeated until all have equally many.

    Args:
        size: How many samples there are.
        seed: Decides the order together with the epoch.
        rank: Which process this is.
        world: How many processes there are.
    """

    def __init__(self, size: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        super().__init__(_Count(size), num_replicas=world, rank=rank, shuffle=True, seed=seed)
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
        seed: Decides the draws together with the epoch.
        rank: Which process this is.
        world: How many processes there are.
    """

    def __init__(self, labels: np.ndarray, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        super().__init__(len(labels), seed, rank, world)
        self.labels = labels

    def order(self) -> np.ndarray:
        """The positions of this epoch, the same in every process."""
        dice = np.random.default_rng((self.seed, self.epoch))
        share = 1 / np.bincount(self.labels)[self.labels]
        return dice.choice(len(share), len(share), p=share / share.sum())


class BalancedSampler(WeightedSampler):
    """As many samples as there are, every class equally often (to one), in shuffled order.

    A class goes through all of its samples before it repeats one.
    """

    def order(self) -> np.ndarray:
        """The positions of this epoch, the same in every process."""
        dice = np.random.default_rng((self.seed, self.epoch))
        classes = dice.permutation(np.unique(self.labels))
        share, more = divmod(len(self.labels), len(classes))
        parts = [
            _cycled(dice, np.flatnonzero(self.labels == label), share + (k < more))
            for k, label in enumerate(classes)
        ]
        return dice.permutation(np.concatenate(parts))


def _cycled(dice: np.random.Generator, positions: np.ndarray, count: int) -> np.ndarray:
    rounds = [dice.permutation(positions) for _ in range(-(-count // len(positions)))]
    return np.concatenate([*rounds, positions[:0]])[:count]


class ExactSampler(DistributedSampler[tuple[int, int]]):
    """Every sample exactly once over all processes: rank r of w sees r, r + w, ... and maybe none.

    Yields ``(0, position)``; torch's own sampler would repeat samples to even out the processes.
    A process that would have none gets the position ``STAND_IN``, of which the index is -1.

    Args:
        size: How many samples there are.
        rank: Which process this is.
        world: How many processes there are.
    """

    def __init__(self, size: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(_Count(size), num_replicas=world, rank=rank, shuffle=False)
        # Lightning leaves out the end of a loop where a process has no batch, and the others would
        # wait for it in vain: such a process gets a stand-in that is dropped afterwards
        self.positions = list(range(rank, size, world)) or [STAND_IN]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, position) for position in self.positions)
