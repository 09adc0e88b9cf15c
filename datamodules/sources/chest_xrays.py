"""Public chest X-ray datasets with several findings per image, in their original layouts."""

from pathlib import Path

import pandas as pd

from datamodules.manifest import read_table
from datamodules.sources.files import scan_folder
from datamodules.sources.findings import Findings, Policy
from datamodules.sources.table import Table
from datamodules.splits import SplitFractions


class ChestXray14(Table):
    """NIH's ChestX-ray14: ``ROOT/Data_Entry_2017_v2020.csv``, images in any folder below ``ROOT``.

    112,120 frontal radiographs of 30,805 patients; 14 findings, which were taken from the reports
    by text mining, so that every label is known, and an estimated 10 % are wrong. Wang et al. 2017,
    arXiv:1705.02315; https://nihcc.app.box.com/v/ChestXray-NIHCC. The test split is that of
    ``test_list.txt``; val is taken from the other patients.

    Args:
        root: The folder with the table, the lists and the images.
        table: Name of the table.
        val: Fraction of the patients outside of the test split for validation.
        seed: Seed of that split.
    """

    def __init__(
        self,
        root: str,
        table: str = "Data_Entry_2017_v2020.csv",
        val: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(
            str(Path(root) / table), "Patient ID", path="Image Index", label="Finding Labels",
            attributes=["Patient Age", "Patient Gender", "View Position"],
            fractions=SplitFractions(val, 0.0, seed, stratified=True),
            findings=Findings(separator="|"),
        )  # fmt: skip

    def read(self) -> pd.DataFrame:
        """The table's images that are below ``root``, with their path and split."""
        raw = super().read()
        files = {path.name: path.as_posix() for path in scan_folder(self.root)[0]}
        raw = raw[raw["Image Index"].isin(set(files))]
        test = set((self.root / "test_list.txt").read_text().split())
        is_test = raw["Image Index"].isin(test)
        return raw.assign(
            split=is_test.map({True: "test", False: "train"}),
            **{"Image Index": raw["Image Index"].map(files)},
        )


class CheXpert(Table):
    """Stanford's CheXpert: ``ROOT/train.csv``, ``ROOT/valid.csv`` and the images of their paths.

    224,316 radiographs of 65,240 patients; 14 findings with unknown and uncertain labels, which
    were taken from the reports by rules. Irvin et al. 2019, arXiv:1901.07031; available on request
    from Stanford's AIMI center. The test split is the public part ``valid``, of 234 radiographs
    that radiologists labeled; val is taken from train.

    Args:
        root: The folder with the two tables.
        unknown: Whether an unknown label is left out (``ignore``), ``negative`` or ``positive``.
        uncertain: The same for an uncertain label.
        by_finding: Other values for some, such as ``{Atelectasis: {uncertain: positive}}``.
        val: Fraction of the patients of train for validation.
        seed: Seed of that split.
    """

    def __init__(
        self,
        root: str,
        unknown: Policy = "ignore",
        uncertain: Policy = "ignore",
        by_finding: dict[str, dict[str, str]] | None = None,
        val: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__(
            [str(Path(root) / name) for name in ("train.csv", "valid.csv")],
            "patient", root, path="Path", study="study",
            attributes=["Sex", "Age", "Frontal/Lateral", "AP/PA"],
            fractions=SplitFractions(val, 0.0, seed, stratified=True),
            findings=Findings(unknown=unknown, uncertain=uncertain, by_finding=by_finding or {}),
        )  # fmt: skip

    def read(self) -> pd.DataFrame:
        """The rows of both tables with the split, patient and study of their path."""
        parts = [read_table(file).assign(split=split)
                 for file, split in zip(self.files, ("train", "test"), strict=True)]  # fmt: skip
        raw = pd.concat(parts, ignore_index=True)
        path = raw["Path"].str.extract(r"((?:train|valid)/(patient\d+)/(study\d+)/.*)")
        if unmatched := raw["Path"][path[0].isna()].tolist():
            raise ValueError(f"{self.files[0]}: {unmatched[:3]} are not paths in CheXpert's layout")
        return raw.assign(Path=path[0], patient=path[1], study=path[1] + "/" + path[2])
