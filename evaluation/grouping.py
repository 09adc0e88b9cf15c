"""Predictions of studies and patients from those of their images."""

from typing import Literal, cast

import numpy as np
import pandas as pd

from evaluation.predictions import PredictionTable, safe_log

Level = Literal["image", "study", "patient"]
Rule = Literal["mean", "max", "noisy_or"]
LEVELS: tuple[Level, ...] = ("image", "study", "patient")
RULES: tuple[Rule, ...] = ("mean", "max", "noisy_or")
ROW_UNITS = {"image": "images", "study": "studies", "patient": "patients"}


def row_unit(table: PredictionTable) -> str:
    """What a row of the table is: `images`, `studies` or `patients`."""
    return ROW_UNITS[table.meta.get("level", "image")]


def parse_level(text: str) -> tuple[Level, Rule]:
    """Level and rule of a text such as `study` or `study:max`; the default rule is mean."""
    name, _, rule = text.partition(":")
    if name not in LEVELS or (rule or "mean") not in RULES:
        raise ValueError(f"{text!r}: levels are {', '.join(LEVELS)}; rules {', '.join(RULES)}")
    return name, cast(Rule, rule or "mean")


def aggregate(table: PredictionTable, level: Level, rule: Rule = "mean") -> PredictionTable:
    """One row a study or patient, with its identifier as `id`; `image` returns the table itself.

    `mean` averages the probabilities. `max` and `noisy_or` take the first class as "none": the
    probability of another class is the largest of any image, or the probability that at least one
    image shows it; the result is scaled to sum to 1. Images of a group must have the same label.
    An attribute is empty if the images of the group differ in it.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is not among {RULES}")
    if level == "image":
        return table
    names, group = np.unique(_group_names(table, level), return_inverse=True)
    rows = _group_rows(table, names, group, level)
    pooled = _pool(table.probabilities, group, len(names), rule)
    logits = safe_log(pooled)
    return PredictionTable(rows, logits, table.class_names, {**table.meta, "level": level})


def _group_names(table: PredictionTable, level: Level) -> np.ndarray:
    """Study or patient of each row (n,)."""
    if level == "patient":
        return table.patients.astype(str)
    names = table.rows[level].fillna("").astype(str)
    if (names == "").any():
        first = table.rows["id"][names == ""].iloc[0]
        raise ValueError(f"id {first!r} has no {level} ({(names == '').sum()} such rows)")
    # two patients may both have a "study1"
    return np.char.add(np.char.add(table.patients.astype(str), "/"), names.to_numpy(str))


def _group_rows(
    table: PredictionTable, names: np.ndarray, group: np.ndarray, level: Level
) -> pd.DataFrame:
    grouped = table.rows.drop(columns="id").assign(_group=group).groupby("_group", sort=True)
    differs = grouped["label"].nunique() > 1
    if differs.any():
        name = names[int(np.argmax(differs))]
        raise ValueError(f"{level} '{name}' has images with different labels")
    rows = grouped.first()
    for name in table.attributes:
        rows[name] = rows[name].where(grouped[name].nunique(dropna=False) == 1)
    rows.insert(0, "id", names)
    return rows.reset_index(drop=True)


def _pool(p: np.ndarray, group: np.ndarray, num_groups: int, rule: Rule) -> np.ndarray:
    """Probabilities (groups, K) from those of images (n, K)."""
    if rule == "mean":
        return np.asarray(_sum(p, group, num_groups) / np.bincount(group)[:, None])
    pooled = (_maximum if rule == "max" else _noisy_or)(p, group, num_groups)
    return np.asarray(pooled / pooled.sum(axis=1, keepdims=True))


def _maximum(p: np.ndarray, group: np.ndarray, num_groups: int) -> np.ndarray:
    """The largest probability of each class, but the smallest of the first ("none")."""
    pooled = np.zeros((num_groups, p.shape[1]))
    np.maximum.at(pooled, group, p)
    pooled[:, 0] = 1.0
    np.minimum.at(pooled[:, 0], group, p[:, 0])
    return pooled


def _noisy_or(p: np.ndarray, group: np.ndarray, num_groups: int) -> np.ndarray:
    """Probability that any image shows the class; of the first ("none"), that all images do."""
    log_no_image = _sum(np.log1p(-np.minimum(p, 1 - 1e-15)), group, num_groups)
    pooled = 1 - np.exp(log_no_image)
    pooled[:, 0] = np.exp(_sum(safe_log(p[:, :1]), group, num_groups))[:, 0]
    return np.asarray(pooled)


def _sum(values: np.ndarray, group: np.ndarray, num_groups: int) -> np.ndarray:
    sums = np.zeros((num_groups, values.shape[1]))
    np.add.at(sums, group, values)
    return sums
