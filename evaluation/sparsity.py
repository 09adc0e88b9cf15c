"""What a sparse model is: its layers, what it costs in theory, and what was measured to be faster.

The file sparsity.json is written by the training; this turns it into report sections.
"""

from collections.abc import Iterable, Mapping
from typing import Any

FILE = "sparsity.json"


def macs(dense: int, layers: Iterable[tuple[int, int, int]]) -> int:
    """Multiply-accumulates that are not by a pruned number; layers are (size, kept, positions)."""
    return dense - sum((size - kept) * positions for size, kept, positions in layers)


def sentence(said: Mapping[str, Any]) -> str:
    """What was saved, in one plain sentence."""
    ratio = said.get("latency_ratio_measured")
    measured = (
        "No time or energy was measured to be saved: zeros in dense kernels are multiplied like "
        "any other number"
        if ratio is None
        else f"Measured beside the dense model, one image takes {ratio:.2f} of its time"
    )
    return (
        f"{100 * said['weights_zero_fraction']:.1f} % of all weights are 0, and "
        f"{100 * said['macs_theoretical_ratio']:.1f} % of the multiply-accumulates are by others. "
        f"{measured}."
    )
