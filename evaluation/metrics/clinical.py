"""How predictions are meant to be used; each class against the others, net benefit, its curves."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import logsumexp

from evaluation.predictions import PredictionTable
from evaluation.stats import bootstrap
from evaluation.stats.bootstrap import DRAWS, Clusters

CURVE_POINTS = 25  # thresholds of a decision curve


@dataclass(frozen=True)
class ClinicalUse:
    """How the predictions are meant to be used; reports are about these values.

    Args:
        class_groups: Classes that are one condition, such as ``{referable: [2, 3, 4]}``.
        threshold: Probability from which a patient should be referred. At 0.2, one missed case is
            as bad as four false alarms.
        thresholds: The range of thresholds of decision curves.
        sensitivity: Sensitivity on val of one operating point.
        specificity: Specificity on val of one operating point.
        prevalences: Prevalences at which predictive values are given.
        purpose: What the model is for, for whose images and which users; model cards show it.
        expected_prevalence: Of classes or groups where the model will be used, such as
            ``{referable: 0.1}``, if not as in val; one operating point is fitted for it.
    """

    class_groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    threshold: float = 0.2
    thresholds: Sequence[float] = (0.05, 0.5)
    sensitivity: float = 0.95
    specificity: float = 0.95
    prevalences: Sequence[float] = (0.01, 0.1)
    purpose: str = ""
    expected_prevalence: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {k: v for k, v in asdict(self).items() if k not in ("class_groups", "purpose")}
        numbers["expected_prevalence"] = list(self.expected_prevalence.values())
        for name, value in numbers.items():
            if not all(0 < x < 1 for x in np.ravel(value)):
                raise ValueError(f"clinical_use: {name}: {value} must be between 0 and 1")
        if len(self.thresholds) != 2 or self.thresholds[0] >= self.thresholds[1]:
            raise ValueError(f"clinical_use: thresholds: {self.thresholds}; two, lower one first")

    @property
    def false_alarms_per_case(self) -> float:
        """Number of false alarms that are as bad as one missed case."""
        return (1 - self.threshold) / self.threshold


def clinical_use(settings: Mapping[str, Any] | None, class_names: Sequence[str]) -> ClinicalUse:
    """The ClinicalUse with these settings; an unknown key or class is a ValueError."""
    settings = {**(settings or {})}
    allowed = list(ClinicalUse.__dataclass_fields__)
    if unknown := [key for key in settings if key not in allowed]:
        raise ValueError(f"clinical_use: {unknown[0]!r}; allowed: {', '.join(allowed)}")
    groups = {str(n): list(map(str, of)) for n, of in settings.pop("class_groups", {}).items()}
    for name, members in groups.items():
        is_part = 0 < len(set(members)) == len(members) < len(class_names)
        if name in class_names or not is_part or set(members) - set(class_names):
            reason = f"a new name, and some but not all of the classes {list(class_names)}"
            raise ValueError(f"clinical_use: class_groups: {name}: {members}; needs {reason}")
    expected = {str(name): p for name, p in settings.pop("expected_prevalence", {}).items()}
    if unknown := sorted(expected.keys() - {*class_names, *groups}):
        allowed = [*class_names, *groups]
        raise ValueError(f"clinical_use: expected_prevalence: {unknown[0]!r}; allowed: {allowed}")
    return ClinicalUse(groups, expected_prevalence=expected, **settings)


def use_of(table: PredictionTable) -> ClinicalUse:
    """The ClinicalUse that the `meta` of a table states, or the default."""
    return clinical_use(table.meta.get("clinical_use"), table.class_names)


def with_use_of(first: PredictionTable, table: PredictionTable) -> PredictionTable:
    """A copy of `table` with the clinical use of `first` in its `meta`."""
    return replace(table, meta={**table.meta, "clinical_use": first.meta.get("clinical_use")})


@dataclass(frozen=True)
class Outcomes:
    """Each class and each named group of classes against all others, for labeled rows."""

    table: PredictionTable
    names: list[str]  # (O,)
    members: np.ndarray  # (O, K), whether a class is one of the outcome

    @classmethod
    def from_table(cls, table: PredictionTable) -> "Outcomes":
        """The classes one by one, then the named groups."""
        members, classes = outcome_members(table), np.arange(len(table.class_names))
        return cls(
            table, list(members), np.array([np.isin(classes, of) for of in members.values()])
        )

    @property
    def probabilities(self) -> np.ndarray:
        """Probability of each outcome, (n, O)."""
        return np.asarray(self.table.probabilities @ self.members.T)

    @property
    def logits(self) -> np.ndarray:
        """Logit of each outcome's probability (n, O), finite also where that rounds to 0 or 1."""
        logs = self.table.log_probabilities
        odds = [
            logsumexp(logs[:, m], axis=1) - logsumexp(logs[:, ~m], axis=1) for m in self.members
        ]
        return np.stack(odds, axis=1)

    @property
    def positive(self) -> np.ndarray:
        """Whether the label is among the classes of each outcome, (n, O)."""
        return np.asarray(self.members.T[self.table.labels])


def outcome_members(table: PredictionTable) -> dict[str, list[int]]:
    """Indices of an outcome's classes, by its name: the classes one by one, then named groups."""
    names, groups = table.class_names, use_of(table).class_groups
    of_groups = {name: [names.index(member) for member in of] for name, of in groups.items()}
    return {name: [c] for c, name in enumerate(names)} | of_groups


def shown_outcomes(table: PredictionTable) -> list[str]:
    """Names of outcomes with plots and tables: named groups first; of two classes the second."""
    k, names = len(table.class_names), list(outcome_members(table))
    return names[1:2] if k == 2 else [*names[k:], *names[:k]]


def outcome_table(table: PredictionTable, outcome: str) -> PredictionTable:
    """A table of two classes: the second is the outcome, the first all other classes."""
    if table.class_names[1:] == [outcome]:
        return table
    outcomes, at = Outcomes.from_table(table), list(outcome_members(table)).index(outcome)
    labels = np.where(table.labels < 0, -1, outcomes.positive[:, at])
    logits = np.stack([np.zeros(len(table)), outcomes.logits[:, at]], axis=1)
    use = use_of(table)
    expected = {name: p for name, p in use.expected_prevalence.items() if name == outcome}
    use = replace(use, class_groups={}, expected_prevalence=expected)
    meta = {**table.meta, "clinical_use": asdict(use)}
    names = [f"not {outcome}", outcome]
    return PredictionTable(table.rows.assign(label=labels), logits, names, meta)


def net_benefit_of_rows(p: np.ndarray, positive: np.ndarray, threshold: float) -> np.ndarray:
    """Net benefit of each image if those with p >= t, the threshold, are treated; shape of p.

    A case that is found counts 1, a false alarm -t / (1 - t), an image that is not treated 0.
    """
    odds = threshold / (1 - threshold)
    return np.asarray((p >= threshold) * np.where(positive, 1.0, -odds))


def net_benefit(table: PredictionTable) -> np.ndarray:
    """Net benefit (n, O) at the stated threshold; NaN for outcomes that no or every image has."""
    outcomes, t = Outcomes.from_table(table), use_of(table).threshold
    positive = outcomes.positive
    has_both = positive.any(axis=0) & ~positive.all(axis=0)
    return np.where(has_both, net_benefit_of_rows(outcomes.probabilities, positive, t), np.nan)


def net_benefit_over_all(table: PredictionTable) -> np.ndarray:
    """Net benefit minus that of treating every image, (n, O)."""
    positive = Outcomes.from_table(table).positive
    treat_all = net_benefit_of_rows(np.ones(positive.shape), positive, use_of(table).threshold)
    return np.asarray(net_benefit(table) - treat_all)


def observed_minus_expected(table: PredictionTable) -> np.ndarray:
    """Whether each image has each outcome, minus the probability of it, (n, O)."""
    outcomes = Outcomes.from_table(table)
    return np.asarray(outcomes.positive - outcomes.probabilities)


@dataclass(frozen=True)
class Curve:
    """Values at positions x with their intervals, (T,) each; ends are NaN without an interval."""

    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def decision_curve(
    table: PredictionTable, outcome: str, minus: PredictionTable | None = None,
    has_interval: bool = True, draws: int = DRAWS, seed: int = 0,
) -> Curve | None:  # fmt: skip
    """Net benefit of an outcome by threshold, or that minus the one of the aligned table `minus`.

    None if there are no images with the outcome, or no others.
    """
    labeled, rows = table.labeled, list[np.ndarray]()
    at = list(outcome_members(table)).index(outcome)
    positive = Outcomes.from_table(labeled).positive[:, at]
    if positive.all() or not positive.any():
        return None
    lowest, highest = use_of(table).thresholds
    thresholds = np.linspace(lowest, highest, CURVE_POINTS)
    for model in (labeled, minus.labeled) if minus else (labeled,):
        p = Outcomes.from_table(model).probabilities[:, at]
        rows.append(np.stack([net_benefit_of_rows(p, positive, t) for t in thresholds], axis=1))
    benefit = rows[0] - rows[1] if minus else rows[0]
    value, low, high = np.vstack([benefit.mean(axis=0), np.full((2, CURVE_POINTS), np.nan)])
    if has_interval:
        clusters = Clusters.from_patients(labeled.patients, labeled.labels).without_strata
        sums = clusters.sum_by_patient(np.column_stack([benefit, np.ones(len(labeled))]))
        drawn = bootstrap.bootstrap(sums, lambda s: s[:, :-1] / s[:, -1:], clusters, draws, seed)
        ends = drawn.percentile_interval if minus else drawn.bca_interval
        low, high = np.array([ends(t) for t in range(CURVE_POINTS)]).T
    return Curve(thresholds, value, low, high)
