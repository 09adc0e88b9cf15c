"""`consilium fit` beside a bare PyTorch loop: the same net, data, order, steps and arithmetic.

Run: python -m benchmarks.fit [--backbone resnet18] [--image_size 224] [--images 96] [--rounds 3]
On a GPU: --device cuda --precision bf16 --backbone convnext_tiny --batch 128 --images 12800

Both sides train on the same tensors, held in memory, so that the ratio is the cost of the frame:
Lightning, the module, its loss, metric and callbacks. CPU seconds are printed beside wall seconds:
on a shared machine they are the fairer ones.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import StepSeeding
from evaluation.reports.html import format_estimate
from evaluation.stats.estimate import ratio_estimate
from lightning_modules import ImageClassifier, backbones
from lightning_modules.optim import OptimizerConfig
from lightning_modules.pruning.measure import measure_in_turns

CLASSES = ["none", "simple", "comminuted"]


class Bench(ImageClassifier):
    """Our module on a loader without a data module; validation is left out on both sides."""

    def setup(self, stage: str) -> None:
        """No data module to ask."""

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Nothing is saved."""


def batches(asked: argparse.Namespace) -> DataLoader[dict[str, Tensor]]:
    """One epoch of batches that are already on the device."""
    torch.manual_seed(0)
    shape = (asked.batch, 3, asked.image_size, asked.image_size)
    made = [
        {
            "image": torch.randn(shape, device=asked.device),
            "label": torch.arange(asked.batch, device=asked.device) % 3,
            "index": torch.arange(asked.batch),
        }
        for _ in range(min(4, asked.images // asked.batch))
    ]
    epoch = [made[i % len(made)] for i in range(asked.images // asked.batch)]
    return DataLoader(epoch, batch_size=None)


def ours(asked: argparse.Namespace, loader: DataLoader[dict[str, Tensor]]) -> Callable[[], None]:
    """A fit through Lightning and our module."""
    torch.manual_seed(0)
    module = Bench(
        CLASSES,
        asked.backbone,
        backbone_args={"channels_last": asked.channels_last},
        optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.05),
    )
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="gpu" if asked.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if asked.precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[StepSeeding()],
    )
    return lambda: trainer.fit(module, loader)


def bare(asked: argparse.Namespace, loader: DataLoader[dict[str, Tensor]]) -> Callable[[], None]:
    """The same steps in a loop."""
    torch.manual_seed(0)
    net = backbones.build(asked.backbone, 3, channels_last=asked.channels_last).to(asked.device)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, weight_decay=0.05)
    cast = (
        torch.autocast(asked.device, torch.bfloat16) if asked.precision == "bf16" else nullcontext()
    )

    def loop() -> None:
        net.train()
        for batch in loader:
            with cast:
                loss = nn.functional.cross_entropy(net(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return loop


def seconds(work: Callable[[], None], device: str) -> SimpleNamespace:
    """Wall and CPU seconds of some work, the device's own included."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return SimpleNamespace(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)


def main() -> None:
    """Takes turns, so that both sides meet the same machine; prints rates and their ratio."""
    asked = arguments()
    loader = batches(asked)
    seconds(bare(asked, loader), asked.device)  # warm
    pairs = measure_in_turns(ours, bare, lambda side: seconds(side(asked, loader), asked.device),
                     asked.rounds)  # fmt: skip
    for clock in ("wall", "cpu"):
        both = [(getattr(a, clock), getattr(b, clock)) for a, b in pairs]
        medians = (statistics.median(each) for each in zip(*both, strict=True))
        rates = [f"{asked.images / median:.1f} images/s" for median in medians]
        print(f"{asked.backbone} {clock}: ours {rates[0]}, bare {rates[1]}, "
              f"ratio {format_estimate(ratio_estimate(both), 3)}")  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--channels_last", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
