"""How well each statistic of the files and each column of the table alone predicts the class."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import chi2_contingency, mannwhitneyu

from datamodules.audit.file_stats import CATEGORIES, NUMBERS
from datamodules.manifest import Manifest, cell_text

SUSPECT_AUC, SUSPECT_V = 0.75, 0.5
MIN_PATIENTS = 10  # of a class that is compared; fewer can give any AUC by chance
_MAX_CATEGORIES = 20


@dataclass(frozen=True)
class Confound:
    """How well one statistic or column alone predicts the class."""

    name: str
    measure: str  # ``AUC`` for numbers, ``V`` (Cramer's V) for categories
    value: float  # from 0.5 to 1 for the AUC, from 0 to 1 for V
    low: float | None  # of the 95 % interval of an AUC
    high: float | None
    n: int  # images
    class_name: str = ""  # of a one-vs-rest AUC, if there are more than two classes
    determines_class: bool = False  # a column: another name of the class, or a complete confound

    @property
    def label(self) -> str:
        """The name of the statistic or column in reports."""
        return statistic_label(self.name)

    @property
    def is_suspect(self) -> bool:
        """Whether the statistic predicts the class so well that a network may learn it instead."""
        if self.low is not None and self.low <= 0.5:
            return False
        return self.value >= (SUSPECT_AUC if self.measure == "AUC" else SUSPECT_V)


def statistic_label(name: str) -> str:
    """The label of a statistic of the files; a column of the table has its own name."""
    return {**NUMBERS, **CATEGORIES}.get(name, name)


def measure_confounds(stats: pd.DataFrame, manifest: Manifest) -> list[Confound]:
    """How well each file statistic and each column of the manifest tells the class, suspects first.

    The strongest come first, but for columns that determine the class: they are the last suspects.

    Left out are files that cannot be read, and classes of fewer than ``MIN_PATIENTS`` patients.
    ``stats`` has the statistics of the files, in the order of the manifest.
    """
    table, names = manifest.table, manifest.class_names
    usable = (stats["error"] == "") & (table["label"] >= 0)
    samples, confounds = table.loc[usable, ["label", "patient"]], []
    for name in NUMBERS:
        confounds += _measure_number(stats.loc[usable, name], samples, names)
    for name in CATEGORIES:
        confounds += _measure_category(stats.loc[usable, name], samples)
    for name in manifest.attributes:
        values = table.loc[usable, name].rename(f"{name} (column)" if name in stats else name)
        if name != "box":
            confounds += _measure_column(values, samples, names)
    return sorted(confounds, key=lambda c: (not c.is_suspect, c.determines_class, -c.value))


def _measure_column(
    values: pd.Series, samples: pd.DataFrame, class_names: list[str]
) -> list[Confound]:
    """Confounds of a column: of numbers if it has only numbers, and many; else of categories."""
    text = cell_text(values)
    numbers, is_empty = pd.to_numeric(text, errors="coerce"), text == ""
    is_number = bool((numbers.notna() | is_empty).all())
    if is_number and numbers.nunique() > _max_categories(len(text)):
        by_number = _measure_number(numbers, samples, class_names)
        by_number = [replace(c, determines_class=c.value == 1.0) for c in by_number]
        return by_number + _measure_category(is_empty.rename(f"{values.name} is empty"), samples)
    determines = _determines(text, samples["label"])
    return [replace(c, determines_class=determines) for c in _measure_category(text, samples)]


def _determines(values: pd.Series, labels: pd.Series) -> bool:
    """Whether each value has a single class, or each class a single value."""
    counts = pd.crosstab(values, labels).to_numpy() > 0
    return bool((counts.sum(axis=1) == 1).all() or (counts.sum(axis=0) == 1).all())


def _compared_rows(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples of classes with enough patients; none if there are fewer than two classes."""
    patients = samples.groupby("label")["patient"].transform("nunique")
    rows = samples[patients >= MIN_PATIENTS]
    return rows if rows["label"].nunique() > 1 else rows[:0]


def _measure_number(
    numbers: pd.Series, samples: pd.DataFrame, class_names: list[str]
) -> list[Confound]:
    """The confound with the AUC of the class that the numbers separate best, if there is any."""
    rows = _compared_rows(samples[numbers.notna()])
    values, labels = numbers[rows.index].to_numpy(float), rows["label"].to_numpy()
    classes, confounds = np.unique(labels), []
    for k in classes:
        value = abs(auc(values, labels == k) - 0.5) + 0.5
        patients = (rows["patient"][part].nunique() for part in (labels == k, labels != k))
        low, high = auc_interval(value, *patients)
        name = class_names[k] if len(classes) > 2 else ""
        confounds.append(Confound(str(numbers.name), "AUC", value, low, high, len(rows), name))
    return sorted(confounds, key=lambda c: -c.value)[:1]


def _measure_category(values: pd.Series, samples: pd.DataFrame) -> list[Confound]:
    """The confound with Cramer's V, if there are at least two categories and not too many."""
    rows = _compared_rows(samples)
    values = values[rows.index].astype(str)
    if not 2 <= values.nunique() <= _max_categories(len(rows)):
        return []
    v = cramers_v(values.to_numpy(), rows["label"].to_numpy())
    return [Confound(str(values.name), "V", v, None, None, len(rows))]


def _max_categories(num_rows: int) -> int:
    """The largest number of categories that this many rows can tell apart."""
    return min(_MAX_CATEGORIES, num_rows // 5)


def auc(values: np.ndarray, is_positive: np.ndarray) -> float:
    """Area under the ROC curve: probability that a positive has the higher value."""
    positive, negative = values[is_positive], values[~is_positive]
    u = mannwhitneyu(positive, negative, method="asymptotic").statistic
    return float(u / (len(positive) * len(negative)))


def auc_interval(value: float, num_positive: int, num_negative: int) -> tuple[float, float]:
    """95 % interval of an AUC by Newcombe's method 5 (2006), which is no point if the AUC is 1."""
    a = np.linspace(0.0, 1.0, 10_001)
    weight = (num_positive + num_negative) / 2 - 1
    factor = 1 + weight * ((1 - a) / (2 - a) + a / (1 + a))
    variance = a * (1 - a) * factor / (num_positive * num_negative)
    inside = a[np.abs(a - value) <= ndtri(0.975) * np.sqrt(variance) + 1e-4]
    return float(inside.min()), float(inside.max())


def cramers_v(rows: np.ndarray, columns: np.ndarray) -> float:
    """Cramer's V with Bergsma's bias correction, from 0 to 1; scipy has it without correction."""
    counts = pd.crosstab(rows, columns).to_numpy()
    total, (r, c) = counts.sum(), counts.shape
    phi2 = chi2_contingency(counts, correction=False).statistic / total
    phi2 = max(0.0, phi2 - (c - 1) * (r - 1) / (total - 1))
    smallest = min(c - (c - 1) ** 2 / (total - 1), r - (r - 1) ** 2 / (total - 1)) - 1
    return float(np.sqrt(phi2 / smallest)) if smallest > 0 else 0.0
