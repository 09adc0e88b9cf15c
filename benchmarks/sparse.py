"""What masks cost and what they save, and what taking channels out saves instead.

Run: python -m benchmarks.sparse [--only step|masked|channels|packed|top_k|energy ...]
     [--backbone NAME] [--size PX] [--batch N] [--pairs N] [--numbers N] [--threads N]

Everything is measured in alternating pairs. Steps and masks are timed in the process's own time on
a processor, which other processes do not share; channels by the clock as well.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from callbacks.sparse_training import masks
from callbacks.sparse_training.masked_weights import MaskedWeights
from callbacks.sparse_training.prunable import prunable
from evaluation.files import write_bytes
from evaluation.stats import ratios
from evaluation.stats.estimate import Estimate
from lightning_modules import ImageClassifier, checkpoints, packing
from lightning_modules.pruning import groups, latency, search
from lightning_modules.pruning import narrow as narrower

DENSITY = 0.25
CLASSES = ["normal", "tuberculosis", "pneumonia", "covid"]
Asked = argparse.Namespace


def clock() -> Callable[[], float]:
    """The process's own time where it computes, the clock where a GPU does."""
    return time.perf_counter if torch.cuda.is_available() else time.process_time


def said(figure: Estimate) -> str:
    """A ratio with its interval."""
    if figure.value is None:
        return f"null ({figure.reason})"
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f}), {figure.n} pairs"


def dense(asked: Asked) -> tuple[nn.Module, Tensor]:
    """The network with drawn weights, and a batch."""
    torch.manual_seed(0)
    net = timm.create_model(asked.backbone, num_classes=len(CLASSES)).to(asked.device)
    return net, torch.randn(asked.batch, 3, asked.size, asked.size, device=asked.device)


def masked(net: nn.Module, image: Tensor) -> MaskedWeights:
    """Masks at 25 % over what may be pruned of a network, held once."""
    layers = prunable(net, image[:1]).layers
    held = MaskedWeights(net, layers)
    keep = masks.counts(layers, DENSITY, "uniform")
    held.put(masks.shrunk([masks.magnitudes(weight) for weight in held.weights], keep))
    held.hold_weights()
    return held


def step(asked: Asked) -> None:
    """Training steps of one network, its masks held or not held in turns."""
    net, image = dense(asked)
    held, label = masked(net, image), torch.randint(4, (asked.batch,), device=asked.device)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)

    def train(hold: bool) -> None:
        optimizer.zero_grad()
        cross_entropy(net(image), label).backward()
        if hold:
            held.hold_gradients()
        optimizer.step()
        if hold:
            held.hold_weights()

    pairs = latency.alternating(
        lambda: train(True), lambda: train(False), asked.pairs, image.device, clock()
    )
    print(f"training step, masks held / not held: {said(ratios.paired(pairs))}")
    alone = latency.alternating(
        lambda: (held.hold_gradients(), held.hold_weights()), lambda: train(False), 8,
        image.device, clock(),
    )  # fmt: skip
    print(f"holding alone / a step without: {said(ratios.paired(alone))}")


def masked_inference(asked: Asked) -> None:
    """The masked network beside the same one without masks."""
    (net, image), (twin, _) = dense(asked), dense(asked)
    masked(net, image)
    net.eval(), twin.eval()
    with torch.inference_mode():
        pairs = latency.alternating(
            lambda: net(image), lambda: twin(image), asked.pairs, image.device, clock()
        )
    print(f"inference, masked dense model / dense model: {said(ratios.paired(pairs))}")


def narrow(asked: Asked, power: float = 0.5) -> tuple[nn.Module, nn.Module, Tensor]:
    """The dense network, the same at 0.6 of the multiply-accumulates and 0.7 of the time at most.

    And a batch. The more `power`, the more multiply-accumulates may stay for the same time.
    """
    net, image = dense(asked)
    net, small = net.cpu().eval(), image[:2].cpu()
    wanted = narrower.Wanted(macs=0.6, latency=0.7, power=power, round_to=asked.round_to)
    kept = narrower.choose(net, small, asked.backbone, wanted, drawn(net, asked))
    thin = search.narrowed(net, kept)
    left, whole = (
        sum(cost.macs for cost in groups.costs(each, small).values()) for each in (thin, net)
    )
    print(f"channels rounded to {asked.round_to}: {left / whole:.3f} of the MACs are left")
    return net.to(asked.device), thin.to(asked.device), image


def drawn(net: nn.Module, asked: Asked) -> Iterator[Tensor]:
    """The loss of noise with labels by chance: which channels go is not the question here."""
    for _ in range(16):
        image = torch.randn(4, 3, asked.size, asked.size)
        yield cross_entropy(net(image), torch.randint(len(CLASSES), (4,)))


def faster(asked: Asked) -> None:
    """How much faster the network with fewer channels is.

    One image at first, and again after larger batches: a fresh process takes memory from the
    system and gives it back at every pass, more of it for the dense network.
    """
    for power in (0.5, 1.0):
        print(f"channels, cost counting with power {power}:")
        compared(asked, *narrow(asked, power))


def compared(asked: Asked, net: nn.Module, thin: nn.Module, image: Tensor) -> None:
    """How much faster the second network is than the first."""
    clocks = {"by the clock": time.perf_counter, "in the process's own time": clock()}
    whens = {"batch 1, at first": 1, f"batch {asked.batch}": asked.batch, "batch 1, after that": 1}
    for (when, batch), (name, each) in itertools.product(whens.items(), clocks.items()):
        with torch.inference_mode():
            pairs = latency.alternating(
                lambda n=batch: thin(image[:n]), lambda n=batch: net(image[:n]), asked.pairs,
                image.device, each,
            )  # fmt: skip
        found = ratios.paired([(second, first) for first, second in pairs])
        print(f"channels, {when}: {said(found)} times as fast {name}")


def energy(asked: Asked) -> None:
    """Joules of the network with fewer channels over those of the dense one."""
    net, thin, image = narrow(asked)
    figure, joules = latency.energy_ratio(thin, net, image)
    print(f"channels, energy an image: {said(figure)}")
    for first, second in joules:
        print(f"  joules per 1,000 images: {1000 * first:.1f} pruned, {1000 * second:.1f} dense")


def packed(asked: Asked) -> None:
    """The size of a real packed file of a masked member, and that it comes back."""
    module = ImageClassifier(CLASSES, asked.backbone, image_size=asked.size).eval()
    masked(module.net, torch.zeros(1, 3, asked.size, asked.size))
    block = checkpoints.Block(
        "ImageClassifier", module.init_args, CLASSES, {"size": asked.size}, "",
        checkpoints.id_hashes([]), {}, "", "", 0, checkpoints.versions(),
    )  # fmt: skip
    state = module.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"b2{packing.SUFFIX}"
        write_bytes(file, checkpoints.packed(block, state))
        megabytes = file.stat().st_size / 1e6
        again = checkpoints.load(file)[0].state_dict()
    kept = packing.stored(state)
    exact = all(torch.equal(again[k], kept[k].to(v.dtype)) for k, v in state.items())
    half = sum(2 * tensor.numel() for tensor in state.values()) / 1e6
    print(f"packed: {megabytes:.3f} MB, beside {half:.3f} MB in fp16; "
          f"{'comes back bit for bit' if exact else 'DIFFERS'}")  # fmt: skip


def top_k(asked: Asked) -> None:
    """Seconds of a choice among so many numbers, all equal and normal; exact to the number."""
    many = asked.numbers
    for name, weight in (("all equal", torch.full((many,), 0.1)), ("normal", torch.randn(many))):
        start = time.process_time()
        kept = masks.top_k(masks.magnitudes(weight), many // 4)
        spent = time.process_time() - start
        if int(kept.sum()) != many // 4:
            raise ValueError(f"top_k kept {int(kept.sum())} of {many}, not {many // 4}")
        print(f"top-k of {many:,}, {name}: {spent:.2f} s, exact")


ROWS = {
    "step": step,
    "masked": masked_inference,
    "channels": faster,
    "packed": packed,
    "top_k": top_k,
    "energy": energy,
}


def main() -> None:
    """Prints one row a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--backbone", default="efficientnet_b2")
    parser.add_argument("--size", type=int, default=260)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--round_to", type=int, default=16)
    parser.add_argument("--numbers", type=int, default=100_000_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{asked.backbone}, {asked.size} px, {narrower.machine(asked.device)}")
    for row in asked.only:
        ROWS[row](asked)


if __name__ == "__main__":
    main()
