"""A whole ensemble from tables: 100,000 samples, 4 members, 5 classes; seconds and memory.

Run: python -m benchmarks.tables [--samples N] [--films N]
"""

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import ensemble
from evaluation.predictions import PredictionTable
from evaluation.reports import ensemble as ensemble_report
from evaluation.results import write_results
from evaluation.voters import VoterOptions

CLASSES = ["none", "mild", "moderate", "severe", "proliferative"]
PARTS = ["elbow", "finger", "hand", "wrist"]


def members(samples: int, films: int, split: str, seed: int) -> dict[str, PredictionTable]:
    """Four members that share some of their errors, as members do."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, samples)
    patient = np.arange(samples) // films
    rows = pd.DataFrame(
        {
            "id": [f"{split}/{i}" for i in range(samples)],
            "label": label,
            "split": split,
            "patient": [f"patient{p}" for p in patient],
            "study": [f"study{p}" for p in patient],
            "body_part": np.array(PARTS)[patient % 4],
        }
    )
    shared = rng.normal(size=(samples, 5))
    found = {}
    for at in range(4):
        own = rng.normal(size=(samples, 5)) * (0.8 + at / 10)
        logits = 2 * (2.2 * np.eye(5)[label] + shared + own)
        meta = {"weights": f"weights{at}", "manifest_digest": "generated"}
        found[f"member{at}"] = PredictionTable(rows, logits, CLASSES, meta)
    return found


def main() -> None:
    """Writes and reads the tables, fits every voter, judges all, writes results; prints seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--films", type=int, default=1, help="images of each patient")
    asked = parser.parse_args()
    made = [members(asked.samples, asked.films, s, i) for i, s in enumerate(("val", "test"))]
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), made)


def measure(folder: Path, made: list[dict[str, PredictionTable]]) -> None:
    """Times each step and prints the whole."""
    times, busy = [time.perf_counter()], [time.process_time()]

    def lap(what: str) -> None:
        times.append(time.perf_counter())
        busy.append(time.process_time())
        spent = f"{times[-1] - times[-2]:7.2f} s  (processor {busy[-1] - busy[-2]:6.2f} s)"
        print(f"{what:<44} {spent}", flush=True)

    for split, tables in zip(("val", "test"), made, strict=True):
        for name, table in tables.items():
            table.write(folder / split / f"{name}.parquet")
    lap("8 tables written")
    val, test = (
        {name: PredictionTable.read(folder / split / f"{name}.parquet") for name in made[0]}
        for split in ("val", "test")
    )
    lap("8 tables read")
    fitted = ensemble.fit_voters(val, VoterOptions("body_part", ["elbow"]))
    lap(f"{len(fitted.ensembles)} voters fitted and calibrated on val")
    judged = ensemble.evaluate_voters(fitted, test)
    lap("all figures and paired differences on test")
    written = ensemble_report.ensemble_results("ensemble", fitted, judged, test, "learned")
    write_results(folder / "results.json", replace(written, meta={}))
    lap("results.json written")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    intervals = sum(len(each) for each in written.others.values())
    spent = f"{times[-1] - times[0]:7.2f} s  (processor {busy[-1] - busy[0]:6.2f} s)"
    print(f"{'all':<44} {spent}; {intervals} figures; peak {most:.2f} GiB")


if __name__ == "__main__":
    main()
