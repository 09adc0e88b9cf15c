"""Cost of masks, and speedup of channel pruning.

Run: python -m benchmarks.sparse [--only step|masked|channels|packed|top_k|energy ...]
     [--backbone NAME] [--size PX] [--batch N] [--pairs N] [--numbers N] [--threads N]

All measurements are alternating pairs. On a CPU, steps and masks are timed in process time, which
other processes do not affect; pruned networks by wall-clock time as well.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from callbacks.sparse_training import masks
from callbacks.sparse_training.masked_weights import MaskedWeights, find_prunable
from evaluation.files import write_bytes
from evaluation.stats.estimate import Estimate, ratio_estimate
from lightning_modules import ImageClassifier, checkpoints, packing
from lightning_modules.pruning import measure
from lightning_modules.pruning.search import PruningTarget, choose_structure, remaining_macs
from lightning_modules.pruning.structure import layer_costs, pruned_copy

DENSITY = 0.25
CLASS_NAMES = ["normal", "tuberculosis", "pneumonia", "covid"]


def clock() -> Callable[[], float]:
    """Process time on a CPU, wall-clock time with a GPU."""
    return time.perf_counter if torch.cuda.is_available() else time.process_time


def time_in_turns(
    first: Callable[[], object],
    second: Callable[[], object],
    pairs: int,
    timer: Callable[[], float] | None = None,
) -> list[tuple[float, float]]:
    """Seconds of both by `timer`, after one call of each that is not measured."""
    now = timer or clock()

    def seconds(work: Callable[[], object]) -> float:
        start = now()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return now() - start

    return measure.measure_in_turns(first, second, seconds, pairs + 1)[1:]


def format_ratio(ratio: Estimate) -> str:
    """A ratio with its interval and number of pairs."""
    if ratio.value is None:
        return f"null ({ratio.reason})"
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {ratio.n} pairs"


def make_dense(args: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and a batch."""
    torch.manual_seed(0)
    net = timm.create_model(args.backbone, num_classes=len(CLASS_NAMES)).to(args.device)
    return net, torch.randn(args.batch, 3, args.size, args.size, device=args.device)


def mask(net: nn.Module, image: Tensor) -> MaskedWeights:
    """Prunes the weights of `net` to a density of 25 %."""
    masked = MaskedWeights(net, find_prunable(net, image[:1]))
    counts = masks.nonzeros_per_weight(masked.weights, DENSITY, "uniform")
    masked.set_masks(map(masks.top_k, map(masks.magnitude_scores, masked.tensors), counts))
    masked.mask_weights()
    return masked


def training_step(args: argparse.Namespace) -> None:
    """Training steps of one network with and without masks, in turns."""
    net, image = make_dense(args)
    masked, label = mask(net, image), torch.randint(4, (args.batch,), device=args.device)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)

    def train(use_masks: bool) -> None:
        optimizer.zero_grad()
        cross_entropy(net(image), label).backward()
        if use_masks:
            masked.mask_gradients()
        optimizer.step()
        if use_masks:
            masked.mask_weights()

    def apply_masks() -> None:
        masked.mask_gradients()
        masked.mask_weights()

    pairs = time_in_turns(lambda: train(True), lambda: train(False), args.pairs)
    print(f"training step, with / without masks: {format_ratio(ratio_estimate(pairs))}")
    masking = time_in_turns(apply_masks, lambda: train(False), 8)
    print(f"masking alone / step without masks: {format_ratio(ratio_estimate(masking))}")


def masked_inference(args: argparse.Namespace) -> None:
    """The masked network compared with the same one without masks."""
    (net, image), (dense, _) = make_dense(args), make_dense(args)
    mask(net, image)
    net.eval(), dense.eval()
    with torch.inference_mode():
        pairs = time_in_turns(lambda: net(image), lambda: dense(image), args.pairs)
    print(f"inference, masked / dense: {format_ratio(ratio_estimate(pairs))}")


def prune(args: argparse.Namespace, cost_power: float = 0.5) -> tuple[nn.Module, nn.Module, Tensor]:
    """The dense network, a copy with at most 0.6 of its MACs and 0.7 of its latency, and a batch.

    The larger `cost_power`, the more MACs remain at the same latency.
    """
    net, image = make_dense(args)
    net, two_images = net.cpu().eval(), image[:2].cpu()
    target = PruningTarget(0.6, 0.7, cost_power, round_to=args.round_to)
    losses = random_losses(net, args)
    structure = choose_structure(net, two_images, args.backbone, target, losses)
    pruned = pruned_copy(net, structure)
    costs = (layer_costs(model, two_images) for model in (pruned, net))
    macs, dense_macs = (remaining_macs({}, of_model) for of_model in costs)
    ratio = macs / dense_macs
    print(f"channels rounded to {args.round_to}: {ratio:.3f} of the MACs remain")
    return net.to(args.device), pruned.to(args.device), image


def random_losses(net: nn.Module, args: argparse.Namespace) -> Iterator[Tensor]:
    """Losses of noise with random labels: speed does not depend on which channels are pruned."""
    for _ in range(16):
        image = torch.randn(4, 3, args.size, args.size)
        yield cross_entropy(net(image), torch.randint(len(CLASS_NAMES), (4,)))


def channels(args: argparse.Namespace) -> None:
    """Speedup of the channel-pruned network."""
    for cost_power in (0.5, 1.0):
        print(f"channels, cost_power {cost_power}:")
        print_speedups(args, *prune(args, cost_power))


def print_speedups(
    args: argparse.Namespace, net: nn.Module, pruned: nn.Module, image: Tensor
) -> None:
    """Speedup for one image at first, for a batch, and for one image after that.

    A fresh process allocates and frees memory at every pass, more of it for the dense network.
    """
    clocks = {"wall-clock time": time.perf_counter, "process time": clock()}
    batches = {"batch 1, at first": 1, f"batch {args.batch}": args.batch, "batch 1, after that": 1}
    for (when, size), (name, timer) in itertools.product(batches.items(), clocks.items()):
        batch = image[:size]
        with torch.inference_mode():
            pairs = time_in_turns(partial(net, batch), partial(pruned, batch), args.pairs, timer)
        print(f"channels, {when}, {name}: speedup {format_ratio(ratio_estimate(pairs))}")


def energy(args: argparse.Namespace) -> None:
    """Energy of the pruned network over that of the dense one."""
    net, pruned, image = prune(args)
    ratio, joules = measure.energy_ratio(pruned, net, image)
    print(f"channels, energy per image: {format_ratio(ratio)}")
    for first, second in joules:
        print(f"  joules per 1,000 images: {1000 * first:.1f} pruned, {1000 * second:.1f} dense")


def packed(args: argparse.Namespace) -> None:
    """Size of a packed checkpoint with masks, and whether it is restored exactly."""
    module = ImageClassifier(CLASS_NAMES, args.backbone, image_size=args.size).eval()
    mask(module.net, torch.zeros(1, 3, args.size, args.size))
    block = checkpoints.Block(
        "ImageClassifier", module.init_args, CLASS_NAMES, {"size": args.size}, "",
        torch.empty(0, dtype=torch.int64), {}, "", "", 0, checkpoints.package_versions(),
    )  # fmt: skip
    state = module.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"b2{packing.SUFFIX}"
        write_bytes(file, checkpoints.packed_checkpoint(block, state))
        megabytes = file.stat().st_size / 1e6
        restored = checkpoints.load(file)[0].state_dict()
    stored = packing.to_stored_precision(state)
    is_exact = all(torch.equal(restored[k], stored[k].to(v.dtype)) for k, v in state.items())
    half = sum(2 * tensor.numel() for tensor in state.values()) / 1e6
    print(f"packed: {megabytes:.3f} MB, {half:.3f} MB as fp16; "
          f"{'restored exactly' if is_exact else 'DIFFERS'}")  # fmt: skip


def top_k(args: argparse.Namespace) -> None:
    """Seconds of an exact choice among many numbers, equal and normally distributed ones."""
    count = args.numbers
    for name, tensor in (("all equal", torch.full((count,), 0.1)), ("normal", torch.randn(count))):
        start = time.process_time()
        top = masks.top_k(masks.magnitude_scores(tensor), count // 4)
        seconds = time.process_time() - start
        if int(top.sum()) != count // 4:
            raise ValueError(f"top_k chose {int(top.sum())} of {count}, not {count // 4}")
        print(f"top-k of {count:,}, {name}: {seconds:.2f} s, exact")


ROWS = {
    "step": training_step,
    "masked": masked_inference,
    "channels": channels,
    "packed": packed,
    "top_k": top_k,
    "energy": energy,
}


def main() -> None:
    """Prints one row per measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--backbone", default="efficientnet_b2")
    parser.add_argument("--size", type=int, default=260)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--round_to", type=int, default=16)
    parser.add_argument("--numbers", type=int, default=100_000_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{args.backbone}, {args.size} px, {measure.describe_device(args.device)}")
    for row in args.only:
        ROWS[row](args)


if __name__ == "__main__":
    main()
