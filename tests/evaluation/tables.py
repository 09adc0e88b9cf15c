"""Generated prediction tables."""

from dataclasses import replace

import numpy as np
import pandas as pd

from evaluation.predictions import PredictionTable


def make_table(
    n: int = 60,
    classes: int = 3,
    seed: int = 0,
    gain: float = 1.5,
    images_per_patient: int = 1,
    split: str = "test",
) -> PredictionTable:
    """A table whose logits are noise, plus `gain` for the label."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    patient = np.arange(n) // images_per_patient
    rows = pd.DataFrame(
        {
            "id": [f"image{i}" for i in range(n)],
            "label": labels,
            "split": split,
            "patient": [f"patient{i}" for i in patient],
            "study": [f"study{i}" for i in patient],
            "body_part": np.where(patient % 2 == 0, "wrist", "elbow"),
        }
    )
    logits = rng.normal(size=(n, classes)) + gain * np.eye(classes)[labels]
    names = ["none", "simple", "comminuted", "other", "fifth"][:classes]
    return PredictionTable(rows, logits, names, {"manifest_digest": "d1"})


def expert_tables(
    n: int = 3000, split: str = "val", seed: int = 0, gain: float = 2.0
) -> list[PredictionTable]:
    """Three members: the first is informative for wrists, the second for elbows, the third never.

    An informative member is calibrated: its logits are the log-likelihoods of its observations.
    """
    table = make_table(n, 3, seed=1000 + seed, split=split)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    rows = table.rows.assign(label=labels, id=[f"{split}{i}" for i in range(n)])
    is_wrist = (rows["body_part"] == "wrist").to_numpy()
    members = []
    for is_informative in (is_wrist, ~is_wrist, np.zeros(n, bool)):
        observations = rng.normal(size=(n, 3)) + gain * np.eye(3)[labels]
        noise = rng.normal(size=(n, 3))
        logits = np.where(is_informative[:, None], gain * observations, noise)
        members.append(PredictionTable(rows, logits, table.class_names, {"manifest_digest": split}))
    return members


def named_experts(split: str, seed: int, n: int = 900) -> dict[str, PredictionTable]:
    """`expert_tables` by name of the member, with hashes of their weights."""
    tables = expert_tables(n, split, seed)
    return {
        name: replace(table, meta={"weights": f"hash of {name}"})
        for name, table in zip(("first", "second", "third"), tables, strict=True)
    }


def named_copies(split: str) -> dict[str, PredictionTable]:
    """Five equal tables with different hashes of weights."""
    table = make_table(900, images_per_patient=3, split=split, seed=1)
    return {f"copy{i}": replace(table, meta={"weights": f"hash{i}"}) for i in range(5)}


def two_class_table(split: str, seed: int = 0, n: int = 400) -> PredictionTable:
    """Scores of a good model that is biased towards the second class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    z = rng.normal(size=n) + 2.0 * labels + 1.0
    rows = make_table(n, 2, split=split).rows.assign(label=labels)
    return PredictionTable(rows, np.stack([np.zeros(n), z], axis=1), ["no", "yes"])
