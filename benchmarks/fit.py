"""Time of training with Lightning and ImageClassifier beside a plain PyTorch loop.

Run: python -m benchmarks.fit [--backbone NAME] [--image_size PX] [--images N] [--rounds N]
On a GPU: --device cuda --precision bf16 --backbone convnext_tiny --batch 128 --images 12800

Both train the same network with the same steps on the same tensors in memory, so that the ratio is
the cost of Lightning, the module, its loss, metric and callbacks. On a shared machine, processor
seconds are more reliable than wall-clock seconds.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.resources import Stopwatch
from callbacks import StepSeeding
from consilium.training.lightning_cli import silence_lightning
from evaluation.reports.html import format_estimate
from evaluation.stats.estimate import ratio_estimate
from lightning_modules import ImageClassifier, backbones
from lightning_modules.optim import OptimizerConfig
from lightning_modules.pruning.measure import measure_in_turns

CLASS_NAMES = ["none", "simple", "comminuted"]
Loader = DataLoader[Any]
Train = Callable[[], None]


class ClassifierWithoutData(ImageClassifier):
    """An ImageClassifier that is trained without a data module and writes no checkpoint."""

    def setup(self, stage: str) -> None:
        """Does nothing: class names and weights of a data module are not needed."""

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Does nothing: no checkpoint is written."""


class Seconds(NamedTuple):
    """Wall-clock and processor time."""

    wall: float
    processor: float


def main() -> None:
    """Times both in turns; prints their images per second and the ratio of their times."""
    args = parse_arguments()
    silence_lightning()
    loader = make_loader(args)
    time_training(baseline(args, loader), args.device)  # warm-up
    pairs = measure_in_turns(
        lightning_fit, baseline, lambda make: time_training(make(args, loader), args.device),
        args.rounds,
    )  # fmt: skip
    for clock in Seconds._fields:
        seconds = [(getattr(ours, clock), getattr(plain, clock)) for ours, plain in pairs]
        ours, plain = (
            args.images / statistics.median(times) for times in zip(*seconds, strict=True)
        )
        print(f"{args.backbone}, {clock} time: Consilium {ours:.1f} images/s, plain PyTorch loop "
              f"{plain:.1f} images/s, ratio {format_estimate(ratio_estimate(seconds), 3)}"
              )  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """The arguments of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image_size", type=int, default=224, help="in pixels (224)")
    parser.add_argument("--batch", type=int, default=16, help="images per step (16)")
    parser.add_argument("--images", type=int, default=96, help="images per epoch (96)")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each (3)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--compile", action="store_true", help="compile the network of Lightning")
    return parser.parse_args()


def make_loader(args: argparse.Namespace) -> Loader:
    """One epoch of random batches that are already on the device."""
    torch.manual_seed(0)
    shape, num_batches = (
        (args.batch, 3, args.image_size, args.image_size),
        args.images // args.batch,
    )
    batches = [
        {
            "image": torch.randn(shape, device=args.device),
            "label": torch.arange(args.batch, device=args.device) % len(CLASS_NAMES),
            "index": torch.arange(args.batch),
        }
        for _ in range(min(4, num_batches))
    ]
    epoch = [batches[i % len(batches)] for i in range(num_batches)]
    dataset: Any = epoch  # a list is a dataset whose samples are batches
    return DataLoader(dataset, batch_size=None)


def lightning_fit(args: argparse.Namespace, loader: Loader) -> Train:
    """One epoch by Lightning's Trainer with our module; each call trains the module further."""
    torch.manual_seed(0)
    module = ClassifierWithoutData(
        CLASS_NAMES,
        args.backbone,
        backbone_args={"compile": args.compile},
        optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.05),
    )
    return lambda: make_trainer(args).fit(module, loader)


def make_trainer(args: argparse.Namespace) -> lightning.Trainer:
    """A trainer of one epoch without files and progress bar."""
    return lightning.Trainer(
        max_epochs=1,
        accelerator="gpu" if args.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if args.precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[StepSeeding()],
    )


def baseline(args: argparse.Namespace, loader: Loader) -> Train:
    """One epoch of the same steps in a plain loop."""
    torch.manual_seed(0)
    net = backbones.build(args.backbone, len(CLASS_NAMES))
    net = net.to(args.device)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, weight_decay=0.05)
    is_bf16 = args.precision == "bf16"
    autocast = torch.autocast(args.device, torch.bfloat16) if is_bf16 else nullcontext()

    def train() -> None:
        net.train()
        for batch in loader:
            with autocast:
                loss = nn.functional.cross_entropy(net(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


def time_training(train: Train, device: str) -> Seconds:
    """Seconds of one epoch, including the kernels that it launched on a GPU."""
    stopwatch = Stopwatch()
    train()
    if device == "cuda":
        torch.cuda.synchronize()
    return Seconds(stopwatch.wall, stopwatch.processor)


if __name__ == "__main__":
    main()
