"""Small backbones of different families for the fast tests; the others are marked exhaustive."""

from collections.abc import Sequence

import pytest

FAST = {
    "densenet121", "mobilenetv3_small_100", "regnety_002", "residual_attention", "resnet10t",
    "swin_tiny_patch4_window7_224",
}  # fmt: skip


def one_per_family(names: Sequence[str]) -> list[object]:
    """The names as parameters, those outside `FAST` with the mark exhaustive."""
    return [
        name if name.split(".")[0] in FAST else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in names
    ]
