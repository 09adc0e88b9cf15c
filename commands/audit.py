"""consilium audit: leaks, copies, broken files and confounds of a data set, with pairs to see."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from commands import datasets
from datamodules.audit import Audit, audit
from datamodules.augment import Augment, policies
from datamodules.findings import Finding, Match
from datamodules.images import ImageError, read
from datamodules.manifest import Manifest
from datamodules.preprocess import Preprocess
from evaluation.files import write_bytes, write_json, write_text
from evaluation.report import Section, Table, Text, Thumbnails, write_report

VERSION = 1
SHOWN = 24  # pairs of a finding in the page
HEIGHT = 168


def run(args: list[str]) -> int:
    """Audits what is named; 1 when a leak was found, else 0."""
    asked = parser().parse_args(args)
    if (asked.target is None) == (not asked.config):
        raise ValueError("name either a FOLDER or TABLE, or --config FILE")
    manifest, name = _manifest(asked)
    folder = Path(asked.output or Path("runs") / f"audit-{name}")
    if asked.augmentations:
        write_bytes(folder / "augmentations.png", _sheet(manifest, asked.config))
        print(f"augmentations: {folder / 'augmentations.png'}")
        return 0
    found = audit(manifest)
    write(found, folder, name)
    _print(found, folder)
    return 1 if found.leaks else 0


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = argparse.ArgumentParser("consilium audit", description=__doc__)
    main.add_argument("target", nargs="?", metavar="FOLDER|TABLE", help="pictures, or their table")
    main.add_argument("--config", action="append", default=[], help="a config with a data part")
    main.add_argument("-o", "--output", metavar="DIR", help="where to write (runs/audit-NAME)")
    main.add_argument("--path", metavar="COLUMN", help="the table's column of paths")
    main.add_argument("--label", metavar="COLUMN", help="the table's column of classes")
    main.add_argument("--split", metavar="COLUMN", help="the table's column of splits")
    help_ = "the table's column of patients; of a folder, an expression with one group"
    main.add_argument("--patient", metavar="COLUMN|REGEX", help=help_)
    help_ = "write a sheet of augmented training pictures instead, to look at"
    main.add_argument("--augmentations", action="store_true", help=help_)
    return main


def write(found: Audit, folder: Path, name: str) -> None:
    """Writes audit.json, quarantine.csv and audit.html."""
    write_json(folder / "audit.json", as_dict(found))
    write_text(folder / "quarantine.csv", found.quarantine().to_csv(index=False))
    write_report(folder / "audit.html", f"Audit of {name}", sections(found))


def as_dict(found: Audit) -> dict[str, object]:
    """All of the audit as plain data."""
    table = found.manifest.table
    return {
        "version": VERSION,
        "files": len(table),
        "patients": int(table["patient"].nunique()),
        "leaks": len(found.leaks),
        "notes": list(found.manifest.notes),
        "counts": _counts(found.manifest),
        "findings": [asdict(finding) for finding in found.findings],
        "confounds": [asdict(fact) | {"suspect": fact.suspect} for fact in found.confounds],
    }


def sections(found: Audit) -> list[Section]:
    """The report: what was found in words, the counts, the pairs side by side, the confounds."""
    lead = f"{len(found.manifest.table):,} files: {len(found.leaks)} kinds of leak"
    lead += f" and {len(found.findings) - len(found.leaks)} other findings."
    lines = [*(f.message for f in found.findings), *found.manifest.notes]
    parts: list[Section] = [Text(lead, lead=True), Text("\n\n".join(lines))]
    parts.append(_counts_table(found.manifest))
    paths = dict(zip(found.manifest.table["id"], found.manifest.table["path"], strict=True))
    parts += [_pairs(finding, paths) for finding in found.findings if finding.matches]
    rows = [(c.name, c.measure, c.value, c.about, "suspect" * c.suspect) for c in found.confounds]
    note = "AUC of one number against the class, or Cramer's V of one category with it."
    return [*parts, Table(("fact", "measure", "value", "class", ""), rows, "Confounds", note)]


def _manifest(asked: argparse.Namespace) -> tuple[Manifest, str]:
    if asked.config:
        data = datasets.from_configs(asked.config)
        data.source.prepare()
        return data.listed(), Path(asked.config[-1]).stem
    target = Path(asked.target)
    if target.is_file():
        columns = {role: getattr(asked, role) for role in datasets.GUESSES}
        return datasets.from_table(target, columns), target.resolve().parent.name
    return datasets.from_folder(target, asked.patient), target.resolve().name


def _counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """For each split the pictures of each class, and the patients."""
    counts = {}
    for split, part in manifest.table.groupby("split"):
        by_label = part["label"].value_counts()
        named = {n: int(by_label.get(k, 0)) for k, n in enumerate(manifest.class_names)}
        counts[str(split)] = named | {"patients": int(part["patient"].nunique())}
    return counts


def _counts_table(manifest: Manifest) -> Table:
    counts = _counts(manifest)
    columns = ("split", *manifest.class_names, "patients")
    return Table(columns, [(split, *each.values()) for split, each in counts.items()], "Counts")


def _pairs(finding: Finding, paths: dict[str, str]) -> Thumbnails:
    chosen = _spread(finding.matches)
    alike = [f" ({m.likeness:.2f})" if m.likeness < 1 else "" for m in chosen]
    captions = [f"{m.first} | {m.second}: {m.how}{a}" for m, a in zip(chosen, alike, strict=True)]
    images = [_side_by_side(paths[m.first], paths[m.second]) for m in chosen]
    note = f"{len(chosen)} of {len(finding.matches)} pairs. {finding.message}"
    kind = f"Leak: {finding.kind}" if finding.leak else finding.kind.capitalize()
    return Thumbnails(images, captions, kind, note)


def _spread(matches: Sequence[Match]) -> list[Match]:
    """Some pairs over the whole range of likeness, the least sure ones first."""
    ordered = sorted(matches, key=lambda match: match.likeness)
    sure = np.linspace(SHOWN // 2, len(ordered) - 1, SHOWN // 2).astype(int)
    return ordered if len(ordered) <= SHOWN else ordered[: SHOWN // 2] + [ordered[k] for k in sure]


def _side_by_side(first: str, second: str) -> bytes:
    return _png(np.hstack([_shown(first), np.full((HEIGHT, 4, 3), 255, np.uint8), _shown(second)]))


def _shown(path: str) -> np.ndarray:
    """The picture at the page's height; a gray field when it cannot be read."""
    try:
        image = read(path)
    except ImageError:
        return np.full((HEIGHT, HEIGHT, 3), 128, np.uint8)
    width = max(1, min(3 * HEIGHT, round(image.shape[1] * HEIGHT / image.shape[0])))
    small = cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(small if small.ndim == 3 else cv2.cvtColor(small, cv2.COLOR_GRAY2RGB))


def _sheet(manifest: Manifest, configs: list[str]) -> bytes:
    """A row a picture: as it is, then seven times augmented; without a config, a row a policy."""
    if configs:
        data = datasets.from_configs(configs)
        view, rules = data.preprocess, [data.augment] * 6
    else:
        view, rules = Preprocess(), [Augment(name) for name in policies() if name != "none"]
    paths = manifest.table["path"]
    chosen = np.linspace(0, len(paths) - 1, len(rules)).astype(int)
    rows = [
        _sheet_row(view, rule, paths.iloc[k], int(k)) for k, rule in zip(chosen, rules, strict=True)
    ]
    return _png(np.vstack(rows))


def _sheet_row(view: Preprocess, rule: Augment, path: str, index: int) -> np.ndarray:
    pixels = view.pixels(read(path))
    cells = [pixels, *(rule(pixels, (0, epoch, index)) for epoch in range(7))]
    small = [cv2.resize(cell, (HEIGHT, HEIGHT), interpolation=cv2.INTER_AREA) for cell in cells]
    return np.hstack([c if c.ndim == 3 else cv2.cvtColor(c, cv2.COLOR_GRAY2RGB) for c in small])


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def _print(found: Audit, folder: Path) -> None:
    for finding in found.findings:
        print(f"{'LEAK' if finding.leak else 'note'}: {finding.message}")
    for fact in found.confounds:
        if fact.suspect:
            about = f" ({fact.about})" if fact.about else ""
            told = f"{fact.measure} {fact.value:.3f}"
            print(f"note: {fact.name} alone predicts the class{about}: {told}")
    for note in found.manifest.notes:
        print(f"note: {note}")
    print(f"{len(found.manifest.table):,} files, {len(found.leaks)} kinds of leak")
    print(f"report: {folder / 'audit.html'}")
