"""Finds problems of a dataset that make its metrics wrong: leaks, duplicates, confounds."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from datamodules.audit.file_stats import NUMBERS, Confound, compute_file_stats, measure_confounds
from datamodules.audit.near_duplicates import NearDuplicate, Thumbnails, find_near_duplicates
from datamodules.images import ImageError, content_digest, read_file_bytes, split_frame_number
from datamodules.manifest import SPLIT_ALIASES, SPLITS, Manifest

PATIENT, SAME, NEAR = "patients in several splits", "identical files", "near duplicates"
NAMES, CONFLICT = "derived file names", "duplicates with different labels"
BROKEN, CONSTANT, HUGE = "unreadable files", "constant images", "very large files"
_CHANGES = "aug|augmented|flip|flipped|hflip|vflip|rot|rotated|rotate|mirror|mirrored|bright|dark"
_CHANGES += "|brightness|contrast|gamma|blur|noise|crop|cropped|zoom|shift|shear|jitter|copy|dup"
_DERIVED = re.compile(rf"([ _.-]+({_CHANGES})[ _.-]*\(?-?\d*\)?| ?\(\d+\))+$", re.IGNORECASE)
_HUGE_PIXELS, _HUGE_BYTES = 50_000_000, 100_000_000
_WHERE = {True: "in different splits", False: "within one split"}  # by whether it is a leak
_MIN_STD = 1.0  # of the gray values; below it an image counts as constant


@dataclass(frozen=True)
class Match:
    """Two samples that belong together."""

    first: str  # the id of one sample
    second: str  # the id of the other
    reason: str  # why they belong together, such as "same patient" or "mirrored"
    similarity: float = 1.0  # 1 for identical files, else the correlation of aligned details


@dataclass(frozen=True)
class Issue:
    """A problem of the dataset."""

    kind: str  # one of the constants of this module
    is_leak: bool  # whether information about evaluation samples is in the training split
    message: str  # one sentence for the report
    ids: list[str]  # the samples concerned
    matches: tuple[Match, ...] = ()  # pairs that demonstrate the problem
    groups: tuple[tuple[str, ...], ...] = ()  # samples that belong together


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of an audit."""

    manifest: Manifest
    issues: list[Issue]
    confounds: list[Confound]

    @property
    def leaks(self) -> list[Issue]:
        """The issues for which the audit fails."""
        return [issue for issue in self.issues if issue.is_leak]

    def quarantine(self) -> pd.DataFrame:
        """Samples to exclude so that no leak remains: id, path, split, reason.

        Of samples that belong together, only those of the last split stay.
        """
        table = self.manifest.table
        rank = dict(zip(table["id"], table["split"].map(SPLITS.index), strict=True))
        reasons: dict[str, str] = {}
        for issue in reversed(self.issues):  # the first issue of a sample is its reason
            reasons |= dict.fromkeys(_ids_to_exclude(issue, rank), issue.kind)
        excluded = table.loc[table["id"].isin(set(reasons)), ["id", "path", "split"]]
        return excluded.assign(reason=[reasons[name] for name in excluded["id"]])


def _ids_to_exclude(issue: Issue, rank: dict[str, int]) -> list[str]:
    if issue.kind == CONFLICT:
        return [min((m.first, m.second), key=rank.__getitem__) for m in issue.matches]
    if not issue.is_leak:
        return issue.ids if issue.kind in (BROKEN, CONSTANT) else []
    return [
        n for group in issue.groups for n in group if rank[n] < max(map(rank.__getitem__, group))
    ]


def find_leaks_without_decoding(manifest: Manifest) -> list[Issue]:
    """Leaks by patient, file name or identical bytes; fast, because no image is decoded."""
    by_size = defaultdict(list)
    for k, path in enumerate(manifest.table["path"]):
        file = split_frame_number(path)[0]
        by_size[file.stat().st_size if file.is_file() else -k - 1].append(k)
    splits = manifest.table["split"].to_numpy()
    digests = np.array([f"not read {k}" for k in range(len(splits))], dtype=object)
    for rows in by_size.values():
        if len(set(splits[rows])) > 1:
            digests[rows] = [_file_digest(manifest.table["path"].iloc[k]) for k in rows]
    table = manifest.table.assign(digest=digests)
    issues = _patient_issues(table) + _name_issues(table) + _identical_issues(table)
    return [issue for issue in issues if issue.is_leak]


def audit_manifest(manifest: Manifest) -> Audit:
    """Decodes every file once and reports all issues and confounds."""
    stats, thumbnails = compute_file_stats(manifest.table["path"].tolist())
    table = manifest.table.assign(digest=stats["digest"])
    issues = _patient_issues(table) + _name_issues(table) + _identical_issues(table)
    issues += _near_issues(table, stats, thumbnails)
    issues += _conflict_issues(manifest, issues) + _file_issues(table["id"], stats)
    attributes = manifest.table[[name for name in manifest.attributes if name != "box"]]
    columns = stats[["format", "color", *NUMBERS]].join(attributes)
    labels = manifest.table["label"].to_numpy()
    confounds = measure_confounds(columns, list(NUMBERS), labels, manifest.class_names)
    return Audit(manifest, sorted(issues, key=lambda issue: not issue.is_leak), confounds)


def _patient_issues(table: pd.DataFrame) -> list[Issue]:
    rows = table[table.groupby("patient")["split"].transform("nunique") > 1]
    parts = {str(patient): part for patient, part in rows.groupby("patient")}
    message = f"{len(parts)} patients are in more than one split: {_first_few(list(parts))}"
    issue = _issue_of_groups(PATIENT, True, message, list(parts.values()), "same patient")
    return [issue] * bool(parts)


def _name_issues(table: pd.DataFrame) -> list[Issue]:
    """Files whose names show that one was derived from another, such as a.png and a_aug1.png."""
    names = table["id"].map(_original_name)
    rows = table[names.duplicated(keep=False)]
    parts = [part for _, part in rows.groupby(names, sort=False) if _has_derived(part["id"])]
    issues = []
    for is_leak in (True, False):
        chosen = [part for part in parts if (part["split"].nunique() > 1) == is_leak]
        if chosen:
            few = _first_few([name for part in chosen for name in part["id"]])
            message = f"{len(chosen)} originals have derived files {_WHERE[is_leak]}: {few}"
            issues.append(_issue_of_groups(NAMES, is_leak, message, chosen, "same name"))
    return issues


def _issue_of_groups(
    kind: str, is_leak: bool, message: str, parts: list[pd.DataFrame], reason: str
) -> Issue:
    """The issue of groups of samples, with a match from each, across splits if possible."""
    matches = []
    for part in parts:
        first, others = part.iloc[0], part[part["split"] != part["split"].iloc[0]]
        second = others.iloc[0] if len(others) else part.iloc[-1]
        matches.append(Match(str(first["id"]), str(second["id"]), reason))
    groups = tuple(tuple(part["id"]) for part in parts)
    ids = [name for group in groups for name in group]
    return Issue(kind, is_leak, message, ids, tuple(matches), groups)


def _identical_issues(table: pd.DataFrame) -> list[Issue]:
    ids, split, matches = table["id"], table["split"], []
    for rows in _rows_by_digest(table):
        others = sorted(rows[1:], key=lambda k: split.iloc[k] == split.iloc[rows[0]])
        matches += [Match(ids.iloc[rows[0]], ids.iloc[k], "same bytes") for k in others]
    return _issues_by_leak(table, SAME, matches)


def _near_issues(table: pd.DataFrame, stats: pd.DataFrame, images: np.ndarray) -> list[Issue]:
    """Images that show the same although their bytes differ."""
    usable = (stats["error"] == "") & (stats["std"] >= _MIN_STD)
    rows = np.flatnonzero((usable & ~stats["digest"].duplicated()).to_numpy())
    groups = table.iloc[rows].groupby(["patient", "split", "label"]).ngroup().to_numpy(copy=True)
    is_repeated = stats["digest"].duplicated(keep=False).to_numpy()[rows]
    groups[is_repeated] = -1  # represents copies that may be of other patients and splits
    size = stats[["width", "height"]].to_numpy(float)[rows]
    thumbnails = Thumbnails(images, rows, size.min(axis=1), size[:, 0] == size[:, 1])
    matches = []
    for pair in find_near_duplicates(thumbnails, groups):
        k, other = rows[pair.first], rows[pair.second]
        change = _describe_change(stats.iloc[k], stats.iloc[other], pair)
        first, second = table["id"].iloc[[k, other]]
        matches.append(Match(first, second, change, round(pair.similarity, 3)))
    return _issues_by_leak(table, NEAR, matches)


def _conflict_issues(manifest: Manifest, issues: list[Issue]) -> list[Issue]:
    """Duplicates with different labels: at least one of the labels is wrong."""
    label = dict(zip(manifest.table["id"], manifest.table["label"], strict=True))
    names = manifest.class_names
    conflicts = [
        replace(m, reason=f"{m.reason}; {names[label[m.first]]} and {names[label[m.second]]}")
        for issue in issues
        if issue.kind in (SAME, NEAR)
        for m in issue.matches
        if label[m.first] != label[m.second] and min(label[m.first], label[m.second]) >= 0
    ]
    ids = _ids_of(conflicts)
    message = f"{len(conflicts)} pairs of duplicates have different labels: {_first_few(ids)}"
    return [Issue(CONFLICT, False, message, ids, tuple(conflicts))] * bool(conflicts)


def _file_issues(ids: pd.Series, stats: pd.DataFrame) -> list[Issue]:
    """Files that cannot be read, are constant, or are far larger than a network can use."""
    is_huge = (stats["width"] * stats["height"] > _HUGE_PIXELS) | (stats["bytes"] > _HUGE_BYTES)
    checks = {BROKEN: stats["error"] != "", CONSTANT: stats["std"] < _MIN_STD, HUGE: is_huge}
    issues = []
    for kind, rows in checks.items():
        names = (stats["error"] if kind == BROKEN else ids)[rows].tolist()
        message = f"{int(rows.sum())} {kind}: {_first_few(names)}"
        issues += [Issue(kind, False, message, ids[rows].tolist())] * bool(rows.any())
    return issues


def _issues_by_leak(table: pd.DataFrame, kind: str, matches: list[Match]) -> list[Issue]:
    """One issue for the matches across splits and one for those within a split."""
    split = dict(zip(table["id"], table["split"], strict=True))
    copies = {name: (name,) for name in table["id"]}
    for rows in _rows_by_digest(table):
        ids = tuple(table["id"].iloc[rows])
        copies |= dict.fromkeys(ids, ids)
    issues = []
    for is_leak in (True, False):
        chosen = tuple(m for m in matches if (split[m.first] != split[m.second]) == is_leak)
        if chosen:
            names = _ids_of(chosen)
            message = f"{len(chosen)} pairs of {kind} {_WHERE[is_leak]}: {_first_few(names)}"
            pairs = (copies[m.first] + copies[m.second] for m in chosen)
            related = tuple(tuple(dict.fromkeys(ids)) for ids in pairs)
            issues.append(Issue(kind, is_leak, message, names, chosen, related))
    return issues


def _describe_change(first: pd.Series, second: pd.Series, pair: NearDuplicate) -> str:
    """The changes from one image to its near duplicate, such as "mirrored, resized"."""
    mirrored, degrees = pair.alignment.mirrored, abs(round(pair.alignment.degrees))
    if mirrored and degrees > 90:  # a mirror image is first aligned upside down
        degrees = 180 - degrees
    changes = ["mirrored"] * mirrored + [f"rotated by {degrees} degrees"] * (degrees > 2)
    if (first["width"], first["height"]) != (second["width"], second["height"]):
        changes.append("resized")
    if abs(first["mean"] - second["mean"]) > 6:
        changes.append("different brightness")
    return ", ".join(changes) or "re-encoded"


def _ids_of(matches: Iterable[Match]) -> list[str]:
    return list(dict.fromkeys(name for m in matches for name in (m.first, m.second)))


def _rows_by_digest(table: pd.DataFrame) -> list[list[int]]:
    """Row numbers of files with the same digest, for digests that occur more than once."""
    copies = table[table["digest"].duplicated(keep=False) & (table["digest"] != "")]
    return [part.index.tolist() for _, part in copies.groupby("digest", sort=False)]


def _original_name(name: str) -> str:
    """The path without its split folder, its suffix and the words for derived files."""
    path = PurePosixPath(name)
    folders = [part for part in path.parts[:-1] if part.lower() not in SPLIT_ALIASES]
    return "/".join([*folders, _DERIVED.sub("", path.stem)])


def _has_derived(names: pd.Series) -> bool:
    return any(_DERIVED.search(PurePosixPath(name).stem) for name in names)


def _file_digest(path: str) -> str:
    try:
        return content_digest(read_file_bytes(path), path)
    except ImageError:
        return ""


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
