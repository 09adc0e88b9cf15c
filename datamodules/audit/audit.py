"""Finds what makes a data set's figures untrue: leaks, copies, broken files, confounds."""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from datamodules.audit.confounds import Confound, confounds
from datamodules.audit.file_stats import NUMBERS, Survey, survey
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
from datamodules.audit.near_duplicates import Looks, search
from datamodules.images import ImageError, content, digest_of, without_frame
from datamodules.manifest import Manifest

_WORDS = "aug|augmented|flip|flipped|hflip|vflip|rot|rotated|rotate|mirror|mirrored|bright|dark"
_WORDS += "|brightness|contrast|gamma|blur|noise|crop|cropped|zoom|shift|shear|jitter|copy|dup"
_DERIVED = re.compile(rf"([ _.-]+({_WORDS})[ _.-]*\(?-?\d*\)?| ?\(\d+\))+$", re.IGNORECASE)
_SIDES = {"train", "training", "val", "valid", "validation", "test", "testing"}
_HUGE_PIXELS, _HUGE_BYTES = 50_000_000, 100_000_000


@dataclass(frozen=True, eq=False)
class Audit:
    """All that an audit found."""

    manifest: Manifest
    findings: list[Issue]
    confounds: list[Confound]

    @property
    def leaks(self) -> list[Issue]:
        """The findings for which the audit fails."""
        return [finding for finding in self.findings if finding.leak]

    def quarantine(self) -> pd.DataFrame:
        """Samples to leave out so that no leak remains: id, path, split, reason."""
        return quarantine(self.manifest.table, self.findings)


def cheap_leaks(manifest: Manifest) -> list[Issue]:
    """Leaks that can be found without decoding: patients, names, equal bytes across splits."""
    sizes = defaultdict(list)
    for k, path in enumerate(manifest.table["path"]):
        file = without_frame(path)[0]
        sizes[file.stat().st_size if file.is_file() else -k - 1].append(k)
    splits = manifest.table["split"].to_numpy()
    digests = np.array([f"unread {k}" for k in range(len(splits))], dtype=object)
    for rows in sizes.values():
        if len(set(splits[rows])) > 1:
            digests[rows] = [_digest(manifest.table["path"].iloc[k]) for k in rows]
    found = [*patients(manifest), *derived(manifest), *same_bytes(manifest, digests)]
    return [finding for finding in found if finding.leak]


def audit(manifest: Manifest) -> Audit:
    """Looks at every file once and reports all that is wrong."""
    seen = survey(manifest.table["path"].tolist())
    digests = seen.table["digest"].to_numpy(dtype=object)
    findings = [*patients(manifest), *derived(manifest), *same_bytes(manifest, digests)]
    findings += near_copies(manifest, seen)
    findings += conflicts(manifest, findings)
    findings += files(manifest, seen)
    facts = seen.table[["format", "color", *NUMBERS]].join(_attributes(manifest))
    labels = manifest.table["label"].to_numpy()
    found = confounds(facts, list(NUMBERS), labels, manifest.class_names)
    return Audit(manifest, sorted(findings, key=lambda f: not f.leak), found)


def patients(manifest: Manifest) -> list[Issue]:
    """One finding if any patient stands in more than one split."""
    table = manifest.table
    sides = table.groupby("patient")["split"].nunique()
    shared = sides.index[sides > 1].tolist()
    if not shared:
        return []
    rows = table[table["patient"].isin(set(shared))]
    matches = [_across(part) for _, part in rows.groupby("patient")]
    message = f"{len(shared)} patients stand in more than one split: {_some(shared)}"
    groups = tuple(tuple(part["id"]) for _, part in rows.groupby("patient"))
    return [Issue(PATIENT, True, message, rows["id"].tolist(), tuple(matches), groups)]


def derived(manifest: Manifest) -> list[Issue]:
    """Files whose names say that they were made from one another."""
    table = manifest.table
    bases = defaultdict(list)
    for k, name in enumerate(table["id"]):
        bases[_base(name)].append(k)
    groups = [rows for rows in bases.values() if len(rows) > 1 and _any_derived(table, rows)]
    crossing = [rows for rows in groups if table["split"].iloc[rows].nunique() > 1]
    found = []
    for leak, chosen in ((True, crossing), (False, [g for g in groups if g not in crossing])):
        if chosen:
            ids = table["id"].iloc[[k for rows in chosen for k in rows]].tolist()
            where = "on both sides of a split" if leak else "within one split"
            message = f"{len(chosen)} originals have derived files {where}: {_some(ids)}"
            matches = tuple(_across(table.iloc[rows], "name") for rows in chosen)
            named = tuple(tuple(table["id"].iloc[rows]) for rows in chosen)
            found.append(Issue(NAMES, leak, message, ids, matches, named))
    return found


def same_bytes(manifest: Manifest, digests: np.ndarray) -> list[Issue]:
    """Files that are equal to the last byte; an empty digest stands for none."""
    table = manifest.table
    groups = [list(rows) for digest, rows in _grouped(digests).items() if digest]
    matches = [
        Match(table["id"].iloc[rows[0]], table["id"].iloc[k], "same bytes")
        for rows in groups
        for k in _one_a_side(table, rows)
    ]
    return _by_side(manifest, SAME, matches, _copies(manifest, digests))


def near_copies(manifest: Manifest, seen: Survey) -> list[Issue]:
    """Pictures that show the same, though their bytes differ."""
    rows = _distinct(seen.table)
    table = manifest.table.iloc[rows]
    keys = table["patient"] + "\n" + table["split"] + "\n" + table["label"].astype(str)
    groups = pd.factorize(keys)[0]
    repeated = seen.table["digest"].duplicated(keep=False).to_numpy()[rows]
    groups[repeated] = -1  # stands for copies that may be of other patients and splits
    shape = seen.table[["width", "height"]].to_numpy(float)
    looks = Looks(seen.looks, shape.min(axis=1), shape[:, 0] == shape[:, 1], rows)
    matches = []
    for pair in search(looks, groups):
        one, other = rows[pair.first], rows[pair.second]
        how = _how(seen.table.iloc[one], seen.table.iloc[other], pair.mirrored, pair.degrees)
        first, second = manifest.table["id"].iloc[[one, other]]
        matches.append(Match(first, second, how, round(pair.likeness, 3)))
    copies = _copies(manifest, seen.table["digest"].to_numpy(dtype=object))
    return _by_side(manifest, NEAR, matches, copies)


def conflicts(manifest: Manifest, findings: list[Issue]) -> list[Issue]:
    """Copies that carry different labels: at least one of the labels is wrong."""
    label = dict(zip(manifest.table["id"], manifest.table["label"], strict=True))
    names = manifest.class_names
    found = [
        replace(m, how=f"{m.how}; {names[label[m.first]]} and {names[label[m.second]]}")
        for finding in findings
        if finding.kind in (SAME, NEAR)
        for m in finding.matches
        if label[m.first] != label[m.second] and min(label[m.first], label[m.second]) >= 0
    ]
    if not found:
        return []
    ids = list(dict.fromkeys(name for m in found for name in (m.first, m.second)))
    message = f"{len(found)} pairs of copies carry different labels: {_some(ids)}"
    return [Issue(CONFLICT, False, message, ids, tuple(found))]


def files(manifest: Manifest, seen: Survey) -> list[Issue]:
    """Files that cannot be read, show nothing, or are far larger than a network can use."""
    facts, ids = seen.table, manifest.table["id"]
    broken = facts["error"] != ""
    huge = (facts["width"] * facts["height"] > _HUGE_PIXELS) | (facts["bytes"] > _HUGE_BYTES)
    found = []
    for kind, rows in ((BROKEN, broken), (CONSTANT, facts["std"] < 1.0), (HUGE, huge)):
        if rows.any():
            named = facts["error"][rows].tolist() if kind == BROKEN else ids[rows].tolist()
            message = f"{int(rows.sum())} {kind}: {_some(named)}"
            found.append(Issue(kind, False, message, ids[rows].tolist()))
    return found


def _copies(manifest: Manifest, digests: np.ndarray) -> dict[str, tuple[str, ...]]:
    """Of each sample that has copies to the last byte all of them, by id."""
    ids = manifest.table["id"]
    groups = [tuple(ids.iloc[rows]) for digest, rows in _grouped(digests).items() if digest]
    return {name: group for group in groups for name in group}


def _by_side(
    manifest: Manifest, kind: str, matches: list[Match], copies: dict[str, tuple[str, ...]]
) -> list[Issue]:
    split = dict(zip(manifest.table["id"], manifest.table["split"], strict=True))
    found = []
    for leak in (True, False):
        chosen = tuple(m for m in matches if (split[m.first] != split[m.second]) == leak)
        if chosen:
            ids = list(dict.fromkeys(name for m in chosen for name in (m.first, m.second)))
            where = "on two sides of a split" if leak else "within one split"
            message = f"{len(chosen)} pairs ({kind}) {where}: {_some(ids)}"
            groups = tuple(
                tuple(dict.fromkeys([*copies.get(m.first, ()), *copies.get(m.second, ()),
                                     m.first, m.second]))
                for m in chosen
            )  # fmt: skip
            found.append(Issue(kind, leak, message, ids, chosen, groups))
    return found


def _how(one: pd.Series, other: pd.Series, mirrored: bool, degrees: float) -> str:
    """In words, what was done to one picture to get the other."""
    turn = abs(round(degrees))
    if mirrored and turn > 90:  # upside down is how a mirror image is first laid
        turn = 180 - turn
    words = ["mirrored"] * mirrored + [f"turned by {turn} degrees"] * (turn > 2)
    if (one["width"], one["height"]) != (other["width"], other["height"]):
        words.append("resized")
    if abs(one["mean"] - other["mean"]) > 6:
        words.append("other light")
    return ", ".join(words) or "re-encoded"


def _distinct(facts: pd.DataFrame) -> np.ndarray:
    """One row of each readable picture that shows something."""
    usable = (facts["error"] == "") & (facts["std"] >= 1.0)
    return np.flatnonzero((usable & ~facts["digest"].duplicated()).to_numpy())


def _grouped(digests: np.ndarray) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for k, digest in enumerate(digests):
        groups[digest].append(k)
    return {digest: rows for digest, rows in groups.items() if len(rows) > 1}


def _one_a_side(table: pd.DataFrame, rows: list[int]) -> list[int]:
    """All copies but the first, those of another split first."""
    split = table["split"]
    return sorted(rows[1:], key=lambda k: split.iloc[k] == split.iloc[rows[0]])


def _across(part: pd.DataFrame, how: str = "patient") -> Match:
    """Two rows of a group, of different splits if there are any."""
    first = part.iloc[0]
    others = part[part["split"] != first["split"]]
    second = others.iloc[0] if len(others) else part.iloc[-1]
    return Match(str(first["id"]), str(second["id"]), f"same {how}")


def _base(name: str) -> str:
    """The path without its split folder, its suffix and its words for derived files."""
    path = PurePosixPath(name)
    folders = [part for part in path.parts[:-1] if part.lower() not in _SIDES]
    return "/".join([*folders, _DERIVED.sub("", path.stem)])


def _any_derived(table: pd.DataFrame, rows: list[int]) -> bool:
    return any(_DERIVED.search(PurePosixPath(table["id"].iloc[k]).stem) for k in rows)


def _attributes(manifest: Manifest) -> pd.DataFrame:
    return manifest.table[[name for name in manifest.attributes if name != "box"]]


def _digest(path: str) -> str:
    try:
        return digest_of(content(path), without_frame(path)[1])
    except ImageError:
        return ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
