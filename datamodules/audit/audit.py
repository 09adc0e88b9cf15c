"""Finds problems of a dataset that make its metrics wrong: leaks, duplicates, confounds."""

import json
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from datamodules.audit.confounds import Confound, measure_confounds
from datamodules.audit.file_stats import FileReader
from datamodules.audit.issues import (
    BROKEN,
    CONFLICT,
    CONSTANT,
    MIN_STD,
    NAMES,
    NEAR,
    PATIENT,
    SAME,
    Issue,
    Match,
    count_pairs,
    file_issues,
    first_few,
    ids_of,
    issue_of_groups,
    patient_issues,
    shared_id_issues,
)
from datamodules.audit.memo import Memo
from datamodules.audit.near_duplicates import NearDuplicate, NearDuplicateSearch
from datamodules.audit.thumbnails import Thumbnails
from datamodules.images import ImageError, content_digest, read_file_bytes, split_frame_number
from datamodules.manifest import SPLIT_ALIASES, SPLITS, Manifest
from datamodules.splits import Groups

COMPUTED = "computed"  # folder within that of an audit
AUDITS = "runs/audit-*/audit.json"  # as `consilium audit` names them
_CHANGES = "aug|augmented|flip|flipped|hflip|vflip|rot|rotated|rotate|mirror|mirrored|bright|dark"
_CHANGES += "|brightness|contrast|gamma|blur|noise|crop|cropped|zoom|shift|shear|jitter|copy|dup"
_CHANGES += "|orig|original|inv|inverted"
_DERIVED = re.compile(rf"([ _.-]+({_CHANGES})[ _.-]*\(?-?\d*\)?| ?\(\d+\))+$", re.IGNORECASE)
_WHERE = {True: "in different splits", False: "within one split"}  # by whether it is a leak


class Overlap(NamedTuple):
    """How many images of a split have a copy, or another image of the patient, in train."""

    split: str
    images: int
    copied: int
    same_patient: int


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of an audit."""

    manifest: Manifest
    issues: list[Issue]
    confounds: list[Confound]

    @property
    def leaks(self) -> list[Issue]:
        """The issues that are leaks; the audit fails if there are any."""
        return [issue for issue in self.issues if issue.is_leak]

    @property
    def is_unreadable(self) -> bool:
        """Whether no file of the dataset can be read, so that the audit says nothing else."""
        unreadable = (name for i in self.issues if i.kind == BROKEN for name in i.ids)
        return len(set(unreadable)) == len(self.manifest.table)

    @property
    def suspects(self) -> list[Confound]:
        """Statistics and columns that predict the class so well that a network may learn them."""
        return [confound for confound in self.confounds if confound.is_suspect]

    def quarantine(self) -> pd.DataFrame:
        """Samples to exclude so that no leak remains: id, path, split, reason, detail.

        Of samples that belong together, only those of the last split stay. Of identical files with
        different labels none stays, since no label is more likely than another.
        """
        table = self.manifest.table
        rank = dict(zip(table["id"], table["split"].map(SPLITS.index), strict=True))
        reasons: dict[str, str] = {}
        for issue in reversed(self.issues):  # the first issue of a sample is its reason
            reasons |= dict.fromkeys(_ids_to_exclude(issue, rank), issue.kind)
        excluded = table.loc[table["id"].isin(set(reasons)), ["id", "path", "split"]]
        excluded["reason"] = [reasons[name] for name in excluded["id"]]
        details = {n: r for i in self.issues for n, r in zip(i.ids, i.reasons, strict=False)}
        return excluded.assign(detail=[details.get(name, "") for name in excluded["id"]])

    def copy_groups(self) -> pd.DataFrame:
        """Samples that have to be in the same split as their copies: id, group."""
        ids = self.manifest.table["id"]
        row, groups = {name: k for k, name in enumerate(ids)}, Groups(len(ids))
        for issue in self.issues:
            for first, *others in issue.groups if issue.kind in (SAME, NEAR, NAMES) else ():
                for other in others:
                    groups.connect(row[first], row[other])
        table = pd.DataFrame({"id": ids, "group": ids.to_numpy()[groups.labels()]})
        return table[groups.sizes() > 1]

    def overlaps(self) -> list[Overlap]:
        """How many images of val and of test have a copy or their patient in train."""
        table = self.manifest.table
        split = dict(zip(table["id"], table["split"], strict=True))
        shared: dict[bool, set[str]] = {True: set(), False: set()}  # by whether it is by patient
        for issue in self.leaks:
            groups = (g for g in issue.groups if any(split[name] == "train" for name in g))
            shared[issue.kind == PATIENT].update(name for group in groups for name in group)
        overlaps = []
        for name in ("val", "test") if "train" in split.values() else ():
            ids = set(table["id"][table["split"] == name])
            overlap = Overlap(name, len(ids), len(ids & shared[False]), len(ids & shared[True]))
            overlaps += [overlap] * bool(ids)
        return overlaps


def _ids_to_exclude(issue: Issue, rank: dict[str, int]) -> list[str]:
    """Ids that ``quarantine`` excludes for an issue; ``rank`` is the order of the split by id."""
    if issue.kind == CONFLICT:
        return [name for group in issue.groups for name in group]
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
    issues = patient_issues(table) + _name_issues(table)
    issues += _copy_issues(table, _identical_matches(table), [])
    return [issue for issue in issues if issue.is_leak]


def find_recorded_leaks(digest: str) -> tuple[list[str], Path | None]:
    """Leaks of the newest audit below ``runs`` of the manifest with this digest, and its folder."""
    files = sorted(Path().glob(AUDITS), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        audit = json.loads(file.read_text(encoding="utf-8"))
        if audit.get("manifest_digest") == digest:
            return [i["message"] for i in audit["issues"] if i["is_leak"]], file.parent
    return [], None


def audit_manifest(manifest: Manifest, folder: Path | None = None) -> Audit:
    """Decodes every file once and reports all issues and confounds.

    With ``folder``, results are saved in it: another audit of unchanged files reuses all of them,
    and one after an interruption those that had been computed. Those of other audits below
    ``runs`` are reused as well.
    """
    others = [file.parent / COMPUTED for file in Path().glob(AUDITS)]
    with (
        tempfile.TemporaryDirectory() as temporary,
        Memo(folder / COMPUTED if folder else Path(temporary), others) as memo,
    ):
        audit = _audit(manifest, memo)
        memo.remove_steps()
    return audit


def _audit(manifest: Manifest, memo: Memo) -> Audit:
    """The audit; searches near duplicates until the images outside the quarantine have none."""
    reader = FileReader(manifest.table["path"].tolist(), memo)
    stats = reader.stats()
    search = _copy_search(stats, reader, memo)
    table = manifest.table.assign(digest=stats["digest"])
    audit = Audit(manifest, [], measure_confounds(stats, manifest))
    near: list[Match] = []
    is_left = np.ones(len(table), dtype=bool)
    while True:  # until nothing is found in what the quarantine leaves
        known = set(near)
        near += [m for m in _near_matches(table, stats, search, is_left) if m not in known]
        audit = replace(audit, issues=_all_issues(manifest, table, stats, near))
        was_left = is_left & _is_comparable(stats)
        is_left = ~table["id"].isin(audit.quarantine()["id"]).to_numpy()
        if len(near) == len(known) or (is_left & was_left).sum() == was_left.sum():
            return audit


def _all_issues(
    manifest: Manifest, table: pd.DataFrame, stats: pd.DataFrame, near: list[Match]
) -> list[Issue]:
    """Every issue, leaks first."""
    copies, exposures = ([m for m in near if m.is_copy == is_copy] for is_copy in (True, False))
    issues = patient_issues(table, exposures) + _name_issues(table)
    issues += _copy_issues(table, _identical_matches(table), copies)
    issues += _conflict_issues(manifest, table, issues) + shared_id_issues(table, issues)
    issues += file_issues(table["id"], stats)
    return sorted(issues, key=lambda issue: not issue.is_leak)


def _name_issues(table: pd.DataFrame) -> list[Issue]:
    """Issues of files whose names show that one derives from another, as a.png and a_aug1.png."""
    names = table["id"].map(_original_name)
    rows = table[names.duplicated(keep=False)]
    parts = [part for _, part in rows.groupby(names, sort=False) if _has_derived(part["id"])]
    issues = []
    for is_leak in (True, False):
        chosen = [part for part in parts if (part["split"].nunique() > 1) == is_leak]
        if chosen:
            few = first_few([name for part in chosen for name in part["id"]])
            message = f"{len(chosen)} originals have derived files {_WHERE[is_leak]}: {few}"
            issues.append(issue_of_groups(NAMES, is_leak, message, chosen, "same name"))
    return issues


def _identical_matches(table: pd.DataFrame) -> list[Match]:
    """Matches of identical files, each with the first of them; those of other splits come first."""
    ids, split, matches = table["id"], table["split"], []
    for rows in _rows_by_digest(table):
        others = sorted(rows[1:], key=lambda k: split.iloc[k] == split.iloc[rows[0]])
        matches += [Match(ids.iloc[rows[0]], ids.iloc[k], "same bytes") for k in others]
    return matches


def _is_comparable(stats: pd.DataFrame) -> np.ndarray:
    """Mask (n,) of the images that can be read and are not constant."""
    return ((stats["error"] == "") & (stats["std"] >= MIN_STD)).to_numpy()


def _first_of_digest(stats: pd.DataFrame) -> np.ndarray:
    """Row numbers of comparable images, of identical files only that of the first."""
    digests = stats["digest"][_is_comparable(stats)]
    return digests.index[~digests.duplicated()].to_numpy()


def _copy_search(stats: pd.DataFrame, reader: FileReader, memo: Memo) -> NearDuplicateSearch:
    """The search for near duplicates among the images of ``_first_of_digest``."""
    rows = _first_of_digest(stats)
    size = stats[["width", "height"]].to_numpy(float)[rows]

    def load_thumbnails() -> Thumbnails:
        return Thumbnails(reader.thumbnails(), rows, size.min(axis=1), size[:, 0] == size[:, 1])

    return NearDuplicateSearch(stats["digest"][rows].tolist(), load_thumbnails, memo)


def _near_matches(
    table: pd.DataFrame, stats: pd.DataFrame, search: NearDuplicateSearch, is_left: np.ndarray
) -> list[Match]:
    """Matches of images with the same content but different bytes, among rows ``is_left``."""
    compared = _first_of_digest(stats).copy()
    digests = stats["digest"][is_left & _is_comparable(stats)]
    rows = digests.index[~digests.duplicated()].to_numpy()
    places = pd.Index(stats["digest"][compared]).get_indexer(digests[rows])
    patients = np.full(len(compared), -1)
    is_repeated = digests.duplicated(keep=False)[rows].to_numpy()  # may be of other patients
    patients[places] = np.where(is_repeated, -1, table["patient"].iloc[rows].factorize()[0])
    compared[places] = rows
    is_searched = np.isin(np.arange(len(compared)), places)
    matches = []
    for pair in search.find(patients, is_searched):
        k, other = compared[pair.first], compared[pair.second]
        change = _describe_change(stats.iloc[k], stats.iloc[other], pair)
        first, second = table["id"].iloc[[k, other]]
        similarity = round(pair.similarity, 3)
        matches.append(Match(first, second, change, similarity, not pair.is_exposure))
    return matches


def _conflict_issues(manifest: Manifest, table: pd.DataFrame, issues: list[Issue]) -> list[Issue]:
    """The issue of duplicates with different labels; its groups are the identical files."""
    label = dict(zip(manifest.table["id"], manifest.table["label"], strict=True))
    names = manifest.class_names
    conflicts = [
        replace(m, reason=f"{m.reason}; {names[label[m.first]]} and {names[label[m.second]]}")
        for issue in issues
        if issue.kind in (SAME, NEAR)
        for m in issue.matches
        if label[m.first] != label[m.second] and min(label[m.first], label[m.second]) >= 0
    ]
    ids = ids_of(conflicts)
    message = f"{count_pairs(conflicts)} of {CONFLICT}: {first_few(ids)}"
    parts = [table[table["label"] >= 0].reindex(rows).dropna() for rows in _rows_by_digest(table)]
    groups = tuple(tuple(part["id"]) for part in parts if part["label"].nunique() > 1)
    issue = Issue(CONFLICT, False, message, ids, tuple(conflicts), groups)
    return [issue] * bool(conflicts)


def _copy_issues(table: pd.DataFrame, same: list[Match], near: list[Match]) -> list[Issue]:
    """Issues of copies across splits and within a split; their groups are all connected copies."""
    row, groups = {name: k for k, name in enumerate(table["id"])}, Groups(len(table))
    for match in same + near:
        groups.connect(row[match.first], row[match.second])
    members = table["id"].groupby(groups.labels()).agg(tuple).to_dict()
    split = dict(zip(table["id"], table["split"], strict=True))
    issues = []
    for kind, matches in ((SAME, same), (NEAR, _without_repeated_exposures(table, near))):
        for is_leak in (True, False):
            chosen = tuple(m for m in matches if (split[m.first] != split[m.second]) == is_leak)
            related = dict.fromkeys(groups.find(row[m.first]) for m in chosen)
            names = ids_of(chosen)
            message = f"{count_pairs(chosen)} of {kind} {_WHERE[is_leak]}: {first_few(names)}"
            issue = Issue(kind, is_leak, message, names, chosen, tuple(members[k] for k in related))
            issues += [issue] * bool(chosen)
    return issues


def _without_repeated_exposures(table: pd.DataFrame, near: list[Match]) -> list[Match]:
    """Near duplicates without pairs of the same patient, split and label, which do no harm."""
    keys = zip(table["id"], table["patient"], table["split"], table["label"], strict=True)
    key = {name: rest for name, *rest in keys}
    is_repeated = set(table["id"][table["digest"].duplicated(keep=False)])
    return [m for m in near if key[m.first] != key[m.second] or is_repeated & {m.first, m.second}]


def _describe_change(first: pd.Series, second: pd.Series, pair: NearDuplicate) -> str:
    """The changes from one image to its near duplicate, such as "mirrored, resized"."""
    mirrored, degrees = pair.pose.is_mirrored, abs(round(pair.pose.degrees))
    if mirrored and degrees > 90:  # a mirror image is first aligned upside down
        degrees = 180 - degrees
    changes = ["inverted"] * (pair.pose.score < 0) + ["mirrored"] * mirrored
    changes += [f"rotated by {degrees} degrees"] * (degrees > 2)
    changes += ["cropped"] * pair.pose.is_cropped
    if (first["width"], first["height"]) != (second["width"], second["height"]):
        changes.append("resized")
    if abs(first["mean"] - second["mean"]) > 6:
        changes.append("different brightness")
    return ", ".join(changes) or "re-encoded"


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
    """Whether a word for derived files, such as "_aug1", ends one of the names."""
    return any(_DERIVED.search(PurePosixPath(name).stem) for name in names)


def _file_digest(path: str) -> str:
    """``content_digest`` of a file, or "" if it cannot be read."""
    try:
        return content_digest(read_file_bytes(path), path)
    except ImageError:
        return ""
