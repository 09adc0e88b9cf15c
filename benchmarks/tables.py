"""Time and memory of an ensemble's evaluation from the prediction tables of four members.

Images have six attributes, by which the ensemble and the members are evaluated as well.

Run: python -m benchmarks.tables [--samples N] [--images N]
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.resources import Stopwatch, peak_memory
from evaluation import ensemble
from evaluation.predictions import PredictionTable
from evaluation.reports import ensemble as ensemble_report
from evaluation.results import write_results
from evaluation.subgroups import compute_subgroups
from evaluation.voters import VoterOptions

CLASS_NAMES = ["none", "mild", "moderate", "severe", "proliferative"]
BODY_PARTS = ["elbow", "finger", "hand", "wrist"]
Tables = dict[str, PredictionTable]


def main() -> None:
    """Generates predictions and prints the time of each step of their evaluation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000, help="per split (100000)")
    parser.add_argument("--images", type=int, default=1, help="images per patient (1)")
    args = parser.parse_args()
    tables = {
        split: generate_tables(args.samples, args.images, split, seed)
        for seed, split in enumerate(("val", "test"))
    }
    with tempfile.TemporaryDirectory() as folder:
        time_evaluation(Path(folder), tables)


def generate_tables(num_samples: int, images_per_patient: int, split: str, seed: int) -> Tables:
    """Predictions of four members with correlated errors."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASS_NAMES), num_samples)
    patients = np.arange(num_samples) // images_per_patient
    rows = pd.DataFrame(
        {
            "id": [f"{split}/{i}" for i in range(num_samples)],
            "label": labels,
            "split": split,
            "patient": [f"patient{p}" for p in patients],
            "study": [f"study{p}" for p in patients],
            "body_part": np.array(BODY_PARTS)[patients % 4],
            "sex": rng.choice(["female", "male"], num_samples),
            "age": rng.integers(0, 95, num_samples),
            "view": rng.choice(["frontal", "lateral", "oblique"], num_samples),
            "scanner": rng.choice(list("ABCD"), num_samples),
            "site": rng.choice(["north", "south", "east", "west"], num_samples),
        }
    )
    shape = (num_samples, len(CLASS_NAMES))
    common_noise, tables = rng.normal(size=shape), {}
    for number in range(4):
        own_noise = rng.normal(size=shape) * (0.8 + number / 10)
        logits = 2 * (2.2 * np.eye(len(CLASS_NAMES))[labels] + common_noise + own_noise)
        meta = {"weights": f"weights{number}", "manifest_digest": "generated"}
        tables[f"member{number}"] = PredictionTable(rows, logits, CLASS_NAMES, meta)
    return tables


def time_evaluation(folder: Path, tables: dict[str, Tables]) -> None:
    """Prints the time of each step, and the total with the peak memory."""
    total, step = Stopwatch(), Stopwatch()

    def print_step(name: str) -> None:
        nonlocal step
        print_time(name, step)
        step = Stopwatch()

    for split, members in tables.items():
        for name, table in members.items():
            table.write(folder / split / f"{name}.parquet")
    print_step("write 8 tables")
    val, test = (
        {name: PredictionTable.read(folder / split / f"{name}.parquet") for name in members}
        for split, members in tables.items()
    )
    print_step("read 8 tables")
    fitted = ensemble.fit_voters(val, VoterOptions("body_part", ["elbow"]))
    print_step(f"fit and calibrate {len(fitted.ensembles)} voters on validation")
    evaluated = ensemble.evaluate_voters(fitted, test)
    print_step("all metrics and paired differences on test")
    combined = ensemble.combine_members(fitted.ensembles["learned"], list(test.values()))
    groups = [compute_subgroups(table) for table in (combined, *test.values())]
    print_step(f"{len(groups[0])} groups of the ensemble and of each member")
    results = ensemble_report.ensemble_results("ensemble", fitted, evaluated, test, "learned")
    write_results(folder / "results.json", replace(results, subgroups=groups[0], meta={}))
    print_step("write results.json")
    num_metrics = sum(len(metrics) for metrics in results.others.values())
    print_time("total", total)
    print(f"{num_metrics} metrics; peak memory {peak_memory() / 1024:.2f} GiB")


def print_time(name: str, stopwatch: Stopwatch) -> None:
    """One line with wall-clock and processor seconds."""
    wall, processor = stopwatch.wall, stopwatch.processor
    print(f"{name:<44} {wall:7.2f} s  (processor {processor:6.2f} s)", flush=True)


if __name__ == "__main__":
    main()
