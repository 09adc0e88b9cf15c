"""Recall of a rare class: focal loss, class weights and label smoothing beside cross entropy.

Run: python -m benchmarks.recall [--seeds N] [--epochs N] [--patients N] [--fraction F]
     [--backbone NAME]

Networks are trained on generated fundus images with a fraction of the training images of grade 1,
so that the grade that is hardest to recognize is the rarest. Seeds are paired: the same initial
weights, order and steps for both losses.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from datamodules import ImageDataModule, Phantoms
from datamodules.images import read_image
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from lightning_modules.losses import LossConfig
from lightning_modules.optim import LRSchedulerConfig

GRADES = ["none", "mild", "moderate", "severe", "proliferative"]
RARE_GRADE = GRADES.index("mild")
LEARNING_RATE = 3e-3
LOSSES = {
    "cross entropy": LossConfig(),
    "focal loss, class weights, smoothing": LossConfig("focal", gamma=2.0, label_smoothing=0.1),
}
Split = tuple[Tensor, Tensor]  # images and labels


def main() -> None:
    """Prints recalls and accuracy of both losses for each seed, and the paired differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trained networks per loss (3)")
    parser.add_argument("--epochs", type=int, default=12, help="of each training (12)")
    parser.add_argument("--patients", type=int, default=300, help="generated patients (300)")
    help_ = "of the training images of grade 1 that are used (0.25)"
    parser.add_argument("--fraction", type=float, default=0.25, help=help_)
    parser.add_argument("--backbone", default="test_resnet")
    args = parser.parse_args()
    data = load_retina(args.patients)
    train_split = subsample_class(data["train"], RARE_GRADE, args.fraction)
    counts = torch.bincount(train_split[1], minlength=len(GRADES))
    print(f"training images: {dict(zip(GRADES, counts.tolist(), strict=True))}")
    plain, combined = LOSSES
    class_weights = {plain: None, combined: counts.sum() / counts / len(GRADES)}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in LOSSES}
    for seed in range(args.seeds):
        for name, loss in LOSSES.items():
            make_module = partial(ImageClassifier, GRADES, args.backbone, loss=loss)
            module = train(make_module, train_split, seed, args.epochs, class_weights[name])
            rows[name].append(recalls_and_accuracy(module, data["test"]))
            print(f"seed {seed}, {name}: {format_row(rows[name][-1])}", flush=True)
    gains = np.array(rows[combined]) - np.array(rows[plain])
    print(f"gain in recall of {GRADES[RARE_GRADE]}: {gains[:, RARE_GRADE].round(3)}")
    print(f"mean gains: {format_row(gains.mean(0))}")


def load_retina(num_patients: int, image_size: int = 64) -> dict[str, Split]:
    """Images and labels of each split of generated fundus images, as tensors."""
    source = Phantoms(
        "retina", num_patients=num_patients, image_size=image_size, root=tempfile.gettempdir()
    )
    data = ImageDataModule(source, GRADES, Preprocess(size=image_size))
    data.prepare_data()
    data.setup("fit")
    table, splits = data.manifest.table, {}
    for split in ("train", "val", "test"):
        rows = table[table["split"] == split]
        images = torch.stack([data.preprocess(read_image(path)) for path in rows["path"]])
        splits[split] = (images, torch.tensor(rows["label"].to_numpy()))
    return splits


def subsample_class(data: Split, label: int, fraction: float) -> Split:
    """The split with only the first `fraction` of the images of a class."""
    images, labels = data
    rows = torch.nonzero(labels == label).flatten()
    is_used = torch.ones(len(labels), dtype=torch.bool)
    is_used[rows[round(fraction * len(rows)) :]] = False
    return images[is_used], labels[is_used]


def train(
    make_module: Callable[[], ImageClassifier],
    data: Split,
    seed: int,
    epochs: int,
    class_weights: Tensor | None = None,
) -> ImageClassifier:
    """A module trained on flipped images with AdamW and a one-cycle learning rate."""
    torch.manual_seed(seed)
    module, (images, labels) = make_module(), data
    optimizer = torch.optim.AdamW(module.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = LRSchedulerConfig("onecycle", warmup_epochs=2).curve(epochs)
    for epoch in range(epochs):
        batches = torch.randperm(len(labels)).split(32)
        for step, rows in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * schedule(epoch + step / len(batches))
            logits = module.net(flip_randomly(images[rows]))
            optimizer.zero_grad()
            module.compute_loss(logits, labels[rows], class_weights).backward()
            optimizer.step()
    return module.eval()


def flip_randomly(images: Tensor) -> Tensor:
    """The batch, flipped vertically and horizontally with probability 0.5 each."""
    return images.flip([axis for axis in (2, 3) if torch.rand(()) < 0.5])


def recalls_and_accuracy(module: ImageClassifier, data: Split) -> np.ndarray:
    """Recall of each grade, then the accuracy."""
    images, labels = data
    with torch.no_grad():
        predicted = torch.cat([module(batch) for batch in images.split(64)]).argmax(1)
    is_correct = (predicted == labels).float()
    recalls = [is_correct[labels == grade].mean().item() for grade in range(len(GRADES))]
    return np.array([*recalls, is_correct.mean().item()])


def format_row(row: np.ndarray) -> str:
    """The result of `recalls_and_accuracy` in words."""
    recalls = ", ".join(f"{name} {x:.3f}" for name, x in zip(GRADES, row[:-1], strict=True))
    return f"recall {recalls}; accuracy {row[-1]:.3f}"


if __name__ == "__main__":
    main()
