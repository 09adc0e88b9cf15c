"""Plants leaks of nine kinds in a clean dataset of generated images, and augments images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from datamodules.images import read_image
from datamodules.manifest import Manifest
from datamodules.sources import Phantoms

NAMES = ["none", "simple", "comminuted"]


def clean_manifest(root: Path, num_patients: int) -> Manifest:
    source = Phantoms("fracture", num_patients, 2, 160, seed=3, root=str(root), val=0.2, test=0.2)
    return source.manifest(NAMES)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    height, width = image.shape
    rotation = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return cv2.warpAffine(image, rotation, (width, height))


def halve(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


CHANGES = {
    "re-encoded": (".jpg", lambda image: image),
    "resized": (".png", halve),
    "mirrored": (".png", lambda image: image[:, ::-1]),
    "rotated by 10": (".png", lambda image: rotate(image, 10)),
    "different brightness": (".png", lambda image: cv2.convertScaleAbs(image, alpha=1.2, beta=15)),
}


def crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = np.array(image.shape)
    part = (size * rng.uniform(0.85, 0.97)).astype(int)
    y, x = rng.integers(0, size - part + 1)
    return cv2.resize(image[y : y + part[0], x : x + part[1]], image.shape[::-1])


def compress(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 90))]
    return cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_GRAYSCALE)


AUGMENTATIONS: dict[
    str, Callable[[np.ndarray, np.random.Generator], np.ndarray]
] = {  # as offline augmentation makes them
    "rotated": lambda image, rng: rotate(image, rng.uniform(-30, 30)),
    "turned": lambda image, rng: np.rot90(image, rng.integers(1, 4)),
    "mirrored": lambda image, rng: image[:, ::-1] if rng.integers(2) else image[::-1],
    "brightened": lambda image, rng: cv2.convertScaleAbs(
        image, alpha=rng.uniform(0.75, 1.25), beta=rng.uniform(-20, 25)
    ),
    "cropped": crop,
    "blurred": lambda image, rng: cv2.GaussianBlur(
        image, (0, 0), rng.uniform(0.5, 1.5) * len(image) / 224
    ),
    "compressed": compress,
}


def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image after one to three changes; one in twenty copies is also inverted."""
    chosen = rng.choice(len(AUGMENTATIONS), rng.integers(1, 4), replace=False)
    for k in sorted(chosen):
        image = np.ascontiguousarray(list(AUGMENTATIONS.values())[k](image, rng))
    return 255 - image if rng.random() < 0.05 else image


def plant_leaks(manifest: Manifest, folder: Path) -> tuple[Manifest, dict[str, tuple[str, str]]]:
    """The manifest with one leak of each kind, and the two ids of each leak."""
    train = manifest.table[manifest.table["split"] == "train"].drop_duplicates("patient")
    rows, planted = [], {}
    for number, (kind, (suffix, change)) in enumerate(CHANGES.items()):
        original = train.iloc[number]
        path = folder / f"x{number}{suffix}"
        cv2.imwrite(str(path), np.ascontiguousarray(change(read_image(original["path"]))))
        rows.append(make_row(original, path, f"new{number}"))
        planted[kind] = (original["id"], path.name)
    for kind, name, shift in (("same bytes", "b", 0), ("different labels", "c", 1)):
        original = train.iloc[len(rows)]
        path = folder / f"{name}.png"
        path.write_bytes(Path(original["path"]).read_bytes())
        rows.append(make_row(original, path, f"new-{name}", (original["label"] + shift) % 3))
        planted[kind] = (original["id"], path.name)
    original = train.iloc[len(rows)]
    path = folder / f"{Path(original['id']).stem}_aug3.png"
    cv2.imwrite(str(path), 255 - read_image(original["path"]))
    identifier = str(Path(original["id"]).with_name(path.name))
    rows.append(make_row(original, path, "new-aug") | {"id": identifier})
    planted["derived name"] = (original["id"], identifier)
    table = pd.concat([manifest.table, pd.DataFrame(rows)], ignore_index=True)
    is_shared = table["patient"] == train.iloc[len(rows)]["patient"]
    table.loc[table.index[is_shared][0], "split"] = "test"
    planted["patient"] = (table["id"][is_shared].iloc[0], train.iloc[len(rows)]["patient"])
    return replace(manifest, table=table), planted


def make_row(
    original: pd.Series, path: Path, patient: str, label: int | None = None
) -> dict[str, str]:
    row = {"id": path.name, "path": str(path), "split": "test", "patient": patient}
    return row | {
        "label": original["label"] if label is None else label, "study": patient, "box": "",
    }  # fmt: skip
