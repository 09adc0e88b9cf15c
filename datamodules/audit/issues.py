"""What an audit reports: kinds of issues, and those that concern patients and single files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

PATIENT, SAME, NEAR = "patients in several splits", "identical files", "near duplicates"
NAMES, CONFLICT = "derived file names", "duplicates with different labels"
BROKEN, CONSTANT, HUGE = "unreadable files", "constant images", "very large files"
DAMAGED = "damaged JPEG files"
SEVERAL_CLASSES = "patients with several classes"
SEVERAL_PATIENTS = "copies with different patient IDs"
MIN_STD = 1.0  # of the gray values; below it an image counts as constant
_HUGE_PIXELS, _HUGE_BYTES = 50_000_000, 100_000_000


@dataclass(frozen=True)
class Match:
    """Two samples that belong together."""

    first: str  # the id of one sample
    second: str  # the id of the other
    reason: str  # why they belong together, such as "same patient" or "mirrored"
    similarity: float = 1.0  # 1 for identical files, else the correlation of aligned details
    is_copy: bool = True  # else another exposure of the same patient


@dataclass(frozen=True)
class Issue:
    """A problem of the dataset."""

    kind: str  # one of the constants of this module
    is_leak: bool  # whether information about evaluation samples is in the training split
    message: str  # one sentence for the report
    ids: list[str]  # the samples concerned
    matches: tuple[Match, ...] = ()  # pairs that demonstrate the problem
    groups: tuple[tuple[str, ...], ...] = ()  # samples that belong together
    reasons: tuple[str, ...] = ()  # what is wrong with the file of each of ``ids``


def patient_issues(table: pd.DataFrame, exposures: Iterable[Match] = ()) -> list[Issue]:
    """Issues of patients with images in several splits, and with images of several classes."""
    return _split_issues(table) + _class_issues(table, exposures)


def _split_issues(table: pd.DataFrame) -> list[Issue]:
    """The issue of patients with images in several splits, if there are any."""
    rows = table[table.groupby("patient")["split"].transform("nunique") > 1]
    parts = {str(patient): part for patient, part in rows.groupby("patient")}
    message = f"{len(parts)} patients are in more than one split: {first_few(list(parts))}"
    issue = issue_of_groups(PATIENT, True, message, list(parts.values()), "same patient")
    return [issue] * bool(parts)


def _class_issues(table: pd.DataFrame, exposures: Iterable[Match]) -> list[Issue]:
    """The issue of patients with several classes, which is fine unless labels are of patients.

    Its pairs are exposures with different labels, which hardly differ otherwise.
    """
    known = table[(table["patient"] != table["id"]) & (table["label"] >= 0)]
    rows = known[known.groupby("patient")["label"].transform("nunique") > 1]
    patients = rows["patient"].drop_duplicates().tolist()
    count = f"{len(patients)} of {known['patient'].nunique()} patients"
    message = f"{count} have images of more than one class: {first_few(patients)}"
    label = dict(zip(rows["id"], rows["label"], strict=True))
    labels = [(m, {label.get(m.first), label.get(m.second)} - {None}) for m in exposures]
    pairs = [m for m, different in labels if len(different) > 1]
    if pairs:
        few = first_few([f"{m.first} = {m.second}" for m in pairs])
        message += f"; {count_pairs(pairs)} of nearly equal images with different labels: {few}"
    return [Issue(SEVERAL_CLASSES, False, message, rows["id"].tolist(), tuple(pairs))] * bool(
        patients
    )


def shared_id_issues(table: pd.DataFrame, issues: list[Issue]) -> list[Issue]:
    """The issue of copies of one image with several patient IDs, which may be one person."""
    rows = table[table["patient"] != table["id"]]  # patients are known
    patient = dict(zip(rows["id"], rows["patient"], strict=True))
    copies = [m for issue in issues if issue.kind in (SAME, NEAR) for m in issue.matches]
    shared = [m for m in copies if m.first in patient and m.second in patient]
    shared = [m for m in shared if patient[m.first] != patient[m.second]]
    few = [f"{m.first} ({patient[m.first]}) = {m.second} ({patient[m.second]})" for m in shared]
    message = f"{count_pairs(shared)} of copies with different patient IDs: {first_few(few)}"
    return [Issue(SEVERAL_PATIENTS, False, message, ids_of(shared))] * bool(shared)


def file_issues(ids: pd.Series, stats: pd.DataFrame) -> list[Issue]:
    """Issues of files that are unreadable, damaged, constant or larger than a network can use."""
    is_huge = (stats["width"] * stats["height"] > _HUGE_PIXELS) | (stats["bytes"] > _HUGE_BYTES)
    checks = {CONSTANT: stats["std"] < MIN_STD, HUGE: is_huge}
    issues = _reason_issues(BROKEN, ids, stats["error"])
    issues += _reason_issues(DAMAGED, ids, stats["warning"])
    for kind, rows in checks.items():
        names = ids[rows].tolist()
        message = f"{len(names)} {kind}: {first_few(names)}"
        issues += [Issue(kind, False, message, names)] * bool(names)
    return issues


def _reason_issues(kind: str, ids: pd.Series, reasons: pd.Series) -> list[Issue]:
    """The issue of files with a reason that is not ""; its message counts the reasons."""
    reasons = reasons[reasons != ""]
    if reasons.empty:
        return []
    kinds = reasons.map(lambda reason: str(reason).partition(": ")[2]).value_counts()
    counted = [f"{reason} ({n})" for reason, n in kinds.items()]
    names = ids[reasons.index].tolist()
    message = f"{len(reasons)} {kind}, such as {names[0]}: {first_few(counted)}"
    return [Issue(kind, False, message, names, reasons=tuple(reasons))]


def issue_of_groups(
    kind: str, is_leak: bool, message: str, parts: list[pd.DataFrame], reason: str
) -> Issue:
    """An issue of groups of samples, with one match per group, across splits if possible."""
    matches = []
    for part in parts:
        first, others = part.iloc[0], part[part["split"] != part["split"].iloc[0]]
        second = others.iloc[0] if len(others) else part.iloc[-1]
        matches.append(Match(str(first["id"]), str(second["id"]), reason))
    groups = tuple(tuple(part["id"]) for part in parts)
    ids = [name for group in groups for name in group]
    return Issue(kind, is_leak, message, ids, tuple(matches), groups)


def ids_of(matches: Iterable[Match]) -> list[str]:
    """The ids of all samples of the matches, each once."""
    return list(dict.fromkeys(name for m in matches for name in (m.first, m.second)))


def count_pairs(matches: Sequence[Match]) -> str:
    """The number of matches as text, such as "1 pair" or "2 pairs"."""
    return f"{len(matches)} pair{'s' * (len(matches) != 1)}"


def first_few(names: list[str]) -> str:
    """At most three of the names as text, with "..." if there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
