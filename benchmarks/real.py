"""Training of a pretrained backbone on public datasets beside a plain PyTorch loop.

Run: python -m benchmarks.real SHARED [--dataset pneumonia|idrid] [--epochs N] [--limit N]

SHARED contains `weights/mobilenetv2_100_tf2ptq.safetensors`, `data/pneumonia_cxr` and `data/idrid`.
Both train on the same images, augmented alike in the same order. Validation, checkpoints,
prediction tables and the report are part of our time only.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import timm
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from benchmarks.resources import Stopwatch
from consilium.training.lightning_cli import run_training
from datamodules import ImageDataModule, Table
from datamodules.preprocess import Preprocess
from datamodules.samplers import Balance
from datamodules.splits import assign_split
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from evaluation.stats.estimate import Estimate

ROOT = Path(__file__).parents[1]
METRICS = ("accuracy", "balanced_accuracy", "auroc", "kappa_quadratic")
BACKBONE = "mobilenetv2_100"
LEARNING_RATE, WEIGHT_DECAY = 5e-4, 0.01
PREPROCESS: dict[str, Any] = {"size": 112, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
CLASS_WEIGHTS: Literal["sqrt"] = "sqrt"


class Dataset(NamedTuple):
    """A public dataset below SHARED/data and how it is trained on."""

    folder: str
    label: str  # column
    class_names: list[str]
    epochs: int
    augment: str


DATASETS = {
    "pneumonia": Dataset("pneumonia_cxr", "label", ["NORMAL", "PNEUMONIA"], 5, "chest"),
    "idrid": Dataset("idrid", "dr_grade", ["0", "1", "2", "3", "4"], 25, "retina"),
}


class Task(NamedTuple):
    """What both sides train on."""

    dataset: Dataset
    table: Path
    weights: Path
    epochs: int


def main() -> None:
    """Prints time and metrics of our training, then of the plain loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path, help="folder of the weights and data")
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="pneumonia")
    parser.add_argument("--epochs", type=int, default=0, help="0: 5 for pneumonia, 25 for idrid")
    parser.add_argument("--limit", type=int, default=0, help="images per split; 0: all")
    args = parser.parse_args()
    dataset = DATASETS[args.dataset]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_table(args.shared, args.dataset, args.limit, folder)
        weights = args.shared / "weights/mobilenetv2_100_tf2ptq.safetensors"
        task = Task(dataset, table, weights, args.epochs or dataset.epochs)
        for side, train in (("Consilium", train_with_consilium), ("plain loop", train_baseline)):
            stopwatch = Stopwatch()
            metrics = train(task, folder)
            print(f"{args.dataset}, {side}: {stopwatch.wall:.0f} s, "
                  f"{stopwatch.processor:.0f} processor seconds")  # fmt: skip
            for key in METRICS:
                if key in metrics:
                    print(f"  {key} {format_metric(metrics[key])}")


def format_metric(estimate: Estimate) -> str:
    """The value with its interval and number of images."""
    if estimate.value is None:
        return f"null ({estimate.reason})"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f}), n {estimate.n}"


def write_table(shared: Path, name: str, limit: int, folder: Path) -> Path:
    """The dataset's table with a patient column and a val split of 15 % of the train patients.

    Patients that are in both official splits are left out of train and val.
    """
    root = shared / "data" / DATASETS[name].folder
    table = pd.read_csv(root / "labels.csv", dtype=str)
    if name == "pneumonia":  # patient numbers restart in each split and subtype
        table["patient"] = table["split"] + table["subtype"] + table["patient_id"]
    else:
        table["patient"] = table["session_group"]
    table["path"] = [str(root / file) for file in table["filename"]]
    is_test = table["split"] == "test"
    new_splits = pd.Series([assign_split(patient, 0.15, 0.0) for patient in table["patient"]])
    table["split"] = table["split"].where(is_test, new_splits)
    table = table[is_test | ~table["patient"].isin(table.loc[is_test, "patient"])]
    table = table.sample(frac=1, random_state=0).groupby("split").head(limit or len(table))
    table.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def train_with_consilium(task: Task, folder: Path) -> dict[str, Estimate]:
    """Test metrics of the checkpoint of the last epoch after `consilium fit`."""
    (folder / "member.yaml").write_text(yaml.safe_dump(make_config(task)))
    base, member = ROOT / "configs/base.yaml", folder / "member.yaml"
    fit_run, test_run = folder / "fit", folder / "test"
    run_training(["fit", "--config", str(base), "--config", str(member), "--run", str(fit_run)])
    run_training(
        ["test", "--config", str(fit_run / "config.yaml"), "--run", str(test_run),
         "--ckpt_path", str(fit_run / "last.ckpt")]
    )  # fmt: skip
    return dict(read_results(test_run / "results.json").metrics)


def make_config(task: Task) -> dict[str, Any]:
    """The differences from configs/base.yaml."""
    table = {"files": str(task.table), "patient": "patient", "label": task.dataset.label}
    data = {
        "source": {"class_path": "datamodules.Table", "init_args": table},
        "class_names": task.dataset.class_names,
        "preprocess": PREPROCESS,
        "augment": task.dataset.augment,
        "balance": {"class_weights": CLASS_WEIGHTS},
    }
    model = {
        "backbone": BACKBONE,
        "pretrained": str(task.weights),
        "backbone_args": {"pad_type": "same"},
        "optimizer": {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
    }
    return {
        "data": {"class_path": "datamodules.ImageDataModule", "init_args": data},
        "model": {"class_path": "lightning_modules.ImageClassifier", "init_args": model},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": task.epochs},
    }


def train_baseline(task: Task, folder: Path) -> dict[str, Estimate]:
    """Test metrics after the same epochs in a plain loop: same data, order, loss and steps."""
    data = load_data(task)
    torch.manual_seed(0)
    net = load_backbone(task)
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loss_function = nn.CrossEntropyLoss(torch.tensor(data.class_weights))
    for batch in train_batches(data, task.epochs):
        optimizer.zero_grad()
        loss_function(net(batch["image"]), batch["label"]).backward()
        optimizer.step()
    return test_metrics(net.eval(), data)


def load_data(task: Task) -> ImageDataModule:
    """The data module of `make_config`."""
    source = Table(str(task.table), "patient", label=task.dataset.label)
    data = ImageDataModule(
        source, task.dataset.class_names, Preprocess(**PREPROCESS), task.dataset.augment,
        balance=Balance(class_weights=CLASS_WEIGHTS),
    )  # fmt: skip
    data.setup("fit")
    data.setup("test")
    return data


def load_backbone(task: Task) -> nn.Module:
    """The backbone with its weight file and a new head, in training mode."""
    num_classes = len(task.dataset.class_names)
    net: nn.Module = timm.create_model(BACKBONE, num_classes=num_classes, pad_type="same")
    weights = {k: v for k, v in load_file(task.weights).items() if "classifier" not in k}
    net.load_state_dict(weights, strict=False)
    return net.train()


def train_batches(data: ImageDataModule, epochs: int) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of all epochs, in the order of `consilium fit`."""
    loader: Any = data.train_dataloader()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        yield from loader


def test_metrics(net: nn.Module, data: ImageDataModule) -> dict[str, Estimate]:
    """Metrics on the test split."""
    with torch.no_grad():
        outputs = [(batch["index"], net(batch["image"])) for batch in data.test_dataloader()]
    index, logits = (torch.cat(part).numpy() for part in zip(*outputs, strict=True))
    rows = data.manifest.table.iloc[index].drop(columns="path")
    return dict(compute_metrics(PredictionTable(rows, logits, data.class_names)))


if __name__ == "__main__":
    main()
