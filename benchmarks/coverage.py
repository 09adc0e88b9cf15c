"""Coverage of nominal 95 % intervals, by simulation.

Run: python -m benchmarks.coverage [--rounds N] [--patients N] [--images N] [--only NAME ...]
With `--subgroups`, it counts false alarms about groups of images, and planted biases found.
"""

import argparse
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.registry import metric_spec
from evaluation.predictions import PredictionTable
from evaluation.stats.estimate import Estimate, wilson_interval
from evaluation.stats.paired_tests import paired_differences
from evaluation.subgroups import compute_subgroups, flagged_gaps

CLASS_NAMES = ["none", "simple", "comminuted"]
PREVALENCE = np.array([0.5, 0.3, 0.2])
SIMULATED = (
    "accuracy", "balanced_accuracy", "precision_macro", "f1_macro", "specificity_macro", "kappa",
    "kappa_quadratic", "mcc", "nll", "brier", "ece", "ece_classwise", "auroc",
    "average_precision", "sensitivity_at_specificity_0.95", "recall/none", "recall/comminuted",
    "precision/comminuted", "specificity/none", "auroc/comminuted", "auroc/fractured",
    "ece_classwise/comminuted", "calibration_slope/comminuted", "calibration_slope/fractured",
    "calibration_intercept/comminuted", "calibration_in_the_large/comminuted",
    "net_benefit/comminuted", "net_benefit/fractured", "net_benefit_over_all/comminuted",
    "npv/comminuted", "number_needed_to_refer/comminuted", "ppv_at_prevalence/comminuted/0.1",
    "npv_at_prevalence/comminuted/0.1",
)  # fmt: skip
PAIRED = ("accuracy", "balanced_accuracy", "f1_macro", "kappa", "nll", "brier", "auroc",
          "net_benefit/comminuted")  # fmt: skip
NAMES = (*SIMULATED, *(f"{name} difference" for name in PAIRED))
META = {"clinical_use": {"class_groups": {"fractured": ["simple", "comminuted"]}}}


def simulate_tables(
    patients: int, images: int, seed: int
) -> tuple[PredictionTable, PredictionTable]:
    """Predictions of two models for patients with several images each.

    Half of the variance of the noise is common to a patient's images, and part of it to both
    models.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.choice(3, patients, p=PREVALENCE), images)
    patient, n = np.repeat(np.arange(patients), images), patients * images
    rows = pd.DataFrame(
        {
            "id": np.arange(n).astype(str),
            "label": labels,
            "split": "test",
            "patient": patient.astype(str),
            "study": "",
        }
    )
    common = rng.normal(size=(patients, 3))[patient] + rng.normal(size=(n, 3))
    tables = []
    for gain in (1.7, 1.5):
        own = rng.normal(size=(patients, 3))[patient] + rng.normal(size=(n, 3))
        logits = 1.3 * (gain * np.eye(3)[labels] + 0.5 * common + 0.4 * own)
        tables.append(PredictionTable(rows, logits, CLASS_NAMES, META))
    return tables[0], tables[1]


@lru_cache(maxsize=1)
def true_values(population: int) -> dict[str, float]:
    """Metrics in a large population, and `<metric> difference` of the two models."""
    first, second = (_values(table) for table in simulate_tables(population, 1, 987_654_321))
    return first | {f"{name} difference": first[name] - second[name] for name in PAIRED}


def _values(table: PredictionTable) -> dict[str, float]:
    metrics = compute_metrics(table, draws=2)
    return {name: e.value for name, e in metrics.items() if e.value is not None}


def coverage(
    rounds: int,
    patients: int,
    images: int,
    draws: int = 2000,
    population: int = 400_000,
    names: Sequence[str] = NAMES,
) -> dict[str, float]:
    """Fraction of the rounds whose interval contains the true value, by metric or difference.

    A calibration error depends on the number of images, so its true value is the mean over rounds.
    """
    expected = dict(true_values(population))
    estimates: dict[str, list[Estimate]] = {}
    specs = list(dict.fromkeys(map(metric_spec, set(SIMULATED) & set(names))))
    for seed in range(rounds):
        first, second = simulate_tables(patients, images, seed)
        for name, estimate in compute_metrics(first, draws, seed, specs).items():
            estimates.setdefault(name, []).append(estimate)
        if not set(names) <= set(SIMULATED):
            for name, difference in paired_differences(first, second, draws, seed).items():
                estimates.setdefault(f"{name} difference", []).append(difference.estimate)
    for name in set(names) & set(SIMULATED):
        if metric_spec(name).interval == "centered bootstrap":
            values = [e.value for e in estimates[name] if e.value is not None]
            expected[name] = float(np.mean(values))
    return {
        name: float(np.mean([_contains(e, expected[name]) for e in estimates[name]]))
        for name in names
    }


def simulate_groups(patients: int, images: int, seed: int, loss: float = 0.0) -> PredictionTable:
    """Predictions of two classes, as `simulate_tables`, with five attributes of the images.

    `loss` of the signal on images of scanner C is a bias: 1.55 costs 0.15 of its accuracy.
    """
    rng = np.random.default_rng(seed)
    patient, n = np.repeat(np.arange(patients), images), patients * images
    labels = np.repeat(rng.random(patients) < 0.4, images).astype(np.int64)
    attributes = {
        "sex": rng.choice(["female", "male"], patients)[patient],
        "age": rng.integers(5, 90, patients)[patient],
        "scanner": rng.choice(list("ABCD"), patients, p=[0.4, 0.3, 0.2, 0.1])[patient],
        "body_part": rng.choice(["elbow", "hand", "wrist"], patients)[patient],
        "view": rng.choice(["frontal", "lateral"], n),  # of an image, unlike the others
    }
    about = {"id": np.arange(n).astype(str), "label": labels, "split": "test", "study": ""}
    rows = pd.DataFrame({**about, "patient": patient.astype(str), **attributes})
    signal = (3.2 - loss * (attributes["scanner"] == "C")) * (labels - 0.5)
    noise = rng.normal(size=patients)[patient] + rng.normal(size=n)
    logits = np.stack([np.zeros(n), 1.6 * (signal + noise) - 0.4], axis=1)
    return PredictionTable(rows, logits, ["none", "fractured"])


def subgroup_alarms(
    rounds: int, patients: int, images: int, loss: float = 0.0
) -> dict[str, list[bool]]:
    """Whether a difference is flagged in each round: of any group, and of the biased one."""
    alarms: dict[str, list[bool]] = {}
    for seed in range(rounds):
        flagged = flagged_gaps(compute_subgroups(simulate_groups(patients, images, seed, loss)))
        kinds = {
            "any difference": len(flagged) > 0,
            "a group of one attribute": any(not s.is_intersection for s, _ in flagged),
            "an intersection of two": any(s.is_intersection for s, _ in flagged),
            "scanner: C": any(s.name == "scanner: C" for s, _ in flagged),
            "another group of one attribute": any(
                not s.is_intersection and s.attribute != "scanner" for s, _ in flagged
            ),
        }
        for name, is_flagged in kinds.items():
            alarms.setdefault(name, []).append(is_flagged)
    return alarms


def group_coverage(rounds: int, patients: int, images: int) -> dict[str, float]:
    """Fraction of intervals of groups without a bias that contain the true value, by metric.

    Of gaps to all other images, which are truly 0, the name ends with ` difference`.
    """
    truth = compute_subgroups(simulate_groups(200_000, 1, 987_654_321))[0].metrics
    covered: dict[str, list[bool]] = {}
    for seed in range(rounds):
        for s in compute_subgroups(simulate_groups(patients, images, seed))[1:]:
            for name, estimate in s.metrics.items():
                value = truth[name].value
                if estimate.value is not None and value is not None:
                    covered.setdefault(name, []).append(_contains(estimate, value))
            for name, gap in s.gaps.items():
                covered.setdefault(f"{name} difference", []).append(_contains(gap.estimate, 0.0))
    return {name: float(np.mean(of)) for name, of in covered.items()}


def _print_subgroups(rounds: int, patients: int, images: int) -> None:
    for loss in (0.0, 1.55):
        print(f"bias of scanner C: {loss:g}")
        for name, flagged in subgroup_alarms(rounds, patients, images, loss).items():
            low, high = wilson_interval(sum(flagged), rounds)
            of_all = f"{100 * np.mean(flagged):5.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            print(f"{name:<36} {of_all}", flush=True)
    for name, fraction in group_coverage(rounds, patients, images).items():
        print(f"{name:<46} {100 * fraction:5.1f} %")


def _contains(estimate: Estimate, value: float) -> bool:
    low, high = estimate.low, estimate.high
    return low is not None and high is not None and low <= value <= high


def main() -> None:
    """Prints the coverage of every interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--patients", type=int, default=150)
    parser.add_argument("--images", type=int, default=4, help="images of each patient")
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--subgroups", action="store_true", help="false alarms about groups")
    args = parser.parse_args()
    if args.subgroups:
        _print_subgroups(args.rounds, args.patients, args.images)
        return
    measured = coverage(args.rounds, args.patients, args.images, names=args.only)
    print(f"{args.patients} patients with {args.images} images each, {args.rounds} rounds")
    for name, fraction in measured.items():
        error = np.sqrt(fraction * (1 - fraction) / args.rounds)
        print(f"{name:<36} {100 * fraction:5.1f} % (simulation error {100 * error:.1f})")


if __name__ == "__main__":
    main()
