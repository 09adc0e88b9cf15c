import numpy as np
import pandas as pd

from evaluation.predictions import PredictionTable


def make(
    n: int = 60,
    classes: int = 3,
    seed: int = 0,
    gain: float = 1.5,
    films: int = 1,
    split: str = "test",
) -> PredictionTable:
    """A table whose logits favor the label by `gain`; `films` rows to a patient."""
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


def experts(
    n: int = 3000, split: str = "val", seed: int = 0, gain: float = 2.0
) -> list[PredictionTable]:
    """Three members: the first knows wrists, the second elbows, the third neither.

    One that knows is calibrated: its logits are the log-likelihoods of what it has seen.
    """
    table = make(n, 3, seed=1000 + seed, split=split)
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    rows = table.rows.assign(label=label, id=[f"{split}{i}" for i in range(n)])
    wrist = (rows["body_part"] == "wrist").to_numpy()
    found = []
    for knows in (wrist, ~wrist, np.zeros(n, bool)):
        seen = rng.normal(size=(n, 3)) + gain * np.eye(3)[label]
        logits = np.where(knows[:, None], gain * seen, rng.normal(size=(n, 3)))
        found.append(PredictionTable(rows, logits, table.class_names, {"manifest_digest": split}))
    return found
