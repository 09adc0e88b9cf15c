"""Which samples a process sees and in which order, as a function of seed, epoch, rank and world."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, DistributedSampler


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

    def order(self) -> np.ndarray:
        """The positions of this epoch, the same in every process."""
        size = len(self.dataset)  # type: ignore[arg-type]
        return np.random.default_rng((self.seed, self.epoch)).permutation(size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.resize(self.order(), self.total_size)
        for position in order[self.rank :: self.num_replicas]:
            yield self.epoch, int(position)


class ExactSampler(DistributedSampler[tuple[int, int]]):
    """Every sample exactly once over all processes: rank r of w sees r, r + w, ... and maybe none.

    Yields ``(0, position)``; torch's own sampler would repeat samples to even out the processes.

    Args:
        size: How many samples there are.
        rank: Which process this is.
        world: How many processes there are.
    """

    def __init__(self, size: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(_Count(size), num_replicas=world, rank=rank, shuffle=False)
        self.positions = range(rank, size, world)

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, position) for position in self.positions)
