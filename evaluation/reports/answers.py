"""Answers for a person to look through: one row an image, and the ones worth a look."""

import hashlib

import numpy as np
import pandas as pd

from evaluation.predictions import PredictionTable


def answers(table: PredictionTable) -> pd.DataFrame:
    """Truth, answer, whether it is right, confidence and probabilities of each image.

    Patient, study and attributes are left out, but an id may still name its patient.
    """
    names, odds = np.array([*table.class_names, "unknown"]), table.probabilities
    said = odds.argmax(axis=1)
    columns = {"id": table.rows["id"], "true": names[table.labels], "says": names[said]}
    shares = {f"p({name})": odds[:, k] for k, name in enumerate(table.class_names)}
    right = np.where(table.labels < 0, "unknown", np.where(said == table.labels, "yes", "no"))
    return pd.DataFrame({**columns, "right": right, "confidence": odds.max(axis=1), **shares})


def shared(table: PredictionTable) -> pd.DataFrame:
    """Answers as they may be shown elsewhere: with a code in place of each id."""
    found = answers(table)
    return found.assign(id=[code(str(name)) for name in found["id"]])


def code(name: str) -> str:
    """What stands for an id elsewhere: an id is a path, which may name its patient."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def surest(table: PredictionTable, right: bool, count: int = 4) -> list[str]:
    """Ids of the surest right answers, or of the surest mistakes, the true classes taking turns."""
    found = answers(table)
    chosen = found[found["right"] == ("yes" if right else "no")]
    ordered = chosen.sort_values("confidence", ascending=False, kind="stable")
    turns = ordered.groupby("true").cumcount().sort_values(kind="stable")
    return [str(name) for name in ordered.loc[turns.index[:count], "id"]]
