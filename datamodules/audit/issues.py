"""What an audit can find, and which samples to leave out so that no leak remains."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from datamodules.manifest import SPLITS

PATIENT, SAME, NEAR = "patient on two sides", "same bytes", "near copies"
NAMES, CONFLICT = "names of derived files", "label conflict between copies"
BROKEN, CONSTANT, HUGE = "files that cannot be read", "constant pictures", "huge files"


@dataclass(frozen=True)
class Match:
    """Two samples that belong together.

    Args:
        first: Id of one.
        second: Id of the other.
        how: In which way they are the same.
        likeness: 1 for equal bytes, else the correlation of aligned detail.
    """

    first: str
    second: str
    how: str
    likeness: float = 1.0


@dataclass(frozen=True)
class Issue:
    """One fault of the data set.

    Args:
        kind: What it is, in the words of the report.
        leak: Whether it lets training see what is measured.
        message: One sentence.
        ids: The samples that it is about.
        matches: The pairs that show it.
        groups: All samples that belong together, the pairs' and others' like them.
    """

    kind: str
    leak: bool
    message: str
    ids: list[str]
    matches: tuple[Match, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()


def quarantine(table: pd.DataFrame, findings: Iterable[Issue]) -> pd.DataFrame:
    """Samples to leave out: id, path, split, reason; `table` is that of the manifest.

    Of samples that belong together those of the last split stay and those of every earlier one
    go, so that what is measured stays as it was.
    """
    split = dict(zip(table["id"], table["split"], strict=True))
    reasons: dict[str, str] = {}
    for finding in findings:
        for name in _expendable(finding, split):
            reasons.setdefault(name, finding.kind)
    chosen = table.loc[table["id"].isin(set(reasons)), ["id", "path", "split"]]
    return chosen.assign(reason=[reasons[name] for name in chosen["id"]])


def _expendable(finding: Issue, split: dict[str, str]) -> Iterable[str]:
    rank = {name: SPLITS.index(side) for name, side in split.items()}
    if finding.kind == CONFLICT:
        return [min((m.first, m.second), key=rank.__getitem__) for m in finding.matches]
    if not finding.leak:
        return finding.ids if finding.kind in (BROKEN, CONSTANT) else []
    return [
        name
        for group in finding.groups
        for name in group
        if rank[name] < max(rank[other] for other in group)
    ]
