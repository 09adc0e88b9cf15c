"""A loader that asks its sampler for an order only when the first batch is wanted."""

from collections.abc import Iterator

from torch.utils.data import DataLoader

from datamodules.pictures import Sample


class LateLoader(DataLoader[Sample]):
    """Torch's loader, whose workers start at the first batch instead of at ``iter``.

    Lightning calls ``iter`` before it has read the epoch from a checkpoint; workers that began at
    once would go through the order of epoch 0 again.
    """

    # torch's own type of it is a private class
    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]
        yield from super().__iter__()
