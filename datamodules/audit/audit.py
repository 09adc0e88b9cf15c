"""Finds problems of a dataset that make its metrics wrong: leaks, duplicates, confounds."""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from datamodules.audit.file_stats import (
    NUMBERS,
    Confound,
    FileStats,
    compute_file_stats,
    measure_confounds,
)
from datamodules.audit.issues import (
    BROKEN,
    CONFLICT,
    CONSTANT,
    HUGE,
    NAMES,
    NEAR,
    PATIENT,
    SAME,
    Issue,
    Match,
    quarantine,
)
from datamodules.audit.near_duplicates import NearDuplicate, Thumbnails, find_near_duplicates
from datamodules.images import ImageError, content_digest, read_file_bytes, split_frame_number
from datamodules.manifest import SPLIT_ALIASES, Manifest

_CHANGES = "aug|augmented|flip|flipped|hflip|vflip|rot|rotated|rotate|mirror|mirrored|bright|dark"
_CHANGES += "|brightness|contrast|gamma|blur|noise|crop|cropped|zoom|shift|shear|jitter|copy|dup"
_DERIVED = re.compile(rf"([ _.-]+({_CHANGES})[ _.-]*\(?-?\d*\)?| ?\(\d+\))+$", re.IGNORECASE)
_HUGE_PIXELS, _HUGE_BYTES = 50_000_000, 100_000_000
_MIN_STD = 1.0  # of the gray values; below it an image counts as constant


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
        """Samples to exclude so that no leak remains: id, path, split, reason."""
        return quarantine(self.manifest.table, self.issues)


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
    issues = _patient_issues(manifest) + _name_issues(manifest)
    return [issue for issue in issues + _identical_issues(manifest, digests) if issue.is_leak]


def audit_manifest(manifest: Manifest) -> Audit:
    """Decodes every file once and reports all issues and confounds."""
    stats = compute_file_stats(manifest.table["path"].tolist())
    digests = stats.table["digest"].to_numpy(dtype=object)
    issues = _patient_issues(manifest) + _name_issues(manifest)
    issues += _identical_issues(manifest, digests) + _near_duplicate_issues(manifest, stats)
    issues += _conflict_issues(manifest, issues)
    issues += _file_issues(manifest, stats.table)
    attributes = manifest.table[[name for name in manifest.attributes if name != "box"]]
    columns = stats.table[["format", "color", *NUMBERS]].join(attributes)
    labels = manifest.table["label"].to_numpy()
    confounds = measure_confounds(columns, list(NUMBERS), labels, manifest.class_names)
    return Audit(manifest, sorted(issues, key=lambda issue: not issue.is_leak), confounds)


def _patient_issues(manifest: Manifest) -> list[Issue]:
    table = manifest.table
    num_splits = table.groupby("patient")["split"].nunique()
    shared = num_splits.index[num_splits > 1].tolist()
    if not shared:
        return []
    rows = table[table["patient"].isin(set(shared))]
    matches = [_match_across_splits(part, "same patient") for _, part in rows.groupby("patient")]
    message = f"{len(shared)} patients are in more than one split: {_first_few(shared)}"
    groups = tuple(tuple(part["id"]) for _, part in rows.groupby("patient"))
    return [Issue(PATIENT, True, message, rows["id"].tolist(), tuple(matches), groups)]


def _name_issues(manifest: Manifest) -> list[Issue]:
    """Files whose names show that one was derived from another, such as a.png and a_aug1.png."""
    table = manifest.table
    by_original = defaultdict(list)
    for k, name in enumerate(table["id"]):
        by_original[_original_name(name)].append(k)
    groups = [rows for rows in by_original.values() if len(rows) > 1 and _has_derived(table, rows)]
    issues = []
    for is_leak in (True, False):
        chosen = [rows for rows in groups if (table["split"].iloc[rows].nunique() > 1) == is_leak]
        if chosen:
            ids = table["id"].iloc[[k for rows in chosen for k in rows]].tolist()
            where = _where(is_leak)
            message = f"{len(chosen)} originals have derived files {where}: {_first_few(ids)}"
            matches = tuple(_match_across_splits(table.iloc[rows], "same name") for rows in chosen)
            id_groups = tuple(tuple(table["id"].iloc[rows]) for rows in chosen)
            issues.append(Issue(NAMES, is_leak, message, ids, matches, id_groups))
    return issues


def _identical_issues(manifest: Manifest, digests: np.ndarray) -> list[Issue]:
    """Files with the same bytes; files with an empty digest are ignored."""
    ids, split = manifest.table["id"], manifest.table["split"]
    matches = []
    for rows in _rows_by_digest(digests):
        others = sorted(rows[1:], key=lambda k: split.iloc[k] == split.iloc[rows[0]])
        matches += [Match(ids.iloc[rows[0]], ids.iloc[k], "same bytes") for k in others]
    return _issues_by_leak(manifest, SAME, matches, digests)


def _near_duplicate_issues(manifest: Manifest, stats: FileStats) -> list[Issue]:
    """Images that show the same although their bytes differ."""
    usable = (stats.table["error"] == "") & (stats.table["std"] >= _MIN_STD)
    rows = np.flatnonzero((usable & ~stats.table["digest"].duplicated()).to_numpy())
    table = manifest.table.iloc[rows]
    keys = table["patient"] + "\n" + table["split"] + "\n" + table["label"].astype(str)
    groups = pd.factorize(keys)[0]
    is_repeated = stats.table["digest"].duplicated(keep=False).to_numpy()[rows]
    groups[is_repeated] = -1  # represents copies that may be of other patients and splits
    size = stats.table[["width", "height"]].to_numpy(float)
    is_square = size[:, 0] == size[:, 1]
    thumbnails = Thumbnails(stats.thumbnails, size.min(axis=1), is_square, rows)
    matches = []
    for pair in find_near_duplicates(thumbnails, groups):
        k, other = rows[pair.first], rows[pair.second]
        change = _describe_change(stats.table.iloc[k], stats.table.iloc[other], pair)
        first, second = manifest.table["id"].iloc[[k, other]]
        matches.append(Match(first, second, change, round(pair.similarity, 3)))
    return _issues_by_leak(manifest, NEAR, matches, stats.table["digest"].to_numpy(dtype=object))


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
    if not conflicts:
        return []
    ids = list(dict.fromkeys(name for m in conflicts for name in (m.first, m.second)))
    message = f"{len(conflicts)} pairs of duplicates have different labels: {_first_few(ids)}"
    return [Issue(CONFLICT, False, message, ids, tuple(conflicts))]


def _file_issues(manifest: Manifest, stats: pd.DataFrame) -> list[Issue]:
    """Files that cannot be read, are constant, or are far larger than a network can use."""
    ids = manifest.table["id"]
    is_huge = (stats["width"] * stats["height"] > _HUGE_PIXELS) | (stats["bytes"] > _HUGE_BYTES)
    checks = ((BROKEN, stats["error"] != ""), (CONSTANT, stats["std"] < _MIN_STD), (HUGE, is_huge))
    issues = []
    for kind, rows in checks:
        if rows.any():
            names = stats["error"][rows].tolist() if kind == BROKEN else ids[rows].tolist()
            message = f"{int(rows.sum())} {kind}: {_first_few(names)}"
            issues.append(Issue(kind, False, message, ids[rows].tolist()))
    return issues


def _issues_by_leak(
    manifest: Manifest, kind: str, matches: list[Match], digests: np.ndarray
) -> list[Issue]:
    """One issue for the matches across splits and one for those within a split."""
    ids = manifest.table["id"]
    split = dict(zip(ids, manifest.table["split"], strict=True))
    groups = [tuple(ids.iloc[rows]) for rows in _rows_by_digest(digests)]
    copies = {name: group for group in groups for name in group}
    issues = []
    for is_leak in (True, False):
        chosen = tuple(m for m in matches if (split[m.first] != split[m.second]) == is_leak)
        if chosen:
            names = list(dict.fromkeys(name for m in chosen for name in (m.first, m.second)))
            message = f"{len(chosen)} pairs of {kind} {_where(is_leak)}: {_first_few(names)}"
            related = tuple(
                tuple(dict.fromkeys([*copies.get(m.first, ()), *copies.get(m.second, ()),
                                     m.first, m.second]))
                for m in chosen
            )  # fmt: skip
            issues.append(Issue(kind, is_leak, message, names, chosen, related))
    return issues


def _where(is_leak: bool) -> str:
    return "in different splits" if is_leak else "within one split"


def _describe_change(first: pd.Series, second: pd.Series, pair: NearDuplicate) -> str:
    """The changes from one image to its near duplicate, such as "mirrored, resized"."""
    degrees = abs(round(pair.degrees))
    if pair.mirrored and degrees > 90:  # a mirror image is first aligned upside down
        degrees = 180 - degrees
    changes = ["mirrored"] * pair.mirrored + [f"rotated by {degrees} degrees"] * (degrees > 2)
    if (first["width"], first["height"]) != (second["width"], second["height"]):
        changes.append("resized")
    if abs(first["mean"] - second["mean"]) > 6:
        changes.append("different brightness")
    return ", ".join(changes) or "re-encoded"


def _rows_by_digest(digests: np.ndarray) -> list[list[int]]:
    """Row numbers of files with the same digest, for digests that occur more than once."""
    groups: dict[str, list[int]] = defaultdict(list)
    for k, digest in enumerate(digests):
        groups[digest].append(k)
    return [rows for digest, rows in groups.items() if digest and len(rows) > 1]


def _match_across_splits(part: pd.DataFrame, reason: str) -> Match:
    """Two rows of a group, of different splits if possible."""
    first = part.iloc[0]
    others = part[part["split"] != first["split"]]
    second = others.iloc[0] if len(others) else part.iloc[-1]
    return Match(str(first["id"]), str(second["id"]), reason)


def _original_name(name: str) -> str:
    """The path without its split folder, its suffix and the words for derived files."""
    path = PurePosixPath(name)
    folders = [part for part in path.parts[:-1] if part.lower() not in SPLIT_ALIASES]
    return "/".join([*folders, _DERIVED.sub("", path.stem)])


def _has_derived(table: pd.DataFrame, rows: list[int]) -> bool:
    return any(_DERIVED.search(PurePosixPath(table["id"].iloc[k]).stem) for k in rows)


def _file_digest(path: str) -> str:
    try:
        return content_digest(read_file_bytes(path), split_frame_number(path)[1])
    except ImageError:
        return ""


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
