"""One-versus-one heads beside a softmax head on the same trunk: accuracy and cost of a step.

Run: python -m benchmarks.one_vs_one [--seeds 3] [--epochs 12] [--patients 300]
"""

import argparse
import statistics
import time

import numpy as np
import torch

from benchmarks.recall import GRADES, recalls, retina, train
from lightning_modules import ImageClassifier, OneVsOneClassifier


def step_cost(module: ImageClassifier, batch: int = 32, size: int = 64, steps: int = 15) -> float:
    """Median CPU seconds of a training step."""
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    image, label = torch.randn(batch, 3, size, size), torch.arange(batch) % len(GRADES)
    taken = []
    for _ in range(steps):
        start = time.process_time()
        optimizer.zero_grad()
        module.compute_loss(module.net(image), label, None).backward()
        optimizer.step()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def main() -> None:
    """Both heads on each seed, paired; then the cost of a step of both, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--backbone", default="test_resnet")
    asked = parser.parse_args()
    kinds = {"softmax": ImageClassifier, "one-versus-one": OneVsOneClassifier}
    costs: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(3):
        for name, kind in kinds.items():
            costs[name].append(step_cost(kind(GRADES, asked.backbone)))
    medians = {name: statistics.median(taken) for name, taken in costs.items()}
    ratio = medians["one-versus-one"] / medians["softmax"]
    print(f"CPU seconds a step {medians}, ratio {ratio:.3f}", flush=True)
    data, found = retina(asked.patients), {name: [] for name in kinds}
    for seed in range(asked.seeds):
        for name, kind in kinds.items():
            module = train(
                lambda kind=kind: kind(GRADES, asked.backbone), data["train"], seed, asked.epochs
            )
            found[name].append(recalls(module, data["test"])[-1])
            print(f"seed {seed} {name}: accuracy {found[name][-1]:.3f}", flush=True)
    gain = np.array(found["one-versus-one"]) - np.array(found["softmax"])
    print(f"accuracy gain of one-versus-one {gain.round(3)}, mean {gain.mean():.3f}")


if __name__ == "__main__":
    main()
