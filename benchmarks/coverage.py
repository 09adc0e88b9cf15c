"""How often a nominal 95 % interval holds the true figure, by simulation.

Run: python -m benchmarks.coverage [--rounds N] [--patients N] [--films N]
"""

import argparse
from functools import lru_cache

import numpy as np
import pandas as pd

from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.stats.estimate import Estimate
from evaluation.stats.paired_tests import differences
from evaluation.stats.summary import CENTRED

NAMES = ["none", "simple", "comminuted"]
SHARE = np.array([0.5, 0.3, 0.2])
SHOWN = (
    "accuracy", "balanced_accuracy", "precision_macro", "f1_macro", "specificity_macro", "kappa",
    "kappa_quadratic", "mcc", "nll", "brier", "ece", "ece_classwise", "auroc",
    "average_precision", "sensitivity_at_specificity_0.95", "recall/none", "recall/comminuted",
    "precision/comminuted", "specificity/none", "auroc/comminuted",
)  # fmt: skip
PAIRED = ("accuracy", "balanced_accuracy", "f1_macro", "kappa", "nll", "brier", "auroc")


def drawn(patients: int, films: int, seed: int) -> tuple[PredictionTable, PredictionTable]:
    """Two models on the same images: half of the noise belongs to the patient, a part to both."""
    rng = np.random.default_rng(seed)
    of_patient = rng.choice(3, patients, p=SHARE)
    label, n = np.repeat(of_patient, films), patients * films
    who = np.repeat(np.arange(patients), films)
    rows = pd.DataFrame(
        {
            "id": np.arange(n).astype(str),
            "label": label,
            "split": "test",
            "patient": who.astype(str),
            "study": "",
        }
    )
    shared = rng.normal(size=(patients, 3))[who] + rng.normal(size=(n, 3))
    tables = []
    for gain in (1.7, 1.5):
        own = rng.normal(size=(patients, 3))[who] + rng.normal(size=(n, 3))
        logits = 1.3 * (gain * np.eye(3)[label] + 0.5 * shared + 0.4 * own)
        tables.append(PredictionTable(rows, logits, NAMES))
    return tables[0], tables[1]


@lru_cache(maxsize=1)
def truth(population: int) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of so many patients, and the differences between the two models."""
    one, other = (_values(table) for table in drawn(population, 1, 987_654_321))
    return one, {name: one[name] - other[name] for name in PAIRED}


def _values(table: PredictionTable) -> dict[str, float]:
    return {
        name: f.value for name, f in compute_metrics(table, draws=2).items() if f.value is not None
    }


def coverage(
    rounds: int,
    patients: int,
    films: int,
    draws: int = 2000,
    population: int = 400_000,
) -> dict[str, float]:
    """Share of the rounds whose interval holds the truth, by figure; differences end in ` gap`.

    A calibration error rises as images get fewer; its interval is held against its mean here.
    """
    single, gaps = truth(population)
    found: dict[str, list[Estimate]] = {}
    for seed in range(rounds):
        one, other = drawn(patients, films, seed)
        for name, figure in compute_metrics(one, draws, seed).items():
            found.setdefault(name, []).append(figure)
        for name, gap in differences(one, other, draws, seed).items():
            found.setdefault(f"{name} gap", []).append(gap.figure)
    true = single | {f"{name} gap": gap for name, gap in gaps.items()}
    for name in CENTRED:
        true[name] = float(np.mean([f.value for f in found[name] if f.value is not None]))
    names = [*SHOWN, *(f"{name} gap" for name in PAIRED)]
    return {name: float(np.mean([_holds(f, true[name]) for f in found[name]])) for name in names}


def _holds(figure: Estimate, true: float) -> bool:
    return figure.low is not None and figure.high is not None and figure.low <= true <= figure.high


def main() -> None:
    """Prints the coverage of every interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--patients", type=int, default=150)
    parser.add_argument("--films", type=int, default=4, help="images of each patient")
    asked = parser.parse_args()
    print(f"{asked.patients} patients with {asked.films} images each, {asked.rounds} rounds")
    for name, share in coverage(asked.rounds, asked.patients, asked.films).items():
        error = np.sqrt(share * (1 - share) / asked.rounds)
        print(f"{name:<36} {100 * share:5.1f} % (simulation error {100 * error:.1f})")


if __name__ == "__main__":
    main()
