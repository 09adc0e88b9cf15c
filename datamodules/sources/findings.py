"""Labels of several findings per image in tables, also in those of public chest X-ray datasets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from datamodules.manifest import FINDING, normalize_text

Policy = Literal["ignore", "negative", "positive"]
POLICIES: dict[str, int] = {"ignore": -1, "negative": 0, "positive": 1}  # the label of each
UNKNOWN, UNCERTAIN = -1, -2  # while a table is read
_CELLS = {"": UNKNOWN, "1": 1, "0": 0, "-1": UNCERTAIN, "uncertain": UNCERTAIN}


@dataclass(frozen=True)
class Findings:
    """How a table gives several findings per image: a column for each, or one column of text.

    A column of a finding has the name of the class and the cells 1, 0, -1 or ``uncertain``, or is
    empty if the label is unknown.

    Args:
        separator: For one column of text, what stands between the findings, such as ``|`` in
            ``Effusion|Mass``; findings that are not named are absent. Null reads one column for
            each finding.
        no_finding: Text in that column of an image without any finding.
        unknown: Whether an unknown label is left out of training and metrics (``ignore``), or is
            taken as ``negative`` or ``positive``.
        uncertain: The same for an uncertain label.
        by_finding: Other values of ``unknown`` and ``uncertain`` for some of the findings, such as
            ``{Atelectasis: {uncertain: positive}}``.
    """

    separator: str | None = None
    no_finding: str = "No Finding"
    unknown: Policy = "ignore"
    uncertain: Policy = "ignore"
    by_finding: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in {"": self._policies(""), **self.by_finding}.items():
            for key, value in values.items():
                where = f"findings{f'.by_finding.{name}' * bool(name)}.{key}"
                if key not in ("unknown", "uncertain"):
                    raise ValueError(f"{where}: allowed are unknown and uncertain")
                if value not in POLICIES:
                    raise ValueError(f"{where} is {value!r}; allowed are {list(POLICIES)}")
        if self.separator == "":
            raise ValueError("findings.separator is empty; give text such as '|', or null")

    def read(
        self, raw: pd.DataFrame, column: str | None, class_names: Sequence[str], file: Path
    ) -> tuple[pd.DataFrame, list[str]]:
        """Label columns of a manifest for the rows of a table, and notes; 1, 0, -1 if unknown."""
        if unknown := sorted(set(self.by_finding) - set(class_names)):
            raise ValueError(f"findings.by_finding: {unknown} are not in {list(class_names)}")
        if self.separator is None:
            columns = {name: self._from_column(raw[name], name, file) for name in class_names}
            return _label_columns(columns, raw.index), []
        return self._from_text(raw[str(column)], class_names, file)

    def _policies(self, name: str) -> dict[str, str]:
        """The values of ``unknown`` and ``uncertain`` for one finding."""
        values = {"unknown": self.unknown, "uncertain": self.uncertain}
        return {**values, **self.by_finding.get(name, {})}

    def _from_column(self, cells: pd.Series, name: str, file: Path) -> np.ndarray:
        """Labels (n,) of one finding from its cells, by the policies for it."""
        text = normalize_text(cells).str.lower().str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)
        if invalid := sorted(set(text) - set(_CELLS)):
            allowed = "1, 0, -1 or 'uncertain', and empty if unknown"
            raise ValueError(
                f"{file}: {name!r} has the values {invalid[:5]}; allowed are {allowed}"
            )
        policies, codes = self._policies(name), text.map(_CELLS).to_numpy()
        known = np.where(codes == UNKNOWN, POLICIES[policies["unknown"]], codes)
        return np.where(codes == UNCERTAIN, POLICIES[policies["uncertain"]], known)

    def _from_text(
        self, cells: pd.Series, class_names: Sequence[str], file: Path
    ) -> tuple[pd.DataFrame, list[str]]:
        """Label columns from cells such as ``Effusion|Mass``, and a note of unused findings."""
        named = [
            {part.strip() for part in text.split(str(self.separator))} - {""} for text in cells
        ]
        in_file = set().union(*named) - {self.no_finding}
        if absent := [name for name in class_names if name not in in_file]:
            raise ValueError(f"{file}: no row has {absent}; its findings are {sorted(in_file)}")
        unused = sorted(in_file - set(class_names))
        notes = [f"findings that are not among the classes are ignored: {', '.join(unused)}"]
        columns = {
            name: np.array([(1 if name in row else 0) if row else -1 for row in named])
            for name in class_names
        }
        return _label_columns(columns, cells.index), notes * bool(unused)


def _label_columns(labels: Mapping[str, np.ndarray], index: pd.Index) -> pd.DataFrame:
    """The columns of a manifest for the labels (n,) of each finding."""
    columns = {FINDING + name: values.astype(np.int8) for name, values in labels.items()}
    return pd.DataFrame(columns, index)
