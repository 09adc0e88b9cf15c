"""A dataset as tables and images, and the result of its audit as JSON, CSV and HTML."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd

from consilium.config_files import read_config
from consilium.inference.data_config import find_table
from datamodules.audit.audit import Audit
from datamodules.audit.confounds import MIN_PATIENTS, Confound
from datamodules.audit.issues import Issue, Match
from datamodules.images import ImageError, encode_png, read_image, read_thumbnail
from datamodules.manifest import SPLITS, Manifest, labels_of, one_hot_labels
from datamodules.sources.files import UNKNOWN_PATIENTS
from evaluation.files import write_json, write_text
from evaluation.reports.html import Cell, Section, Table, Text, Thumbnails, write_report

if TYPE_CHECKING:
    from datamodules.datamodule import ImageDataModule

VERSION = 1
JSON, QUARANTINE, PAGE = "audit.json", "quarantine.csv", "audit.html"
COPIES = "copies.csv"
MAX_PAIRS = 24  # shown for each issue
HEIGHT = 168  # pixels; of an image on the page and on the augmentation sheet
COLUMNS = 8  # of the augmentation sheet
CONFOUNDS_NOTE = (
    "AUC of one number for the class, with Newcombe's 95 % interval for the number of patients, or "
    f"Cramer's V of one category with the class. Classes of fewer than {MIN_PATIENTS} patients are "
    "left out."
)
NOT_MEASURED = f"confounds are not measured: fewer than two classes have {MIN_PATIENTS} patients"
SEVERAL_FINDINGS = (
    "confounds and different labels of copies are not measured with several findings per image"
)


def write_audit_report(
    audit: Audit, folder: Path, name: str, commands: Sequence[str] = (), excluded: str | None = None
) -> None:
    """Writes audit.json, quarantine.csv, copies.csv and audit.html with the next ``commands``.

    The quarantine begins with the samples in the CSV file ``excluded``, which the dataset leaves
    out already: it takes the place of that file.
    """
    earlier = [pd.read_csv(excluded, dtype=str)] if excluded else []
    quarantine = pd.concat([*earlier, audit.quarantine()])
    write_text(folder / QUARANTINE, quarantine.to_csv(index=False))
    write_text(folder / COPIES, audit.copy_groups().to_csv(index=False))
    steps = [Text("\n\n".join(commands), "What to do next")] * bool(commands)
    write_report(folder / PAGE, f"Audit of {name}", [*audit_sections(audit), *steps])
    write_json(folder / JSON, audit_to_dict(audit))


def audit_to_dict(audit: Audit) -> dict[str, object]:
    """The content of audit.json."""
    table = audit.manifest.table
    return {
        "version": VERSION,
        "manifest_digest": audit.manifest.digest(),
        "files": len(table),
        "patients": int(table["patient"].nunique()),
        "leaks": len(audit.leaks),
        "notes": list(audit.manifest.notes),
        "counts": _split_counts(audit.manifest),
        "overlaps": [overlap._asdict() for overlap in audit.overlaps()],
        "issues": [asdict(issue) for issue in audit.issues],
        "confounds": [asdict(c) | {"is_suspect": c.is_suspect} for c in audit.confounds],
    }


def audit_sections(audit: Audit) -> list[Section]:
    """Sections of the page: issues, counts, pairs of images side by side, confounds."""
    lead = "".join(f"{sentence}. " for sentence in overlap_sentences(audit))
    lead += f"{leak_summary(audit)}; other issues: {len(audit.issues) - len(audit.leaks)}."
    lines = [*(issue.message for issue in audit.issues), *audit_notes(audit)]
    paths = dict(zip(audit.manifest.table["id"], audit.manifest.table["path"], strict=True))
    pairs = [_pair_thumbnails(issue, paths) for issue in audit.issues if issue.matches]
    text = [Text(lead, lead=True), Text("\n\n".join(lines)), counts_table(audit.manifest)]
    files = [Table((f"{len(issue.ids)} files",), [(r,) for r in issue.reasons],
                   issue.kind.capitalize()) for issue in audit.issues if issue.reasons]  # fmt: skip
    return [*text, *files, *pairs, _confounds_table(audit.confounds)]


def overlap_sentences(audit: Audit) -> list[str]:
    """Sentences on what val and test share with train, such as "2 of 9 test images also ..."."""
    sentences = []
    for split, images, copied, same_patient in audit.overlaps():
        name = "validation" if split == "val" else split
        verb = "occurs" if copied == 1 else "occur"
        if copied or not same_patient:
            sentences.append(f"{copied:,} of {images:,} {name} images also {verb} in training")
        if same_patient:
            count = f"{same_patient:,} of {images:,} {name} images"
            sentences.append(f"{count} are of patients who also have images in training")
    return sentences


def leak_summary(audit: Audit) -> str:
    """The number of files and of kinds of leaks, such as "1,200 files, 1 kind of leak"."""
    count, unreadable = len(audit.leaks), "; none of them can be read" * audit.is_unreadable
    files = f"{len(audit.manifest.table):,} files"
    return f"{files}, {count} kind{'s' * (count != 1)} of leak{unreadable}"


def describe_confound(confound: Confound) -> str:
    """A sentence on what alone predicts the class, its measure, interval and number of images."""
    target = f"class {confound.class_name}" if confound.class_name else "class"
    measure = f"{confound.measure} {_value_with_interval(confound)}, {confound.n:,} images"
    if confound.determines_class:
        reason = "another name of it, or a complete confound"
        return f"{confound.label} alone determines the {target}: {reason} ({measure})"
    return f"{confound.label} alone predicts the {target} ({measure})"


def audit_notes(audit: Audit) -> list[str]:
    """Sentences on what is no leak: suspect confounds, and notes on the dataset."""
    not_measured = [NOT_MEASURED] * _lacks_patients(audit)
    not_measured += [SEVERAL_FINDINGS] * audit.manifest.is_multi_label
    return [*map(describe_confound, audit.suspects), *not_measured, *audit.manifest.notes]


def _value_with_interval(confound: Confound) -> str:
    """`0.912 (0.874 to 0.940)`, or the value alone if there is no interval."""
    if confound.low is None or confound.high is None:
        return f"{confound.value:.3f}"
    return f"{confound.value:.3f} ({confound.low:.3f} to {confound.high:.3f})"


def _lacks_patients(audit: Audit) -> bool:
    """Whether the classes have too few patients to measure confounds."""
    return not audit.confounds and audit.manifest.table["label"].nunique() > 1


def _confounds_table(confounds: Sequence[Confound]) -> Table:
    rows = [
        (c.label, c.measure, _value_with_interval(c), c.n, c.class_name, "suspect" * c.is_suspect)
        for c in confounds
    ]
    columns = ("statistic or column", "measure", "value", "images", "class", "")
    return Table(columns, rows, "Confounds", CONFOUNDS_NOTE)


def next_commands(
    audit: Audit, folder: Path, name: str, dataset: Sequence[str], excluded: str | None = None
) -> list[str]:
    """What to do next, mostly commands; ``dataset`` are the arguments that named the dataset."""
    target, count = shlex.join(dataset), len(audit.quarantine())
    without = f"without {count} image{'s' * (count != 1)}"
    if dataset[0] == "--config":
        quarantine = shlex.quote(str(folder / QUARANTINE))
        command = f"consilium fit {target} --data.init_args.exclude {quarantine}"
        if "class_path" in read_config(Path(dataset[-1])):  # of the data alone
            command = f"edit {dataset[-1]}, init_args: set exclude: {quarantine}"
        others = f" and without those of {excluded}, which it repeats" if excluded else ""
        return [f"{command}  # {without}{others}"] * bool(count)
    commands = []
    if UNKNOWN_PATIENTS in audit.manifest.notes:
        value = "REGEX" if find_table(Path(dataset[0])) is None else "COLUMN"
        commands.append(f"consilium audit {target} --patient {value}  # if patients are known")
    has_classes = len(audit.manifest.class_names) > 1
    if has_classes and (audit.manifest.table["label"] >= 0).any() and not audit.is_unreadable:
        arguments = shlex.join(["--audit", str(folder), "-o", f"{name}-experiment"])
        comment = f"  # configs {without}" if count else ""
        commands.append(f"consilium init {target} {arguments}{comment}")
    return commands


def counts_table(manifest: Manifest) -> Table:
    """Number of images of each class or finding, and of patients, in each split."""
    counts = _split_counts(manifest)
    rows: list[tuple[Cell, ...]] = [(split, *n.values()) for split, n in counts.items()]
    return Table(("split", *manifest.class_names, "patients"), rows, "Counts")


def _split_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Images of each class or finding, and patients, by split; empty splits are left out."""
    counts = {}
    for split in SPLITS:
        part = manifest.table.iloc[manifest.rows(split)]
        if part.empty:
            continue
        one_hot = one_hot_labels(labels_of(part), len(manifest.class_names))
        by_class = dict(zip(manifest.class_names, one_hot.sum(axis=0).tolist(), strict=True))
        counts[split] = by_class | {"patients": int(part["patient"].nunique())}
    return counts


def _pair_thumbnails(issue: Issue, paths: dict[str, str]) -> Thumbnails:
    """The matches of an issue as pairs of images side by side; `paths` are by sample id."""
    matches = _select_matches(issue.matches)
    captions = [
        f"{m.first} | {m.second}: {m.reason}" + f" ({m.similarity:.2f})" * (m.similarity < 1)
        for m in matches
    ]
    gap = np.full((HEIGHT, 4, 3), 255, np.uint8)
    pairs = [(_read_scaled(paths[m.first]), gap, _read_scaled(paths[m.second])) for m in matches]
    images = [encode_png(np.hstack(pair)) for pair in pairs]
    is_part = len(matches) < len(issue.matches)
    note = f"{len(matches)} of {len(issue.matches)} pairs. " * is_part + issue.message
    title = f"Leak: {issue.kind}" if issue.is_leak else issue.kind.capitalize()
    return Thumbnails(images, captions, title, note)


def _select_matches(matches: Sequence[Match]) -> list[Match]:
    """At most MAX_PAIRS matches, the least similar first: half of them, then evenly spaced ones."""
    ordered = sorted(matches, key=lambda match: match.similarity)
    half = MAX_PAIRS // 2
    rest = np.linspace(half, len(ordered) - 1, half).astype(int)
    return ordered if len(ordered) <= MAX_PAIRS else ordered[:half] + [ordered[k] for k in rest]


def _read_scaled(path: str) -> np.ndarray:
    """The image as RGB, scaled to HEIGHT pixels; a gray square if it cannot be read."""
    try:
        image = read_image(path)
    except ImageError:
        return np.full((HEIGHT, HEIGHT, 3), 128, np.uint8)
    width = max(1, min(3 * HEIGHT, round(image.shape[1] * HEIGHT / image.shape[0])))
    return _resize_to_rgb(image, width)


def _resize_to_rgb(image: np.ndarray, width: int) -> np.ndarray:
    """The gray or color image as RGB (HEIGHT, width, 3)."""
    scaled = cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(scaled if scaled.ndim == 3 else cv2.cvtColor(scaled, cv2.COLOR_GRAY2RGB))


def example_images(manifest: Manifest, split: str = "train", per_class: int = 4) -> Thumbnails:
    """Thumbnails of the first images of each class in a split, with class and id as captions."""
    table = manifest.table[manifest.table["split"] == split]
    rows = table.groupby("label").head(per_class).sort_values("label", kind="stable")
    names = [manifest.class_names[k] if k >= 0 else "unknown" for k in rows["label"]]
    captions = [f"{name}\n{sample}" for name, sample in zip(names, rows["id"], strict=True)]
    return Thumbnails([read_thumbnail(Path(path)) for path in rows["path"]], captions)


def augmentation_sheet(manifest: Manifest, data: "ImageDataModule | None" = None) -> bytes:
    """PNG with a row for each image: the image and seven augmentations of it.

    Six images by the policy of `data`; without `data`, one image by each policy.
    """
    from datamodules.augment import AUGMENTATIONS, Augment
    from datamodules.preprocess import Preprocess

    policies = [Augment(name) for name in sorted(AUGMENTATIONS) if name != "none"]
    preprocess = data.preprocess if data is not None else Preprocess()
    augmentations = [data.augment] * 6 if data is not None else policies
    paths, rows = manifest.table["path"], []
    indices = np.linspace(0, len(paths) - 1, len(augmentations)).astype(int).tolist()
    for k, augment in zip(indices, augmentations, strict=True):
        pixels = preprocess.to_pixels(read_image(paths.iloc[k]))
        images = [pixels, *(augment(pixels, (0, epoch, k)) for epoch in range(COLUMNS - 1))]
        rows.append(np.hstack([_resize_to_rgb(image, HEIGHT) for image in images]))
    return encode_png(np.vstack(rows))
