"""What sparsity costs in accuracy: arms that start from one dense stage, paired on one test split.

Run: python -m benchmarks.arms FOLDER fit SEED ARM [--set phantom|pneumonia] [--shared DIR]
     python -m benchmarks.arms FOLDER judge

`dense` is stage 1 and comes first. `control`, `ast25` and `random25` are stage 2 alone from its
best weights, at density 1, at 25 % by magnitude and at 25 % by chance; `single10` is the old
recipe, a tenth of the weights from the first step on, for as many epochs as both stages. SHARED has
`weights/mobilenetv2_100_tf2ptq.safetensors` and `data/pneumonia_cxr`.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from commands.lightning import run
from datamodules.manifest import split_of
from evaluation import comparison
from evaluation.report import number
from evaluation.table import PredictionTable

BASE = Path(__file__).parents[1] / "configs/base.yaml"
EPOCHS = {"phantom": (10, 10), "pneumonia": (6, 6)}
RATES = {"phantom": (3e-3, 1e-3), "pneumonia": (1e-3, 3e-4)}
ARMS = ("control", "ast25", "random25", "single10")


def phantom() -> tuple[dict[str, object], dict[str, object]]:
    """Data and model on generated chest radiographs: 1,500 patients tested."""
    made = {"kind": "chest", "patients": 3000, "films": 1, "size": 64, "val": 0.1, "test": 0.5}
    data = {
        "source": {"class_path": "datamodules.Phantoms", "init_args": made},
        "class_names": ["normal", "tuberculosis", "pneumonia", "covid"],
        "preprocess": {"size": 64},
    }
    return data, {"backbone": "test_resnet"}


def pneumonia(shared: Path, folder: Path) -> tuple[dict[str, object], dict[str, object]]:
    """Data and model on paediatric films, split anew by patient so that most are tested."""
    root = shared / "data/pneumonia_cxr"
    table = pd.read_csv(root / "labels.csv", dtype=str)
    table["patient"] = table["split"] + table["subtype"] + table["patient_id"]
    table["path"] = [str(root / name) for name in table["filename"]]
    table["split"] = [split_of(patient, 0.08, 0.65) for patient in table["patient"]]
    folder.mkdir(parents=True, exist_ok=True)
    table.drop(columns="filename").to_csv(folder / "set.csv", index=False)
    source = {"files": str(folder / "set.csv"), "patient": "patient"}
    half = [0.5, 0.5, 0.5]
    data = {
        "source": {"class_path": "datamodules.Table", "init_args": source},
        "class_names": ["NORMAL", "PNEUMONIA"],
        "preprocess": {"size": 96, "mean": half, "std": half},
        "augment": "chest",
        "batch_size": 16,
        "reading": {"cache": str(folder / "cache")},
    }
    weights = str(shared / "weights/mobilenetv2_100_tf2ptq.safetensors")
    arguments = {"pad_type": "same"}
    return data, {
        "backbone": "mobilenetv2_100",
        "pretrained": weights,
        "backbone_args": arguments,
    }


def sparse(name: str, arm: str, folder: Path) -> dict[str, object]:
    """Settings of TwoStageSparseTraining of one arm."""
    dense, epochs = EPOCHS[name]
    first, second = RATES[name]
    if arm == "single10":
        way = {"lr": first, "schedule": "onecycle", "warmup_epochs": 2}
        length = {"dense_epochs": 0, "sparse_epochs": dense + epochs}
        return {"density": 0.1, **length, "ramp": {"share": 0.0}, "recovery": way}
    start = str(folder / "dense/best.ckpt")
    way = {"lr": second, "schedule": "cosine", "warmup_epochs": 1}
    return {
        "density": 1.0 if arm == "control" else 0.25,
        "choice": "random" if arm == "random25" else "magnitude",
        **{"dense_epochs": 0, "sparse_epochs": epochs, "start": start, "recovery": way},
    }


def fit(asked: argparse.Namespace) -> None:
    """One arm of one seed."""
    name, folder = asked.set, asked.folder / asked.set / str(asked.seed)
    parts = phantom() if name == "phantom" else pneumonia(asked.shared, asked.folder / name)
    data, model = ({"init_args": part} for part in parts)
    data["class_path"] = "datamodules.ImageDataModule"
    model["class_path"] = "lightning_modules.ImageClassifier"
    way = {"lr": RATES[name][0], "weight_decay": 0.05, "schedule": "onecycle", "warmup_epochs": 2}
    model["init_args"]["optimisation"] = way
    data["init_args"]["workers"] = 0
    trainer: dict[str, object] = {"accelerator": "cpu", "devices": 1}
    trainer["max_epochs"] = EPOCHS[name][0]
    if asked.arm != "dense":
        settings = sparse(name, asked.arm, folder)
        trainer["max_epochs"] = settings["dense_epochs"] + settings["sparse_epochs"]
        callback = {"class_path": "callbacks.TwoStageSparseTraining", "init_args": settings}
        trainer["callbacks+"] = [callback]
    said = {"seed_everything": asked.seed, "data": data, "model": model, "trainer": trainer}
    folder.mkdir(parents=True, exist_ok=True)
    member = folder / f"{asked.arm}.yaml"
    member.write_text(yaml.safe_dump(said))
    where = ["--run", str(folder / asked.arm)]
    run(["fit", "--config", str(BASE), "--config", str(member), *where])


def judge(asked: argparse.Namespace) -> None:
    """Every arm against its control: each seed, and all seeds drawn together by patient."""
    for name in sorted(EPOCHS):
        seeds = sorted(p.name for p in (asked.folder / name).glob("[0-9]*") if p.is_dir())
        tables = {
            (seed, arm): PredictionTable.read(
                asked.folder / name / seed / arm / "predictions/test.parquet"
            )
            for seed in seeds
            for arm in ("dense", *ARMS)
            if (asked.folder / name / seed / arm / "results.json").is_file()
        }
        for arm in ARMS:
            pairs = [(tables[s, arm], tables[s, "control"]) for s in seeds
                     if (s, arm) in tables and (s, "control") in tables]  # fmt: skip
            for seed, (one, control) in zip(seeds, pairs, strict=False):
                gap = comparison.differences(one, control)["accuracy"].figure
                right = np.mean(one.logits.argmax(1) == one.labels)
                print(f"{name} seed {seed} {arm}: {right:.4f}, minus control {number(gap)}")
            if pairs:
                print(f"{name} {arm}, mean of {len(pairs)} seeds: {pooled(pairs)}")


def pooled(pairs: list[tuple[PredictionTable, PredictionTable]]) -> str:
    """Mean over seeds of the paired difference in accuracy; patients drawn, all seeds at once."""
    gaps = np.mean([_right(one) - _right(control) for one, control in pairs], axis=0)
    codes, patients = pd.factorize(pairs[0][0].rows.sort_values("id")["patient"])
    totals = np.bincount(codes, gaps), np.bincount(codes)
    drawn = np.random.default_rng(0).integers(len(patients), size=(2000, len(patients)))
    means = totals[0][drawn].sum(1) / totals[1][drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{100 * gaps.mean():+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"


def _right(table: PredictionTable) -> np.ndarray:
    right = pd.Series(table.logits.argmax(1) == table.labels, index=table.rows["id"])
    return right.sort_index().to_numpy(float)


def main() -> None:
    """Fits one arm, or prints the differences of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("judge").set_defaults(work=judge)
    one = verbs.add_parser("fit")
    one.set_defaults(work=fit)
    one.add_argument("seed", type=int)
    one.add_argument("arm", choices=("dense", *ARMS))
    one.add_argument("--set", choices=sorted(EPOCHS), default="phantom")
    one.add_argument("--shared", type=Path, default=Path("shared"))
    asked = parser.parse_args()
    asked.work(asked)


if __name__ == "__main__":
    main()
