"""A real pretrained backbone on two real sets, beside a bare PyTorch loop.

Run: python -m benchmarks.real SHARED [--set pneumonia|idrid] [--epochs N] [--limit N]

SHARED holds `weights/mobilenetv2_100_tf2ptq.safetensors`, `data/pneumonia_cxr` and `data/idrid`.
Both sides see the same pictures, augmented alike in the same order; validation, checkpoints,
prediction tables and the report are ours alone and stand in our time.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
import timm
import torch
import yaml
from safetensors.torch import load_file

from consilium.training.lightning_cli import run_training
from datamodules import ImageDataModule, Table
from datamodules.preprocess import Preprocess
from datamodules.samplers import Balance
from datamodules.splits import assign_split
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.results import read_results

SHOWN = ("accuracy", "balanced_accuracy", "auroc", "kappa_quadratic")
HALF = [0.5, 0.5, 0.5]
SETS = {
    "pneumonia": ("pneumonia_cxr", "label", ["NORMAL", "PNEUMONIA"], 5, "chest"),
    "idrid": ("idrid", "dr_grade", ["0", "1", "2", "3", "4"], 25, "retina"),
}


def listed(shared: Path, name: str, limit: int, folder: Path) -> Path:
    """The set's table with patients of its own and a val split cut from train by patient."""
    root = shared / "data" / SETS[name][0]
    table = pd.read_csv(root / "labels.csv", dtype=str)
    if name == "pneumonia":  # person numbers restart in each split and subtype
        table["patient"] = table["split"] + table["subtype"] + table["patient_id"]
    else:
        table["patient"] = table["session_group"]
    table["path"] = [str(root / file) for file in table["filename"]]
    cut = [assign_split(patient, 0.15, 0.0) for patient in table["patient"]]
    table["split"] = table["split"].where(table["split"] == "test", pd.Series(cut))
    tested = set(table.loc[table["split"] == "test", "patient"])  # the official split is not clean
    table = table[(table["split"] == "test") | ~table["patient"].isin(tested)]
    table = table.sample(frac=1, random_state=0).groupby("split").head(limit or len(table))
    table.to_csv(folder / "set.csv", index=False)
    return folder / "set.csv"


def settings(asked: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Our config: data, model and trainer of one fit."""
    _, label, names, epochs, augment = SETS[asked.set]
    source = {"files": str(listed(Path(asked.shared), asked.set, asked.limit, folder))}
    source |= {"patient": "patient", "label": label}
    weights = Path(asked.shared) / "weights/mobilenetv2_100_tf2ptq.safetensors"
    optimizer = {"lr": 5e-4, "weight_decay": 0.01}
    data = {
        "source": {"class_path": "datamodules.Table", "init_args": source},
        "class_names": names,
        "preprocess": {"size": 112, "mean": HALF, "std": HALF},
        "augment": augment,
        "balance": {"class_weights": "sqrt"},
    }
    model = {"backbone": "mobilenetv2_100", "pretrained": str(weights)}
    model |= {"backbone_args": {"pad_type": "same"}, "optimizer": optimizer}
    return {
        "data": {"class_path": "datamodules.ImageDataModule", "init_args": data},
        "model": {"class_path": "lightning_modules.ImageClassifier", "init_args": model},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": asked.epochs or epochs},
    }


def ours(said: dict[str, object], folder: Path) -> dict[str, object]:
    """Figures of the last epoch's checkpoint after our fit."""
    (folder / "member.yaml").write_text(yaml.safe_dump(said))
    base = Path(__file__).parents[1] / "configs/base.yaml"
    where = ["--run", str(folder / "run")]
    run_training(["fit", "--config", str(base), "--config", str(folder / "member.yaml"), *where])
    last = ["--ckpt_path", str(folder / "run/last.ckpt"), "--run", str(folder / "last")]
    run_training(["test", "--config", str(folder / "run/config.yaml"), *last])
    return dict(read_results(folder / "last/results.json").metrics)


def bare(said: dict, folder: Path) -> dict[str, object]:
    """BARELOOP: the same data, augmentation, order, loss and steps, without our frame."""
    d, m = said["data"]["init_args"], said["model"]["init_args"]
    source = Table(**d["source"]["init_args"])
    data = ImageDataModule(
        source, d["class_names"], Preprocess(**d["preprocess"]), d["augment"],
        balance=Balance(**d["balance"]),
    )  # fmt: skip
    data.setup("fit")
    data.setup("test")
    torch.manual_seed(0)
    net = timm.create_model("mobilenetv2_100", num_classes=len(d["class_names"]), pad_type="same")
    weights = load_file(m["pretrained"])
    net.load_state_dict({k: v for k, v in weights.items() if "classifier" not in k}, strict=False)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-4, weight_decay=0.01)
    cost = torch.nn.CrossEntropyLoss(torch.tensor(data.class_weights))
    loader = data.train_dataloader()
    for epoch in range(said["trainer"]["max_epochs"]):
        net.train()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            cost(net(batch["image"]), batch["label"]).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        seen = [(b["index"], net(b["image"])) for b in data.test_dataloader()]
    index, logits = (torch.cat(part).numpy() for part in zip(*seen, strict=True))
    rows = data.manifest.table.iloc[index].drop(columns="path")
    return dict(compute_metrics(PredictionTable(rows, logits, d["class_names"])))


def main() -> None:
    """Ours, then the bare loop: figures with intervals, wall and CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared")
    parser.add_argument("--set", choices=sorted(SETS), default="pneumonia")
    parser.add_argument("--epochs", type=int, default=0, help="0: as published above")
    parser.add_argument("--limit", type=int, default=0, help="pictures a split; 0 takes all")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        said = settings(asked, folder)
        for side, work in (("ours", ours), ("bare loop", bare)):
            wall, cpu = time.perf_counter(), time.process_time()
            found = work(said, folder)
            spent = f"{time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} CPU s"
            print(f"{asked.set}, {side}: {spent}")
            for key in [key for key in SHOWN if key in found]:
                one = found[key]
                print(f"  {key} {one.value:.3f} ({one.low:.3f} to {one.high:.3f}), n {one.n}")


if __name__ == "__main__":
    main()
