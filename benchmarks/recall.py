"""The rarest grade's recall: focal, class weights and smoothing against plain cross entropy.

Run: python -m benchmarks.recall [--seeds 3] [--epochs 12] [--patients 300]

On the retina phantom with only some of the training pictures of grade 1 left, which makes the
grade that is hardest to see the rarest; the same net, order and steps, and the seeds are paired.
"""

import argparse
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from datamodules import ImageDataModule, Phantoms, images
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from lightning_modules.losses import LossConfig
from lightning_modules.optim import LRSchedulerConfig

GRADES = ["none", "mild", "moderate", "severe", "proliferative"]
Split = tuple[Tensor, Tensor]


def retina(patients: int, size: int = 64) -> dict[str, Split]:
    """Images and labels of each split of the retina phantom, as tensors."""
    source = Phantoms("retina", num_patients=patients, image_size=size, root=tempfile.gettempdir())
    data = ImageDataModule(source, GRADES, Preprocess(size=size))
    data.prepare_data()
    data.setup("fit")
    table, see = data.manifest.table, data.preprocess
    found = {}
    for split in ("train", "val", "test"):
        rows = table[table["split"] == split]
        pictures = torch.stack([see(images.read_image(path)) for path in rows["path"]])
        found[split] = (pictures, torch.tensor(rows["label"].to_numpy()))
    return found


def thinned(data: Split, grade: int, keep: float) -> Split:
    """The split with only the first share ``keep`` of a grade's pictures."""
    own = torch.nonzero(data[1] == grade).flatten()
    kept = torch.ones(len(data[1]), dtype=torch.bool)
    kept[own[round(keep * len(own)) :]] = False
    return data[0][kept], data[1][kept]


def train(
    make: Callable[[], ImageClassifier],
    data: Split,
    seed: int,
    epochs: int,
    weights: Tensor | None = None,
) -> ImageClassifier:
    """A module trained on flipped pictures with AdamW and one cycle."""
    torch.manual_seed(seed)
    module, (pictures, labels) = make(), data
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3, weight_decay=0.05)
    curve = LRSchedulerConfig("onecycle", warmup_epochs=2).curve(epochs)
    for epoch in range(epochs):
        order = torch.randperm(len(labels)).split(32)
        for step, rows in enumerate(order):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * curve(epoch + step / len(order))
            seen = flipped(pictures[rows])
            optimizer.zero_grad()
            module.compute_loss(module.net(seen), labels[rows], weights).backward()
            optimizer.step()
    return module.eval()


def flipped(pictures: Tensor) -> Tensor:
    """The batch, mirrored by chance."""
    sides = [side for side in (2, 3) if torch.rand(()) < 0.5]
    return pictures.flip(sides)


def recalls(module: ImageClassifier, data: Split) -> np.ndarray:
    """Recall of each grade, then the accuracy."""
    with torch.no_grad():
        said = torch.cat([module(part) for part in data[0].split(64)]).argmax(1)
    right = (said == data[1]).float()
    each = [right[data[1] == grade].mean().item() for grade in range(len(GRADES))]
    return np.array([*each, right.mean().item()])


def main() -> None:
    """Both losses on each seed; prints the rarest grade's recall and the paired difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--backbone", default="test_resnet")
    asked = parser.parse_args()
    data = retina(asked.patients)
    data["train"] = thinned(data["train"], GRADES.index("mild"), asked.keep)
    counts = torch.bincount(data["train"][1], minlength=len(GRADES))
    rarest, weights = int(counts.argmin()), counts.sum() / counts / len(GRADES)
    focal = LossConfig("focal", gamma=2.0, label_smoothing=0.1)
    losses = {"plain": LossConfig(), "all three": focal}
    print(f"training pictures {dict(zip(GRADES, counts.tolist(), strict=True))}")
    rows: dict[str, list[np.ndarray]] = {name: [] for name in losses}
    for seed in range(asked.seeds):
        for name, loss in losses.items():
            module = train(
                lambda loss=loss: ImageClassifier(GRADES, asked.backbone, loss=loss),
                data["train"],
                seed,
                asked.epochs,
                None if name == "plain" else weights,
            )
            rows[name].append(recalls(module, data["test"]))
            print(f"seed {seed} {name}: recall, accuracy {rows[name][-1].round(3)}", flush=True)
    gains = np.array(rows["all three"]) - np.array(rows["plain"])
    print(
        f"{GRADES[rarest]} recall gain {gains[:, rarest].round(3)}, mean {gains.mean(0).round(3)}"
    )


if __name__ == "__main__":
    main()
