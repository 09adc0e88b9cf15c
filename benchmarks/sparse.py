"""What masks cost and what they save: exact top-k, a training step, inference, packed size.

Run: python -m benchmarks.sparse [--backbone NAME] [--size PX] [--batch N] [--pairs N] [--numbers N]
"""

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from callbacks import masks
from callbacks.held import Held
from callbacks.prunable import prunable

DENSITY = 0.25


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes; on a CPU in the process's own time, which others do not share."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def ratio(one: Callable[[], object], other: Callable[[], object], pairs: int) -> str:
    """Median of time(one) / time(other) over alternating pairs, with a bootstrap 95 % interval."""
    one(), other()
    found = []
    for i in range(pairs):
        turn = [one, other] if i % 2 else [other, one]
        spent = {id(work): seconds(work) for work in turn}
        found.append(spent[id(one)] / spent[id(other)])
    draws = np.random.default_rng(0).choice(found, (2000, pairs))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return f"{np.median(found):.3f} ({low:.3f} to {high:.3f}), {pairs} pairs"


def masked(net: nn.Module, image: Tensor) -> Held:
    """Masks at 25 % over what may be pruned of a network."""
    layers = prunable(net, image[:1]).layers
    held = Held(net, layers)
    keep = masks.counts(layers, DENSITY, "uniform")
    held.put(masks.shrunk([masks.magnitudes(weight) for weight in held.weights], keep))
    held.hold_weights()
    return held


def step(net: nn.Module, image: Tensor, label: Tensor, held: Held | None) -> Callable[[], object]:
    """One training step, with masks or without."""
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)

    def work() -> None:
        optimizer.zero_grad()
        cross_entropy(net(image), label).backward()
        if held is not None:
            held.hold_gradients()
        optimizer.step()
        if held is not None:
            held.hold_weights()

    return work


def exactness(numbers: int) -> str:
    """Seconds of a choice among so many numbers, all equal and normal; both exact to the number."""
    found = []
    for weight in (torch.full((numbers,), 0.1), torch.randn(numbers)):
        start = time.process_time()
        kept = masks.top_k(masks.magnitudes(weight), numbers // 4)
        found.append(time.process_time() - start)
        if int(kept.sum()) != numbers // 4:
            raise ValueError(f"top_k kept {int(kept.sum())} of {numbers}, not {numbers // 4}")
    return f"{found[0]:.2f} s all equal, {found[1]:.2f} s normal, exact"


def packed_megabytes(net: nn.Module, held: Held) -> tuple[float, float]:
    """Megabytes of bitmaps and fp16 numbers, and of fp16 alone."""
    every = sum(p.numel() for p in net.state_dict().values())
    pruned = sum(int((~mask).sum()) for mask in held.kept)
    bitmap = sum(mask.numel() for mask in held.kept) / 8
    return (2 * (every - pruned) + bitmap) / 1e6, 2 * every / 1e6


def main() -> None:
    """Prints one row a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="efficientnet_b2")
    parser.add_argument("--size", type=int, default=260)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--numbers", type=int, default=100_000_000)
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{asked.backbone}, {asked.size} px, {device}, {torch.get_num_threads()} threads")
    nets = [timm.create_model(asked.backbone, num_classes=4).to(device) for _ in range(2)]
    image = torch.randn(asked.batch, 3, asked.size, asked.size, device=device)
    label = torch.randint(4, (asked.batch,), device=device)
    held = masked(nets[0], image)
    twin = copy.deepcopy(nets[0])  # the same numbers, so that only the holding differs
    with_masks, without = step(nets[0], image, label, held), step(twin, image, label, None)
    print(f"training step with masks / without: {ratio(with_masks, without, asked.pairs)}")
    held_for = [seconds(lambda: (held.hold_gradients(), held.hold_weights())) for _ in range(10)]
    share = np.median(held_for) / np.median([seconds(with_masks) for _ in range(3)])
    print(f"holding the masks alone: {1000 * np.median(held_for):.1f} ms, {share:.4f} of a step")
    print(f"pruned numbers that are not 0 after it: {len(held.strays(held.weights))}")
    for net in nets:
        net.eval()
    with torch.inference_mode():
        timed = ratio(lambda: nets[0](image), lambda: nets[1](image), asked.pairs)
    print(f"inference, masked dense model / dense model: {timed}")
    small, half = packed_megabytes(nets[0], held)
    print(f"packed: {small:.3f} MB as bitmap and fp16, beside {half:.3f} MB in fp16 (computed)")
    print(f"top-k of {asked.numbers:,}: {exactness(asked.numbers)}")


if __name__ == "__main__":
    main()
