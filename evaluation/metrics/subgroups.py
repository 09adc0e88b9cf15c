"""Groups of images by attributes of the manifest, metrics of groups, and equalized odds."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product

import numpy as np
import pandas as pd

from evaluation.metrics.clinical import Outcomes, shown_outcomes, use_of
from evaluation.predictions import PredictionTable
from evaluation.stats.bootstrap import Clusters
from evaluation.stats.estimate import Estimates, make_estimate
from evaluation.stats.groups import (
    MIN_OF_KIND,
    MIN_PATIENTS,
    T_TEST,
    GroupMetric,
    count_patients,
)

AGE_BANDS = (18, 40, 65)  # years, of a column whose name has the word age
QUARTILES = (0.25, 0.5, 0.75)  # of other numbers
MAX_GROUPS = 12  # values of an attribute; more numbers are cut into bands
NOT_RECORDED = "not recorded"
MISSING = ("", "nan", "na", "n/a", "<na>", "unknown", NOT_RECORDED)
TOO_FEW_GROUPS = (
    f"fewer than two groups have {MIN_PATIENTS} patients, {MIN_OF_KIND} of them with such images"
)
ONE_CLASS = f"each of its groups of {MIN_PATIENTS} patients or more has one class only"
FAMILIES = {  # of metrics that are corrected together
    "accuracy": "performance", "auroc": "performance", "recall": "equalized odds",
    "specificity": "equalized odds", "observed_minus_expected": "calibration",
}  # fmt: skip
ODDS = {"tpr_gap": "recall", "fpr_gap": "specificity"}  # equalized odds, and rates of the groups


@dataclass(frozen=True)
class Groups:
    """The groups of an attribute: its values, or bands of numbers."""

    names: list[str]
    of_row: np.ndarray  # (n,), index of each row's group in `names`, -1 if the value is missing


def attribute_groups(table: PredictionTable, only: str = "") -> dict[str, Groups]:
    """Groups of each attribute, or of `only`, by attribute; ValueError if `only` has none.

    Left out are attributes with one value, with more than `MAX_GROUPS` texts, or that determine
    the class, see `class_attributes`.
    """
    if only and only not in table.attributes:
        raise ValueError(f"attribute {only!r} is not among {table.attributes}")
    of_all, left_out = _all_groups(table), class_attributes(table)
    if only in left_out:
        raise ValueError(f"attribute {only!r}: {ONE_CLASS}")
    names = {only} if only else of_all.keys() - left_out
    return {name: groups for name, groups in of_all.items() if name in names}


def class_attributes(table: PredictionTable) -> list[str]:
    """Names of the attributes that determine the class, see `_has_one_class`."""
    return [name for name, groups in _all_groups(table).items() if _has_one_class(groups, table)]


def _has_one_class(groups: Groups, table: PredictionTable) -> bool:
    """Whether each group of `MIN_PATIENTS` has one class only; False without such groups."""
    masks = [groups.of_row == at for at in range(len(groups.names))]
    large = [mask for mask in masks if len(set(table.patients[mask])) >= MIN_PATIENTS]
    return bool(large) and all(len({*table.labels[mask]} - {-1}) == 1 for mask in large)


def _all_groups(table: PredictionTable) -> dict[str, Groups]:
    """Groups of each attribute that has 2 to `MAX_GROUPS`, by attribute."""
    of_all = {name: _groups(name, table.rows[name]) for name in table.attributes}
    return {name: groups for name, groups in of_all.items() if 1 < len(groups.names) <= MAX_GROUPS}


def _groups(name: str, column: pd.Series) -> Groups:
    """Groups of a column: bands of ages and of more than `MAX_GROUPS` numbers, else its values."""
    codes, values = pd.factorize(column)
    text = pd.Series([str(value).strip() for value in values], dtype=object)
    is_known = ~text.str.lower().isin(MISSING).to_numpy(bool)
    numbers = pd.to_numeric(text.str.removesuffix("Y"), errors="coerce").to_numpy(float)
    is_age = "age" in map(str.lower, re.findall("[A-Z]?[a-z]+|[A-Z]+", name))  # 045Y in DICOM
    is_number = is_known.any() and np.isfinite(numbers[is_known]).all()
    if is_number and (is_age or np.unique(numbers[is_known]).size > MAX_GROUPS):
        of_row = numbers[codes[(codes >= 0) & is_known[codes]]]
        edges = AGE_BANDS if is_age else np.unique(np.quantile(of_row, QUARTILES))
        bands = _band_names(edges)
        text = pd.Series([bands[at] for at in np.searchsorted(edges, numbers, side="right")])
        names = [band for band in bands if (text[is_known] == band).any()]
    else:
        names = sorted(set(text[is_known]))
    position = {name: at for at, name in enumerate(names)}
    of_value = [position[t] if known else -1 for t, known in zip(text, is_known, strict=True)]
    return Groups(names, np.array([*of_value, -1])[codes])  # a missing cell has the code -1


def _band_names(edges: Sequence[float] | np.ndarray) -> list[str]:
    inner = [f"{low:g} to under {high:g}" for low, high in pairwise(edges)]
    return [f"under {edges[0]:g}", *inner, f"{edges[-1]:g} or more"]


def subgroup_outcomes(table: PredictionTable) -> list[str]:
    """Outcomes that groups are compared by: named ones, the second of two classes, or each."""
    names, named = shown_outcomes(table), len(use_of(table).class_groups)
    return names[:named] if named and len(table.class_names) > 2 else names


def decision_threshold(table: PredictionTable) -> float | None:
    """The threshold that `clinical_use` states; None if the largest probability decides."""
    return (table.meta.get("clinical_use") or {}).get("threshold")


def group_metrics(
    table: PredictionTable, clusters: Clusters, names: Iterable[str] = FAMILIES
) -> dict[str, GroupMetric]:
    """GroupMetric by full name: accuracy, and each of `names` for each of `subgroup_outcomes`."""
    outcomes, patient = Outcomes.from_table(table), clusters.patient_of_row
    threshold = decision_threshold(table)
    probabilities, positives = outcomes.probabilities, outcomes.positive
    metrics = {"accuracy": GroupMetric.mean(table.predictions == table.labels, patient)}
    for name, outcome in product(names, subgroup_outcomes(table)):
        at = outcomes.names.index(outcome)
        p, positive = probabilities[:, at], positives[:, at]
        decided = outcomes.members[at][table.predictions] if threshold is None else p >= threshold
        if name == "auroc":
            metrics[f"auroc/{outcome}"] = GroupMetric.auroc(p, patient, positive)
        elif name == "recall":
            metrics[f"recall/{outcome}"] = GroupMetric.mean(decided, patient, positive)
        elif name == "specificity":
            metrics[f"specificity/{outcome}"] = GroupMetric.mean(~decided, patient, ~positive)
        elif name == "observed_minus_expected":
            metrics[f"{name}/{outcome}"] = GroupMetric.mean(positive - p, patient)
    return metrics


def equalized_odds(table: PredictionTable, clusters: Clusters, draws: int, seed: int) -> Estimates:
    """Largest differences of `tpr_gap/<attribute>` (sensitivity) and `fpr_gap/…` (1 - specificity).

    They are the largest of all pairs of groups and all outcomes. The interval holds for all of
    them together, by Bonferroni.
    """
    estimates, metrics = Estimates(), group_metrics(table, clusters, ODDS.values())
    for attribute, groups in attribute_groups(table).items():
        masks = [groups.of_row == at for at in range(len(groups.names))]
        sizes = [count_patients(clusters.patient_of_row[mask]) for mask in masks]
        parts = [mask for mask, n in zip(masks, sizes, strict=True) if n >= MIN_PATIENTS]
        for name, rate in ODDS.items():
            rates = [metric for key, metric in metrics.items() if key.startswith(f"{rate}/")]
            pairs = [m.difference(*pair) for m in rates for pair in combinations(parts, 2)]
            gaps = [gap for gap in pairs if gap]
            size = len(table), clusters.num_patients, TOO_FEW_GROUPS
            values = np.array([[abs(gap.value), gap.half_width(len(gaps))] for gap in gaps])
            value, half = values.T if gaps else np.full((2, 1), np.nan)
            ends = np.maximum((value - half).max(), 0), np.minimum((value + half).max(), 1)
            estimates[f"{name}/{attribute}"] = make_estimate((value.max(), *ends), T_TEST, *size)
    return estimates
