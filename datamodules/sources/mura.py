"""The MURA dataset of bone radiographs in its original layout."""

import re
from pathlib import Path
from typing import Literal

import pandas as pd

from datamodules.manifest import Manifest
from datamodules.sources.base import Source, find_image_files
from datamodules.splits import assign_split

_MURA_PATH = re.compile(
    r"(train|valid)/XR_([A-Z]+)/(patient\d+)/(study\d+)_(negative|positive)/[^/]+"
)


class Mura(Source):
    """Stanford's MURA: ``ROOT/train/XR_ELBOW/patient00011/study1_negative/image1.png``.

    40,561 radiographs in 14,863 studies of 12,173 patients, seven body parts; each study is
    labeled negative or positive (abnormal). Rajpurkar et al. 2018, arXiv:1712.06957; available on
    request from Stanford's AIMI center. Its test set is hidden: ``valid`` is its public part.

    Args:
        root: The folder that contains ``train`` and ``valid``.
        files: MURA's lists of image paths, read instead of the folders; null reads the folders.
        valid_as: The split that ``valid`` becomes; with ``test``, validation is taken from train.
        val: Fraction of the training patients for validation if ``valid_as`` is ``test``.
        seed: Seed of that split.
    """

    def __init__(
        self,
        root: str,
        files: list[str] | None = None,
        valid_as: Literal["val", "test"] = "test",
        val: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.root, self.files, self.valid_as = Path(root), files, valid_as
        self.val, self.seed = val if valid_as == "test" else 0.0, seed

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row per radiograph with ``body_part``; everything is read from the path."""
        if len(class_names) != 2:
            raise ValueError(f"class_names is {class_names}; MURA has two classes, negative first")
        rows = [self._row(path) for path in self._paths()]
        return Manifest(pd.DataFrame(rows), class_names)

    def _paths(self) -> list[str]:
        if self.files is None:
            return [path.as_posix() for path in find_image_files(self.root)]
        lines = [line for file in self.files for line in Path(file).read_text().split()]
        return [re.sub(r"^MURA-v[\d.]+/", "", line) for line in lines]

    def _row(self, path: str) -> dict[str, str | int]:
        match = _MURA_PATH.fullmatch(path)
        if match is None:
            raise ValueError(f"{self.root / path}: not a path in MURA's layout")
        folder, part, patient, study, label = match.groups()
        is_train = folder == "train"
        split = assign_split(patient, self.val, 0.0, self.seed) if is_train else self.valid_as
        return {
            "id": path,
            "path": str(self.root / path),
            "label": int(label == "positive"),
            "split": split,
            "patient": patient,
            "study": f"{part}/{patient}/{study}",
            "body_part": part.lower(),
        }
