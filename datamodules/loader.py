"""A loader that asks its sampler for an order only when the first batch is wanted."""

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from datamodules.dataset import Sample, as_it_is

AnyIterator = Any  # an Iterator[Sample]; the type torch declares for it is a private class


class LateLoader(DataLoader[Sample]):
    """Torch's loader, whose workers start at the first batch instead of at ``iter``.

    Lightning calls ``iter`` before it has read the epoch from a checkpoint; workers that began at
    once would go through the order of epoch 0 again.

    Args:
        finish: What is done to each batch before it is handed on; null leaves it as bytes.
        rest: As torch's loader has it.
    """

    def __init__(self, *rest: Any, finish: Callable[[Sample], Sample] | None, **more: Any) -> None:
        super().__init__(*rest, **more)
        self.finish = finish or as_it_is

    def __iter__(self) -> AnyIterator:
        yield from map(self.finish, super().__iter__())
