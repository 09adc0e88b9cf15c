"""Stanford's films of bones, as they are handed out."""

import re
from pathlib import Path
from typing import Literal

import pandas as pd

from datamodules.manifest import Manifest, split_of
from datamodules.sources.source import Source, picture_files

_MURA_PATH = re.compile(
    r"(train|valid)/XR_([A-Z]+)/(patient\d+)/(study\d+)_(negative|positive)/[^/]+"
)


class Mura(Source):
    """Stanford's MURA: ``{train,valid}/XR_ELBOW/patient00011/study1_negative/image1.png``.

    40,561 films of 14,863 studies of 12,173 patients, seven body parts, labeled by study as
    negative or positive (abnormal). Rajpurkar and others 2018, arXiv:1712.06957; to be had on
    request from Stanford's AIMI center. Its own test set is hidden: ``valid`` is its public part.

    Args:
        root: The folder that holds ``train`` and ``valid``.
        files: MURA's lists of image paths, read instead of the tree; null walks the tree.
        valid_as: The split that ``valid`` becomes; with ``test``, validation is cut from train.
        val: Share of the training patients that validation gets when ``valid_as`` is ``test``.
        seed: Another seed, another cut.
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
        """One row a film with ``body_part``; everything is read from the path."""
        if len(class_names) != 2:
            raise ValueError(f"class_names is {class_names}; MURA has two, negative first")
        rows = [self._row(path) for path in self._paths()]
        return Manifest(pd.DataFrame(rows), class_names)

    def _paths(self) -> list[str]:
        if self.files is None:
            return [path.as_posix() for path in picture_files(self.root)]
        lines = [line for file in self.files for line in Path(file).read_text().split()]
        return [re.sub(r"^MURA-v[\d.]+/", "", line) for line in lines]

    def _row(self, path: str) -> dict[str, str | int]:
        found = _MURA_PATH.fullmatch(path)
        if found is None:
            raise ValueError(f"{self.root / path}: not a path as MURA writes them")
        folder, part, patient, study, word = found.groups()
        split = split_of(patient, self.val, 0.0, self.seed) if folder == "train" else self.valid_as
        return {
            "id": path,
            "path": str(self.root / path),
            "label": int(word == "positive"),
            "split": split,
            "patient": patient,
            "study": f"{part}/{patient}/{study}",
            "body_part": part.lower(),
        }
