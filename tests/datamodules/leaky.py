"""Plants leaks of nine kinds in a clean set of generated pictures."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from datamodules.images import read
from datamodules.manifest import Manifest
from datamodules.sources import Phantoms

NAMES = ["none", "simple", "comminuted"]


def clean(root: Path, patients: int, size: int = 160, films: int = 2) -> Manifest:
    source = Phantoms("fracture", patients, films, size, seed=3, root=str(root), val=0.2, test=0.2)
    return source.manifest(NAMES)


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    height, width = image.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return cv2.warpAffine(image, turn, (width, height))


def half(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


CHANGES = {
    "re-encoded": (".jpg", lambda image: image),
    "resized": (".png", half),
    "mirrored": (".png", lambda image: image[:, ::-1]),
    "turned by 10": (".png", lambda image: turned(image, 10)),
    "other light": (".png", lambda image: cv2.convertScaleAbs(image, alpha=1.2, beta=15)),
}


def planted(manifest: Manifest, folder: Path) -> tuple[Manifest, dict[str, tuple[str, str]]]:
    """The manifest with one leak of each kind, and for each kind the ids that show it."""
    train = manifest.table[manifest.table["split"] == "train"].drop_duplicates("patient")
    rows, truth = [], {}
    for number, (kind, (suffix, change)) in enumerate(CHANGES.items()):
        original = train.iloc[number]
        path = folder / f"x{number}{suffix}"
        cv2.imwrite(str(path), np.ascontiguousarray(change(read(original["path"]))))
        rows.append(row(original, path, f"new{number}"))
        truth[kind] = (original["id"], path.name)
    for kind, name, label in (("same bytes", "b", 0), ("label conflict", "c", 1)):
        original = train.iloc[len(rows)]
        path = folder / f"{name}.png"
        path.write_bytes(Path(original["path"]).read_bytes())
        rows.append(row(original, path, f"new-{name}", (original["label"] + label) % 3))
        truth[kind] = (original["id"], path.name)
    original = train.iloc[len(rows)]
    path = folder / f"{Path(original['id']).stem}_aug3.png"
    cv2.imwrite(str(path), 255 - read(original["path"]))
    identifier = str(Path(original["id"]).with_name(path.name))
    rows.append(row(original, path, "new-aug") | {"id": identifier})
    truth["derived name"] = (original["id"], identifier)
    table = pd.concat([manifest.table, pd.DataFrame(rows)], ignore_index=True)
    shared = table["patient"] == train.iloc[len(rows)]["patient"]
    table.loc[table.index[shared][0], "split"] = "test"
    truth["patient"] = (table["id"][shared].iloc[0], train.iloc[len(rows)]["patient"])
    return replace(manifest, table=table), truth


def row(original: pd.Series, path: Path, patient: str, label: int | None = None) -> dict[str, str]:
    own = {"id": path.name, "path": str(path), "split": "test", "patient": patient}
    value = original["label"] if label is None else label
    return own | {"label": value, "study": patient, "box": ""}
