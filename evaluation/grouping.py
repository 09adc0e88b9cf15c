"""From images to studies and patients: several rows become one."""

from typing import Literal

import numpy as np
import pandas as pd

from evaluation.predictions import PredictionTable

Level = Literal["image", "study", "patient"]
Rule = Literal["mean", "max", "noisy_or"]
LEVELS: tuple[Level, ...] = ("image", "study", "patient")
ROWS = {"image": "images", "study": "studies", "patient": "patients"}
RULES: tuple[Rule, ...] = ("mean", "max", "noisy_or")


def rows_of(table: PredictionTable) -> str:
    """What the rows of a table are: images, studies or patients."""
    return ROWS[table.meta.get("level", "image")]


def by_level(table: PredictionTable, level: Level, rule: Rule = "mean") -> PredictionTable:
    """One row a study or patient, named by its id; `image` gives the table itself.

    Films must agree on the label.

    `mean` averages probabilities. `max` and `noisy_or` take the first class for "none" and
    raise the others by their surest film, or by the chance that any film shows them; the
    result is scaled to sum to 1. Attributes are kept where all films agree.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is not among {RULES}")
    if level == "image":
        return table
    names = _names(table, level)
    keys, at = np.unique(names, return_inverse=True)
    rows = _rows(table, keys, at, level)
    pooled = _pooled(table.probabilities, at, len(keys), rule)
    logits = np.log(np.maximum(pooled, 1e-30))
    return PredictionTable(rows, logits, table.class_names, {**table.meta, "level": level})


def _names(table: PredictionTable, level: Level) -> np.ndarray:
    if level == "patient":
        return table.patients.astype(str)
    named = table.rows[level].fillna("").astype(str)
    if (named == "").any():
        first = table.rows["id"][named == ""].iloc[0]
        raise ValueError(f"id {first!r} belongs to no {level}; {(named == '').sum()} such rows")
    # two patients may both have a "study1"
    return np.char.add(np.char.add(table.patients.astype(str), "/"), named.to_numpy(str))


def _rows(table: PredictionTable, keys: np.ndarray, at: np.ndarray, level: Level) -> pd.DataFrame:
    frame = table.rows.drop(columns="id").assign(_at=at)
    grouped = frame.groupby("_at", sort=True)
    mixed = grouped["label"].nunique() > 1
    if mixed.any():
        raise ValueError(f"{level} '{keys[int(np.argmax(mixed))]}' has films of several labels")
    rows = grouped.first()
    for name in table.attributes:
        rows[name] = rows[name].where(grouped[name].nunique(dropna=False) == 1)
    rows.insert(0, "id", keys)
    return rows.reset_index(drop=True)


def _pooled(p: np.ndarray, at: np.ndarray, groups: int, rule: Rule) -> np.ndarray:
    if rule == "mean":
        return np.asarray(_summed(p, at, groups) / np.bincount(at)[:, None])
    found = _surest(p, at, groups) if rule == "max" else _any(p, at, groups)
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def _surest(p: np.ndarray, at: np.ndarray, groups: int) -> np.ndarray:
    """The largest of each class, but of the first ("none") the smallest."""
    found = np.zeros((groups, p.shape[1]))
    np.maximum.at(found, at, p)
    found[:, 0] = 1.0
    np.minimum.at(found[:, 0], at, p[:, 0])
    return found


def _any(p: np.ndarray, at: np.ndarray, groups: int) -> np.ndarray:
    """Chance that any film shows the class; of the first, that all films do."""
    silent = _summed(np.log1p(-np.minimum(p, 1 - 1e-15)), at, groups)
    found = 1 - np.exp(silent)
    found[:, 0] = np.exp(_summed(np.log(np.maximum(p[:, :1], 1e-30)), at, groups))[:, 0]
    return np.asarray(found)


def _summed(values: np.ndarray, at: np.ndarray, groups: int) -> np.ndarray:
    sums = np.zeros((groups, values.shape[1]))
    np.add.at(sums, at, values)
    return sums
