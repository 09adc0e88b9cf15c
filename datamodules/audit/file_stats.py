"""Statistics of every image file, and how well each of them alone predicts the class."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.progress import track
from scipy.stats import chi2_contingency, mannwhitneyu

from datamodules.audit.near_duplicates import THUMBNAIL_SIZE, make_thumbnails
from datamodules.images import ImageError, content_digest, decode, detect_format, read_file_bytes

SUSPECT_AUC, SUSPECT_V = 0.75, 0.5
_MAX_CATEGORIES = 20
_CHUNK = 512
NUMBERS = (
    "bytes", "bytes_per_pixel", "width", "height", "aspect", "mean", "std", "black_ratio",
    "white_ratio", "corner_mean", "sharpness",
)  # fmt: skip


@dataclass(frozen=True)
class Confound:
    """How well one statistic or attribute alone predicts the class."""

    name: str
    measure: str  # ``AUC`` for numbers, ``V`` (Cramer's V) for categories
    value: float  # from 0.5 to 1 for the AUC, from 0 to 1 for V
    class_name: str = ""  # of a one-vs-rest AUC, if there are more than two classes

    @property
    def is_suspect(self) -> bool:
        """Whether it predicts the class so well that a network may learn it instead."""
        return self.value >= (SUSPECT_AUC if self.measure == "AUC" else SUSPECT_V)


def compute_file_stats(paths: list[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """Reads and decodes every file once, on all cores; returns a table and thumbnails by file.

    Columns are ``digest``, ``format``, ``color``, ``error`` (empty for a readable file) and the
    ``NUMBERS``, missing if there is an error. The thumbnails (n, 2, side, side) are on disk.
    """
    with tempfile.TemporaryFile() as file:  # exists as long as it is mapped
        shape = (max(1, len(paths)), 2, THUMBNAIL_SIZE, THUMBNAIL_SIZE)
        thumbnails = np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
    rows: list[dict[str, str | float]] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in track(range(0, len(paths), _CHUNK), description="reading every file"):
            for row, views in pool.map(_file_stats, paths[start : start + _CHUNK]):
                if views is not None:
                    thumbnails[len(rows), : len(views)] = views
                rows.append(row)
    return pd.DataFrame(rows), thumbnails[: len(paths)]


def _file_stats(path: str) -> tuple[dict[str, str | float], np.ndarray | None]:
    row: dict[str, str | float] = {"digest": "", "format": "", "color": "", "error": ""}
    try:
        data = read_file_bytes(path)
        row["digest"] = content_digest(data, path)
        row["format"] = detect_format(data[:132].tobytes()) or ""
        image = decode(data, path)
    except ImageError as error:
        return row | dict.fromkeys(NUMBERS, np.nan) | {"error": str(error)}, None
    row["color"] = "gray" if image.ndim == 2 else "color"
    views = make_thumbnails(image)
    return row | _numbers(image, views[-1], len(data)), views


def _numbers(image: np.ndarray, thumbnail: np.ndarray, num_bytes: int) -> dict[str, float]:
    """The ``NUMBERS`` of an image; none of them should predict its class."""
    height, width = image.shape[:2]
    brightness = thumbnail.astype(np.float32)
    corners = [brightness[y, x].mean() for y in (slice(0, 9), slice(-9, None)) for x in (0, -1)]
    return {
        "bytes": float(num_bytes), "bytes_per_pixel": num_bytes / (height * width),
        "width": float(width), "height": float(height), "aspect": width / height,
        "mean": float(brightness.mean()), "std": float(brightness.std()),
        "black_ratio": float((thumbnail < 8).mean()),
        "white_ratio": float((thumbnail > 247).mean()),
        "corner_mean": float(np.mean(corners)),
        "sharpness": float(np.abs(np.diff(brightness, axis=1)).mean()),
    }  # fmt: skip


def measure_confounds(
    table: pd.DataFrame, numeric: list[str], labels: np.ndarray, class_names: list[str]
) -> list[Confound]:
    """How well each column predicts known labels, suspects first; ``numeric`` are numbers."""
    is_usable = (labels >= 0) & table[numeric].notna().to_numpy().all(axis=1)
    table, labels = table[is_usable], labels[is_usable]
    classes, confounds = np.unique(labels), []
    if len(classes) < 2:
        return []
    for name in numeric:
        numbers = table[name].to_numpy(float)
        aucs = [(abs(auc(numbers, labels == k) - 0.5) + 0.5, class_names[k]) for k in classes]
        value, class_name = max(aucs)
        confounds.append(Confound(name, "AUC", value, class_name if len(classes) > 2 else ""))
    for name in (str(name) for name in table.columns if name not in numeric):
        values = table[name].astype(str).to_numpy()
        if 2 <= len(set(values)) <= min(_MAX_CATEGORIES, len(values) // 5):
            confounds.append(Confound(name, "V", cramers_v(values, labels)))
    return sorted(confounds, key=lambda confound: (not confound.is_suspect, -confound.value))


def auc(values: np.ndarray, is_positive: np.ndarray) -> float:
    """Area under the ROC curve: probability that a positive has the higher value."""
    positive, negative = values[is_positive], values[~is_positive]
    u = mannwhitneyu(positive, negative, method="asymptotic").statistic
    return float(u / (len(positive) * len(negative)))


def cramers_v(rows: np.ndarray, columns: np.ndarray) -> float:
    """Cramer's V with Bergsma's bias correction, from 0 to 1; scipy has it without correction."""
    counts = pd.crosstab(rows, columns).to_numpy()
    total, (r, c) = counts.sum(), counts.shape
    phi2 = chi2_contingency(counts, correction=False).statistic / total
    phi2 = max(0.0, phi2 - (c - 1) * (r - 1) / (total - 1))
    smallest = min(c - (c - 1) ** 2 / (total - 1), r - (r - 1) ** 2 / (total - 1)) - 1
    return float(np.sqrt(phi2 / smallest)) if smallest > 0 else 0.0
