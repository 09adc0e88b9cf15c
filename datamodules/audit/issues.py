"""Issues that an audit can report, and the samples to exclude so that no leak remains."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from datamodules.manifest import SPLITS

PATIENT, SAME, NEAR = "patients in several splits", "identical files", "near duplicates"
NAMES, CONFLICT = "derived file names", "duplicates with different labels"
BROKEN, CONSTANT, HUGE = "unreadable files", "constant images", "very large files"


@dataclass(frozen=True)
class Match:
    """Two samples that belong together.

    Args:
        first: Id of one sample.
        second: Id of the other sample.
        reason: Why they belong together, such as "same patient" or "mirrored".
        similarity: 1 for identical files, else the correlation of aligned details.
    """

    first: str
    second: str
    reason: str
    similarity: float = 1.0


@dataclass(frozen=True)
class Issue:
    """A problem of the dataset.

    Args:
        kind: One of the constants of this module.
        is_leak: Whether information about evaluation samples is in the training split.
        message: One sentence for the report.
        ids: The samples concerned.
        matches: Pairs that demonstrate the problem.
        groups: All samples that belong together, with the matches among them.
    """

    kind: str
    is_leak: bool
    message: str
    ids: list[str]
    matches: tuple[Match, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()


def quarantine(table: pd.DataFrame, issues: Iterable[Issue]) -> pd.DataFrame:
    """Samples of a manifest's table to exclude: id, path, split, reason.

    Of samples that belong together, those of the last split stay and those of every earlier split
    are excluded, so that the evaluation split does not change.
    """
    split = dict(zip(table["id"], table["split"], strict=True))
    reasons: dict[str, str] = {}
    for issue in issues:
        for name in _ids_to_exclude(issue, split):
            reasons.setdefault(name, issue.kind)
    excluded = table.loc[table["id"].isin(set(reasons)), ["id", "path", "split"]]
    return excluded.assign(reason=[reasons[name] for name in excluded["id"]])


def _ids_to_exclude(issue: Issue, split: dict[str, str]) -> Iterable[str]:
    rank = {name: SPLITS.index(value) for name, value in split.items()}
    if issue.kind == CONFLICT:
        return [min((m.first, m.second), key=rank.__getitem__) for m in issue.matches]
    if not issue.is_leak:
        return issue.ids if issue.kind in (BROKEN, CONSTANT) else []
    return [
        name
        for group in issue.groups
        for name in group
        if rank[name] < max(rank[other] for other in group)
    ]
