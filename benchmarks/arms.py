"""What sparsity costs in accuracy: arms that start from one dense stage, paired on one test split.

Run: python -m benchmarks.arms FOLDER fit SEED ARM [--set phantom|pneumonia] [--shared DIR]
     python -m benchmarks.arms FOLDER judge

`dense` is stage 1 and comes first. `control`, `ast25` and `random25` are stage 2 alone from its
best weights, at density 1, at 25 % by magnitude and at 25 % by chance; `single10` is the old
recipe, a tenth of the weights from the first step on, for as many epochs as both stages. The
network is small (0.4 M parameters), the pictures 64 px. SHARED holds `data/pneumonia_cxr`.
"""

import argparse
import hashlib
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
SETS = ("phantom", "pneumonia")
EPOCHS = (8, 8)
RATES = (3e-3, 1e-3)
ARMS = ("control", "ast25", "random25", "single10")


def phantom() -> dict[str, object]:
    """Generated chest radiographs, half of 3,000 patients tested."""
    made = {"kind": "chest", "patients": 3000, "films": 1, "size": 64, "val": 0.1, "test": 0.5}
    return {
        "source": {"class_path": "datamodules.Phantoms", "init_args": made},
        "class_names": ["normal", "tuberculosis", "pneumonia", "covid"],
    }


def pneumonia(shared: Path, folder: Path) -> dict[str, object]:
    """Paediatric films, split anew by patient so that half are tested."""
    root = shared / "data/pneumonia_cxr"
    table = pd.read_csv(root / "labels.csv", dtype=str)
    table["patient"] = table["split"] + table["subtype"] + table["patient_id"]
    table["path"] = [str(root / name) for name in table["filename"]]
    same = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in table["path"]]
    table = table[~pd.Series(same).duplicated()].copy()  # 32 pictures are there twice
    table["split"] = [split_of(patient, 0.1, 0.5) for patient in table["patient"]]
    folder.mkdir(parents=True, exist_ok=True)
    table.drop(columns="filename").to_csv(folder / "set.csv", index=False)
    source = {"files": str(folder / "set.csv"), "patient": "patient"}
    return {
        "source": {"class_path": "datamodules.Table", "init_args": source},
        "class_names": ["NORMAL", "PNEUMONIA"],
        "augment": "chest",
        "reading": {"cache": str(folder / "cache")},
    }


def sparse(arm: str, folder: Path) -> dict[str, object]:
    """Settings of TwoStageSparseTraining of one arm."""
    (dense, epochs), (first, second) = EPOCHS, RATES
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
    found = phantom() if name == "phantom" else pneumonia(asked.shared, asked.folder / name)
    found |= {"preprocess": {"size": 64}, "batch_size": 32, "workers": 0}
    data = {"class_path": "datamodules.ImageDataModule", "init_args": found}
    way = {"lr": RATES[0], "weight_decay": 0.05, "schedule": "onecycle", "warmup_epochs": 2}
    arguments = {"backbone": "test_resnet", "optimisation": way}
    model = {"class_path": "lightning_modules.ImageClassifier", "init_args": arguments}
    trainer: dict[str, object] = {"accelerator": "cpu", "devices": 1, "max_epochs": EPOCHS[0]}
    if asked.arm != "dense":
        settings = sparse(asked.arm, folder)
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
    for name in SETS:
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
    one.add_argument("--set", choices=SETS, default="phantom")
    one.add_argument("--shared", type=Path, default=Path("shared"))
    asked = parser.parse_args()
    asked.work(asked)


if __name__ == "__main__":
    main()
