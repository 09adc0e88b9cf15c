"""Metrics of groups of images, and differences of each group to all others, corrected by Holm."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from evaluation.metrics.registry import metric_spec
from evaluation.metrics.subgroups import (
    FAMILIES,
    NOT_RECORDED,
    Groups,
    attribute_groups,
    group_metrics,
    subgroup_outcomes,
)
from evaluation.predictions import PredictionTable
from evaluation.stats.bootstrap import Clusters
from evaluation.stats.estimate import Estimate, Estimates, make_estimate
from evaluation.stats.groups import MIN_PATIENTS, T_TEST, GroupMetric, count_patients
from evaluation.stats.paired_tests import Difference, Differences, holm

ALL = "all"  # images, the first subgroup
TOO_SMALL = f"fewer than {MIN_PATIENTS} patients"
TEST = f"{T_TEST}, Holm"
SIGNIFICANCE_LEVEL = 0.05  # of corrected p-values


@dataclass(frozen=True)
class Subgroup:
    """Images with one value of an attribute, or of each of two; all images if that is ""."""

    attribute: str
    group: str
    n: int
    patients: int
    prevalence: dict[str, float]  # of each outcome
    is_intersection: bool
    metrics: Estimates
    gaps: Differences  # to all other images with a value, with corrected p-values

    @property
    def name(self) -> str:
        """Attribute and group."""
        return f"{self.attribute}: {self.group}" if self.attribute else self.group

    def is_worse(self, metric: str) -> bool:
        """Whether a metric is worse in the group than in all other images."""
        spec, gap, value = metric_spec(metric), self.gaps[metric], self.metrics[metric].value
        difference = gap.estimate.value or 0.0
        if spec.ideal is None or value is None:
            return spec.is_improvement(-difference)
        return abs(value - spec.ideal) > abs(value - difference - spec.ideal)


def compute_subgroups(table: PredictionTable, only: str = "") -> list[Subgroup]:
    """All labeled images, groups of each attribute (or of one), intersections of two attributes.

    A group has no metric with fewer than 20 patients; those are left out of intersections. Images
    without a value are a group that is not compared. Empty if no attribute has groups.
    """
    labeled = table.labeled
    attributes = attribute_groups(labeled, only) if len(labeled) else {}
    if not attributes:
        return []
    clusters = Clusters.from_patients(labeled.patients, labeled.labels)
    patient, metrics = clusters.patient_of_row, group_metrics(labeled, clusters)
    everywhere = np.ones(len(labeled), dtype=bool)
    parts = [(("", ALL), everywhere, ~everywhere)]
    for attribute, groups in attributes.items():
        is_recorded = groups.of_row >= 0
        for at, group in enumerate(groups.names):
            rows = groups.of_row == at
            parts.append(((attribute, group), rows, is_recorded & ~rows))
        if not is_recorded.all():
            parts.append(((attribute, NOT_RECORDED), ~is_recorded, ~everywhere))
    subgroups = [_subgroup(*part, patient, metrics) for part in parts]
    if len(subgroup_outcomes(labeled)) > 1:  # else there are hundreds of tests
        metrics = {"accuracy": metrics["accuracy"]}
    for pair in combinations(attributes, 2):
        for group, rows, others in _intersections(*(attributes[name] for name in pair)):
            if count_patients(patient[rows]) >= MIN_PATIENTS:
                name = (" and ".join(pair), group)
                subgroups.append(_subgroup(name, rows, others, patient, metrics, True))
    return _holm_corrected(subgroups)


def _subgroup(
    name: tuple[str, str], rows: np.ndarray, others: np.ndarray, patient: np.ndarray,
    metrics: Mapping[str, GroupMetric], is_intersection: bool = False,
) -> Subgroup:  # fmt: skip
    """The Subgroup of the mask `rows` (n,), compared with the mask `others` (n,)."""
    size, gaps = (int(rows.sum()), count_patients(patient[rows])), Differences()
    prevalence = {key.partition("/")[2]: float(metric.selected[rows].mean())
                  for key, metric in metrics.items() if key.startswith("recall/")}  # fmt: skip
    missing = Estimate(None, None, None, "none", *size, TOO_SMALL)
    estimates = dict.fromkeys(metrics, missing)
    if size[1] >= MIN_PATIENTS:
        estimates = {key: metric.estimate(rows) for key, metric in metrics.items()}
        if count_patients(patient[others]) >= MIN_PATIENTS:
            gaps = _gaps(rows, others, metrics)
    return Subgroup(*name, *size, prevalence, is_intersection, estimates, gaps)


def _gaps(rows: np.ndarray, others: np.ndarray, metrics: Mapping[str, GroupMetric]) -> Differences:
    """Differences of the masks `rows` and `others` in each metric that has enough patients."""
    gaps = Differences()
    for key, metric in metrics.items():
        if gap := metric.difference(rows, others):
            half = gap.half_width()
            parts = gap.value, gap.value - half, gap.value + half
            size = int(rows.sum()), gap.degrees_of_freedom + 1, ""
            gaps[key] = Difference(make_estimate(parts, T_TEST, *size), gap.p_value, TEST)
    return gaps


def _intersections(first: Groups, second: Groups) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, mask, mask of the others) of each two groups; not if one contains the other."""
    is_recorded = (first.of_row >= 0) & (second.of_row >= 0)
    for i, a in enumerate(first.names):
        for j, b in enumerate(second.names):
            parts = (first.of_row == i) & is_recorded, (second.of_row == j) & is_recorded
            is_in = parts[0] & parts[1]
            if is_in.sum() not in (parts[0].sum(), parts[1].sum()):
                yield f"{a}, {b}", is_in, is_recorded & ~is_in


def _holm_corrected(subgroups: Sequence[Subgroup]) -> list[Subgroup]:
    """The subgroups with p-values by Holm over all groups and outcomes of a family of metrics.

    Groups of attributes and intersections are corrected apart, each at half of the level. Of two
    groups that are compared with each other, one counts.
    """
    mirrors, families = _mirrors(subgroups), dict[tuple[bool, str], list[tuple[int, str]]]()
    for at, s in enumerate(subgroups):
        for metric in s.gaps if at not in mirrors else ():
            family = s.is_intersection, FAMILIES[metric.partition("/")[0]]
            families.setdefault(family, []).append((at, metric))
    kinds = len({is_intersection for is_intersection, _ in families})
    adjusted = {at: dict[str, float]() for at in range(len(subgroups))}
    for tests in families.values():
        p_values = holm([subgroups[at].gaps[metric].p_value for at, metric in tests])
        for (at, metric), p in zip(tests, p_values, strict=True):
            adjusted[at][metric] = min(1.0, p * kinds)
    adjusted |= {at: adjusted[first] for at, first in mirrors.items()}
    return [
        replace(s, gaps={m: replace(gap, p_value=adjusted[at][m]) for m, gap in s.gaps.items()})
        for at, s in enumerate(subgroups)
    ]


def _mirrors(subgroups: Sequence[Subgroup]) -> dict[int, int]:
    """{position of the second: of the first} for attributes with just two groups to compare."""
    positions = dict[str, list[int]]()
    for at, s in enumerate(subgroups):
        if not s.is_intersection and s.group != NOT_RECORDED:
            positions.setdefault(s.attribute, []).append(at)
    return {of[1]: of[0] for of in positions.values() if len(of) == 2}


def flagged_gaps(subgroups: Sequence[Subgroup]) -> list[tuple[Subgroup, str]]:
    """(group, metric) with corrected p < 0.05, smallest first; intersections of groups last."""
    gaps = [(s, metric) for s in subgroups for metric, gap in s.gaps.items()
            if gap.p_value < SIGNIFICANCE_LEVEL]  # fmt: skip
    return sorted(gaps, key=lambda g: (g[0].is_intersection, g[0].gaps[g[1]].p_value))


def worst_group(subgroups: Sequence[Subgroup], metric: str = "accuracy") -> Subgroup | None:
    """The group of one attribute with the lowest value of a metric, None if there is none."""
    values = {at: s.metrics[metric].value for at, s in enumerate(subgroups)
              if s.gaps and not s.is_intersection}  # fmt: skip
    known = {at: value for at, value in values.items() if value is not None}
    return subgroups[min(known, key=lambda at: known[at])] if known else None


def subgroups_frame(models: Mapping[str, Sequence[Subgroup]], first: str) -> pd.DataFrame:
    """One row per model (column `first`), group and metric, for a CSV file."""
    rows = []
    for model, s in [(model, s) for model, subgroups in models.items() for s in subgroups]:
        about = {first: model, "attribute": s.attribute, "group": s.group}
        for metric, estimate in s.metrics.items():
            row = {**about, "metric": metric, **asdict(estimate)}
            if gap := s.gaps.get(metric):
                e = gap.estimate
                row |= {"gap": e.value, "gap_low": e.low, "gap_high": e.high, "p": gap.p_value}
            rows.append(row)
    return pd.DataFrame(rows)
