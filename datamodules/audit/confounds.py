"""Trivial facts of a file that predict its class: numbers by AUC, categories by Cramer's V."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

SUSPECT_AUC, SUSPECT_V = 0.75, 0.5
_LEVELS = 20


@dataclass(frozen=True)
class Confound:
    """How well one fact alone predicts the class.

    Args:
        name: The number or the column.
        measure: ``AUC`` or ``V``.
        value: From 0.5 to 1 for the AUC, from 0 to 1 for V.
        about: The class against all others, for the AUC of more than two classes.
    """

    name: str
    measure: str
    value: float
    about: str = ""

    @property
    def suspect(self) -> bool:
        """Whether the fact alone tells so much that a network may learn it instead."""
        return self.value >= (SUSPECT_AUC if self.measure == "AUC" else SUSPECT_V)


def auc(values: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive has the higher value, ties counting half."""
    ranks = rankdata(values)[positive]
    count, others = len(ranks), len(values) - len(ranks)
    return float((ranks.sum() - count * (count + 1) / 2) / (count * others))


def cramers_v(rows: np.ndarray, columns: np.ndarray) -> float:
    """Bergsma's bias-corrected V of two categorical variables, from 0 to 1."""
    counts = pd.crosstab(rows, columns).to_numpy().astype(float)
    total, (high, wide) = counts.sum(), counts.shape
    expected = np.outer(counts.sum(1), counts.sum(0)) / total
    phi = float(((counts - expected) ** 2 / expected).sum() / total)
    phi = max(0.0, phi - (wide - 1) * (high - 1) / (total - 1))
    least = min(wide - (wide - 1) ** 2 / (total - 1), high - (high - 1) ** 2 / (total - 1)) - 1
    return float(np.sqrt(phi / least)) if least > 0 else 0.0


def confounds(
    facts: pd.DataFrame, numbers: list[str], labels: np.ndarray, class_names: list[str]
) -> list[Confound]:
    """Every fact that can be judged, the most telling first; unknown labels are left out."""
    known = (labels >= 0) & facts[numbers].notna().to_numpy().all(axis=1)
    facts, labels = facts[known], labels[known]
    if len(np.unique(labels)) < 2:
        return []
    found = [_by_number(name, facts[name].to_numpy(float), labels, class_names) for name in numbers]
    for name in (str(name) for name in facts.columns if name not in numbers):
        values = facts[name].astype(str).to_numpy()
        if 2 <= len(set(values)) <= min(_LEVELS, len(values) // 5):
            found.append(Confound(name, "V", cramers_v(values, labels)))
    return sorted(found, key=lambda each: (not each.suspect, -each.value))


def _by_number(name: str, values: np.ndarray, labels: np.ndarray, names: list[str]) -> Confound:
    classes = np.unique(labels)
    each = [(abs(auc(values, labels == c) - 0.5) + 0.5, names[c]) for c in classes]
    value, about = max(each)
    return Confound(name, "AUC", value, about if len(classes) > 2 else "")
