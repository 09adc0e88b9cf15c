"""Accuracy and training cost of one-versus-one heads beside a softmax head on the same backbone.

Run: python -m benchmarks.one_vs_one [--seeds N] [--epochs N] [--patients N] [--backbone NAME]
"""

import argparse
import statistics
from functools import partial

import numpy as np
import torch

from benchmarks.recall import GRADES, load_retina, recalls_and_accuracy, train
from benchmarks.resources import Stopwatch
from lightning_modules import ImageClassifier, OneVsOneClassifier

HEADS = {"softmax": ImageClassifier, "one-versus-one": OneVsOneClassifier}


def main() -> None:
    """Prints the cost of a step of both heads in turns, then their accuracies on paired seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trained networks per head (3)")
    parser.add_argument("--epochs", type=int, default=12, help="of each training (12)")
    parser.add_argument("--patients", type=int, default=300, help="generated patients (300)")
    parser.add_argument("--backbone", default="test_resnet")
    args = parser.parse_args()
    print_step_costs(args.backbone)
    print_accuracies(args)


def print_step_costs(backbone: str) -> None:
    """Processor seconds of a training step with either head, and their ratio."""
    seconds: dict[str, list[float]] = {name: [] for name in HEADS}
    for _ in range(3):
        for name, module_class in HEADS.items():
            seconds[name].append(step_seconds(module_class(GRADES, backbone)))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["one-versus-one"] / medians["softmax"]
    rows = ", ".join(f"{name} {median:.4f}" for name, median in medians.items())
    print(f"processor seconds per step: {rows}, ratio {ratio:.3f}", flush=True)


def step_seconds(
    module: ImageClassifier, batch_size: int = 32, image_size: int = 64, steps: int = 15
) -> float:
    """Median processor seconds of a training step."""
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    images = torch.randn(batch_size, 3, image_size, image_size)
    labels = torch.arange(batch_size) % len(GRADES)
    seconds = []
    for _ in range(steps):
        stopwatch = Stopwatch()
        optimizer.zero_grad()
        module.compute_loss(module.net(images), labels, None).backward()
        optimizer.step()
        seconds.append(stopwatch.processor)
    return statistics.median(seconds)


def print_accuracies(args: argparse.Namespace) -> None:
    """Test accuracy of both heads for each seed, and the mean difference."""
    data = load_retina(args.patients)
    accuracies: dict[str, list[float]] = {name: [] for name in HEADS}
    for seed in range(args.seeds):
        for name, module_class in HEADS.items():
            make_module = partial(module_class, GRADES, args.backbone)
            module = train(make_module, data["train"], seed, args.epochs)
            accuracies[name].append(recalls_and_accuracy(module, data["test"])[-1])
            print(f"seed {seed}, {name}: accuracy {accuracies[name][-1]:.3f}", flush=True)
    gains = np.array(accuracies["one-versus-one"]) - np.array(accuracies["softmax"])
    print(f"accuracy, one-versus-one minus softmax: {gains.round(3)}, mean {gains.mean():.3f}")


if __name__ == "__main__":
    main()
