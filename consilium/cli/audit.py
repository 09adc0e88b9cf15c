"""consilium audit: leaks, copies, broken files and confounds of a data set, with pairs to see."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from consilium.cli import init, words
from consilium.cli.arguments import positive
from consilium.inference import data_config
from consilium.inference.samples import HEIGHT, sheet
from consilium.inference.thumbnails import png
from datamodules.audit.audit import Audit, audit
from datamodules.audit.issues import Issue, Match
from datamodules.images import ImageError, read
from datamodules.manifest import Manifest
from evaluation.files import write_bytes, write_json, write_text
from evaluation.reports.html import Section, Table, Text, Thumbnails, write_report

VERSION = 1
QUARANTINE = "quarantine.csv"
SHOWN = 24  # pairs of a finding in the page


def run(args: list[str]) -> int:
    """Audits what is named; 1 when a leak was found, else 0."""
    asked = parser().parse_args(args)
    refuse(asked)
    manifest, name = _manifest(asked)
    if asked.start:
        init.refuse(Path(asked.start), manifest)
    folder = Path(asked.output or Path("runs") / f"audit-{name}")
    if asked.augmentations:
        data = data_config.from_configs(asked.config) if asked.config else None
        write_bytes(folder / "augmentations.png", sheet(manifest, data))
        print(f"augmentations: {folder / 'augmentations.png'}")
        return 0
    found = audit(manifest)
    write(found, folder, name)
    _print(found, folder)
    if asked.start:
        study = shlex.quote(str(_started(asked, found, folder)))
        print(f"study: consilium experiment run {study}")
    return 1 if found.leaks else 0


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = words.parser("audit", __doc__)
    main.add_argument("target", nargs="?", metavar="FOLDER|TABLE", help="pictures, or their table")
    main.add_argument("--config", action="append", default=[], help="a config with a data part")
    main.add_argument("-o", "--output", metavar="DIR", help="where to write (runs/audit-NAME)")
    main.add_argument("--path", metavar="COLUMN", help="the table's column of paths")
    main.add_argument("--label", metavar="COLUMN", help="the table's column of classes")
    main.add_argument("--split", metavar="COLUMN", help="the table's column of splits")
    help_ = "the table's column of patients, or several with commas that say it together; of a "
    help_ += "folder, an expression with one group"
    main.add_argument("--patient", metavar="COLUMN|REGEX", help=help_)
    help_ = "write a study of these pictures into DIR: its data, three small members, an ensemble"
    main.add_argument("--start", metavar="DIR", help=help_)
    help_ = "side in pixels of what the study's networks see (224)"
    main.add_argument("--size", type=positive, default=224, metavar="N", help=help_)
    help_ = "write a sheet of augmented training pictures instead, to look at"
    main.add_argument("--augmentations", action="store_true", help=help_)
    return main


def refuse(asked: argparse.Namespace) -> None:
    """Refuses what cannot be asked together."""
    if (asked.target is None) == (not asked.config):
        raise ValueError("name either a FOLDER or TABLE, or --config FILE")
    lost = [f"--{role}" for role in data_config.GUESSES if getattr(asked, role)]
    if asked.config and lost:
        raise ValueError(f"{' '.join(lost)}: the config says it; for a FOLDER or TABLE")
    if asked.start and asked.config:
        raise ValueError("--start: the data has a config already; it is for a FOLDER or TABLE")
    if asked.start and asked.augmentations:
        raise ValueError("--start: not with --augmentations, which audits nothing")


def write(found: Audit, folder: Path, name: str) -> None:
    """Writes audit.json, quarantine.csv and audit.html."""
    write_json(folder / "audit.json", as_dict(found))
    write_text(folder / QUARANTINE, found.quarantine().to_csv(index=False))
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
    parts.append(counts_table(found.manifest))
    paths = dict(zip(found.manifest.table["id"], found.manifest.table["path"], strict=True))
    parts += [_pairs(finding, paths) for finding in found.findings if finding.matches]
    rows = [(c.name, c.measure, c.value, c.about, "suspect" * c.suspect) for c in found.confounds]
    note = "AUC of one number against the class, or Cramer's V of one category with it."
    return [*parts, Table(("fact", "measure", "value", "class", ""), rows, "Confounds", note)]


def _manifest(asked: argparse.Namespace) -> tuple[Manifest, str]:
    if asked.config:
        data = data_config.from_configs(asked.config)
        data.source.prepare()
        return data.listed(), Path(asked.config[-1]).stem
    target = Path(asked.target)
    table = data_config.table_in(target)
    if table is not None:
        return data_config.from_table(table, _columns(asked)), table.resolve().parent.name
    lost = [f"--{role}" for role in ("path", "label", "split") if getattr(asked, role)]
    if lost:
        raise ValueError(f"{' '.join(lost)}: no columns in {target}; a TABLE has them")
    return data_config.from_folder(target, asked.patient), target.resolve().name


def _columns(asked: argparse.Namespace) -> dict[str, str | None]:
    return {role: getattr(asked, role) for role in data_config.GUESSES}


def _started(asked: argparse.Namespace, found: Audit, folder: Path) -> Path:
    """The study's file; what the audit put into quarantine is left out of it."""
    source = init.source_of(Path(asked.target), _columns(asked))
    left = str((folder / QUARANTINE).resolve()) if len(found.quarantine()) else ""
    return init.write(Path(asked.start), source, found.manifest, asked.size, left)


def _counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """For each split the pictures of each class, and the patients."""
    counts = {}
    for split, part in manifest.table.groupby("split"):
        by_label = part["label"].value_counts()
        named = {n: int(by_label.get(k, 0)) for k, n in enumerate(manifest.class_names)}
        counts[str(split)] = named | {"patients": int(part["patient"].nunique())}
    return counts


def counts_table(manifest: Manifest) -> Table:
    """For each split the pictures of each class, and the patients."""
    counts = _counts(manifest)
    columns = ("split", *manifest.class_names, "patients")
    return Table(columns, [(split, *each.values()) for split, each in counts.items()], "Counts")


def _pairs(finding: Issue, paths: dict[str, str]) -> Thumbnails:
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
    return png(np.hstack([_shown(first), np.full((HEIGHT, 4, 3), 255, np.uint8), _shown(second)]))


def _shown(path: str) -> np.ndarray:
    """The picture at the page's height; a gray field when it cannot be read."""
    try:
        image = read(path)
    except ImageError:
        return np.full((HEIGHT, HEIGHT, 3), 128, np.uint8)
    width = max(1, min(3 * HEIGHT, round(image.shape[1] * HEIGHT / image.shape[0])))
    small = cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(small if small.ndim == 3 else cv2.cvtColor(small, cv2.COLOR_GRAY2RGB))


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
