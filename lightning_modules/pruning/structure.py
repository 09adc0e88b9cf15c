"""A network with fewer channels: which of each layer's are left, as plain data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# layer -> {"out": channels that it still gives, "in": channels that it still takes}, numbered as
# in the whole network; a side that is whole is left out
Kept = dict[str, dict[str, list[int]]]


def narrow(net: nn.Module, kept: Kept) -> None:
    """Takes every other channel out of the layers of `net`, in place.

    Convolutions (ungrouped or depthwise), linear layers and batch norms can be narrowed. A layer
    that is not there, of another kind, or without such channels is a ValueError that names it.
    """
    layers = dict(net.named_modules())
    for name, sides in kept.items():
        layer = layers.get(name)
        if layer is None:
            raise ValueError(f"structure: the network has no layer {name!r}")
        if not isinstance(sides, dict) or not sides or not set(sides) <= {"out", "in"}:
            raise ValueError(f"structure: {name} says {str(sides)[:40]}; a side is 'out' or 'in'")
        for side, left in sides.items():
            _require(f"{name}, {side}", left, _width(name, layer, side))
            _narrowed(layer, side, left)


def composed(first: Kept, then: Kept) -> Kept:
    """One structure for `first` and, numbered as it leaves them, `then`."""
    found = {name: dict(sides) for name, sides in first.items()}
    for name, sides in then.items():
        for side, left in sides.items():
            before = found.setdefault(name, {}).get(side)
            found[name][side] = left if before is None else [before[i] for i in left]
    return found


def silenced(net: nn.Module, kept: Kept) -> None:
    """Sets all that the other channels give to 0, in place; the shapes stay.

    What `narrow` leaves must compute the same as this, or the channels did not belong together.
    """
    layers = dict(net.named_modules())
    for name, sides in kept.items():
        if "out" in sides:
            layer = layers[name]
            gone = torch.ones(_width(name, layer, "out"), dtype=torch.bool)
            gone[sides["out"]] = False
            for parameter in layer.parameters(recurse=False):
                parameter.data[gone] = 0


def depthwise(layer: nn.Module) -> bool:
    """Whether each channel of a convolution sees itself alone."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels == (
        layer.out_channels
    )


def narrows(layer: nn.Module) -> bool:
    """Whether `narrow` knows the kind of the layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 or depthwise(layer)
    return isinstance(layer, nn.Linear | nn.BatchNorm2d)


def _width(name: str, layer: nn.Module, side: str) -> int:
    if not narrows(layer):
        raise ValueError(f"structure: {name} is a {type(layer).__name__}, which is not narrowed")
    if isinstance(layer, nn.BatchNorm2d):
        return layer.num_features
    width = "out_channels" if isinstance(layer, nn.Conv2d) else "out_features"
    return int(getattr(layer, width if side == "out" else width.replace("out", "in")))


def _require(where: str, left: Sequence[int], width: int) -> None:
    whole = isinstance(left, list) and all(type(i) is int for i in left)
    if not whole or not left or sorted(set(left)) != left or not 0 <= left[0] <= left[-1] < width:
        shown = str(left)[:40]
        raise ValueError(f"structure: {where} keeps {shown}, not some of 0..{width - 1} in order")


def _narrowed(layer: nn.Module, side: str, left: list[int]) -> None:
    index = torch.tensor(left)
    if isinstance(layer, nn.BatchNorm2d):
        _take(layer, ("weight", "bias", "running_mean", "running_var"), index, 0)
        layer.num_features = len(left)
    elif depthwise(layer):
        _take(layer, ("weight", "bias"), index, 0)
        vars(layer).update(dict.fromkeys(("in_channels", "out_channels", "groups"), len(left)))
    else:
        names = ("weight", "bias") if side == "out" else ("weight",)
        _take(layer, names, index, 0 if side == "out" else 1)
        kind = "channels" if isinstance(layer, nn.Conv2d) else "features"
        setattr(layer, f"{side}_{kind}", len(left))


def _take(layer: nn.Module, names: Sequence[str], index: Tensor, dim: int) -> None:
    for name in names:
        found: Tensor | None = getattr(layer, name)
        if found is None:
            continue
        taken = found.detach().index_select(dim, index.to(found.device))
        learns = isinstance(found, nn.Parameter)
        setattr(layer, name, nn.Parameter(taken, found.requires_grad) if learns else taken)
