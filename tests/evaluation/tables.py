import numpy as np
import pandas as pd

from evaluation.table import PredictionTable


def make(
    n: int = 60,
    classes: int = 3,
    seed: int = 0,
    gain: float = 1.5,
    films: int = 1,
    split: str = "test",
) -> PredictionTable:
    """A table whose logits favour the label by `gain`; `films` rows to a patient."""
    rng = np.random.default_rng(seed)
    label = np.random.default_rng(99).integers(0, classes, n)
    label[:classes] = np.arange(classes)
    rows = pd.DataFrame(
        {
            "id": [f"image{i}" for i in range(n)],
            "label": label,
            "split": split,
            "patient": [f"patient{i // films}" for i in range(n)],
            "study": [f"study{i // films}" for i in range(n)],
            "body_part": np.where(np.arange(n) // films % 2 == 0, "wrist", "elbow"),
        }
    )
    logits = rng.normal(size=(n, classes)) + gain * np.eye(classes)[label]
    names = ["none", "simple", "comminuted", "other", "fifth"][:classes]
    return PredictionTable(rows, logits, names, {"manifest_digest": "d1"})
