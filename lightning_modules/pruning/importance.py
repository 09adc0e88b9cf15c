"""How much the loss hangs on each channel, by the pictures that the network learned from."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

import torch
from rich.progress import track
from torch import Tensor, nn

from datamodules.datamodule import ImageDataModule
from lightning_modules.pruning.search import Cost, Cut, Group

PART = 8  # pictures a slope; over more of them slopes of either sign cancel
WRITING = 256  # multiply-accumulates in the time of a number written; two cores: 80 to 230


def losses(module: nn.Module, data: ImageDataModule, pictures: int) -> Iterator[Tensor]:
    """The training loss of about so many training pictures, a few at a time."""
    data.prepare_data()
    data.setup("fit")
    weights = None if data.class_weights is None else torch.tensor(data.class_weights)
    trained, batches = cast(Any, module), -(-pictures // data.batch_size)
    loader = islice(data.train_dataloader(), batches)
    for batch in track(loader, "weighing channels", batches, transient=True):
        seen = data.on_after_batch_transfer(batch, 0)
        parts = (seen[name].split(PART) for name in ("image", "label"))
        for image, label in zip(*parts, strict=True):
            yield trained.cost(trained.net(image), label, weights)


def weighed(
    net: nn.Module,
    together: Sequence[list[Cut]],
    price: dict[str, Cost],
    parts: Iterable[Tensor],
    power: float = 0.5,
    writing: int = 0,
) -> list[Group]:
    """The channels of each group, with what the loss would change by without them, by its slope.

    A gate before what reads a channel is 1, and 0 once the channel is gone: the change is about
    the slope of the loss along the gate. Its size over all parts is divided by a `power` of what
    the channel costs (0: all cost the same; much more: only the cost counts), in
    multiply-accumulates and `writing` for each number written. Magnitudes would not do: a batch
    norm takes any scale away.
    """
    if not together:
        return []
    reading = sorted({cut.layer for cuts in together for cut in cuts if cut.side == "in"})
    weights = [net.get_submodule(name).get_parameter("weight") for name in reading]
    scores = [torch.zeros(len(cuts[0].positions), dtype=torch.float64) for cuts in together]
    for loss in parts:
        slopes = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        both = zip(reading, weights, slopes, strict=True)
        each = {name: _inputs(weight.detach() * slope) for name, weight, slope in both}
        for score, cuts in zip(scores, together, strict=True):
            score += _gates(each, cuts).square()
    return [
        Group(cuts, score.sqrt() / cost(cuts, price, writing) ** power)
        for score, cuts in zip(scores, together, strict=True)
    ]


def cost(cuts: Sequence[Cut], price: dict[str, Cost], writing: int) -> float:
    """What goes with one channel of a group: multiply-accumulates, and numbers written as such."""
    total = 0.0
    for cut in cuts:
        layer, many = price[cut.layer], len(cut.positions[0])
        total += many * layer.macs / layer.width(cut.side)
        total += many * layer.positions * writing if cut.side == "out" else 0
    return total


def _inputs(weight: Tensor) -> Tensor:
    """Sums (inputs,) over what each input of a layer has in a tensor of its weight's shape."""
    return weight.transpose(0, 1).flatten(1).sum(1).double().cpu()


def _gates(each: dict[str, Tensor], cuts: Sequence[Cut]) -> Tensor:
    """The slope (n,) of the loss along the gate of each channel of a group."""
    readers = [each[cut.layer][torch.tensor(cut.positions)] for cut in cuts if cut.side == "in"]
    return torch.stack([reader.sum(1) for reader in readers]).sum(0)
