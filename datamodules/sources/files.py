"""Which files of a folder are images, and what their headers say about patients."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from datamodules import dicom
from datamodules.images import detect_format, split_frame_number
from datamodules.manifest import SPLIT_ALIASES

DICOM_SUFFIXES = frozenset([".dcm", ".dicom", ".ima"])
SUFFIXES = DICOM_SUFFIXES | {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
UNSUPPORTED = frozenset([".avif", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpx", ".jxl",
                         ".mha", ".nii", ".nrrd", ".pgm", ".pnm", ".ppm", ".svs"])  # fmt: skip
UNKNOWN_PATIENTS = "patients are unknown: images of one patient may be in more than one split"
_NO_SUFFIX = re.compile(r"(\.\d*)?")  # or a number, as at the end of DICOM's UIDs


def scan_folder(root: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Relative paths of all images below a folder, and notes on other files, by suffix.

    Links are followed, hidden files left out; a folder without images is a ValueError.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such file or folder")
    paths = sorted(path.relative_to(root) for path in _files_below(root))
    visible = [path for path in paths if "/." not in f"/{path.as_posix()}"]
    if foreign := [str(path) for path in visible if not _is_unicode(str(path))]:
        raise ValueError(f"{root}: the file name {foreign[0]!r} is not in UTF-8; rename it")
    files = [path for path in visible if file_format(root / path) is not None]
    suffixes = Counter(path.suffix.lower() for path in set(visible) - set(files))
    if not files:
        message = f"no image files ({' '.join(sorted(SUFFIXES))}) below it"
        raise ValueError(f"{root}: {message}{f'; skipped: {_counts(suffixes)}' * bool(suffixes)}")
    others = Counter({s: n for s, n in suffixes.items() if s in UNSUPPORTED})
    notes = {"are images in formats that are not supported, and are skipped": others,
             "are no images and are skipped": suffixes - others}  # fmt: skip
    return files, tuple(f"{n.total()} files {why}: {_counts(n)}" for why, n in notes.items() if n)


def _counts(suffixes: Counter[str]) -> str:
    """Text such as "12 .txt, 3 without a suffix", the most frequent one first."""
    ordered = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in ordered)


def _files_below(root: Path) -> Iterator[Path]:
    """Yields all files, also of linked folders, except links to a folder that contains the link."""
    for folder, folders, names in os.walk(root, followlinks=True):
        yield from (Path(folder, name) for name in names)
        real = Path(folder).resolve()
        folders[:] = [n for n in folders if not real.is_relative_to(Path(folder, n).resolve())]


def _is_unicode(text: str) -> bool:
    """Whether a file name is in UTF-8, so that it can be written to a file."""
    return text.encode("utf-8", "ignore").decode() == text


def file_format(file: Path) -> str | None:
    """dicom, image or None by the suffix; without one, as ``detect_format`` by the content."""
    suffix = file.suffix.lower()
    if suffix in SUFFIXES:
        return "dicom" if suffix in DICOM_SUFFIXES else "image"
    if not _NO_SUFFIX.fullmatch(suffix) or file.name == "DICOMDIR" or not file.is_file():
        return None
    with file.open("rb") as content:
        return detect_format(content.read(132))


def has_split_folders(files: list[Path]) -> bool:
    """Whether one of the relative paths begins with a folder named train, val or test."""
    return any(path.parts[0].lower() in SPLIT_ALIASES for path in files)


def complete_patients(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The table with empty patients and studies filled from DICOM headers, and notes.

    Other tags of the headers become attributes. A row that still lacks a patient is its own
    patient, with a note; a row that lacks a study has the name of its patient as study.
    """
    tags, notes = _dicom_tags(table["path"])
    patient = table["patient"].where(table["patient"] != "", tags["patient"])
    is_unknown = patient == ""
    patient = patient.mask(is_unknown, table["id"])
    study = table["study"].where(table["study"] != "", tags["study"])
    table = table.assign(patient=patient, study=study.where(study != "", patient))
    some = f"{is_unknown.sum()} images have no patient; each is treated as a patient of its own"
    notes += (UNKNOWN_PATIENTS,) if is_unknown.all() else (some,) * bool(is_unknown.any())
    attributes = [name for name in tags if name not in table and tags[name].any()]
    return table.join(tags[attributes]), notes


def _dicom_tags(paths: pd.Series) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A row of ``dicom.TAGS`` for each path, "" for files other than DICOM, and notes.

    A patient ID that all of several studies share is ignored.
    """
    files = [split_frame_number(path)[0] for path in paths]
    headers = [file for file in dict.fromkeys(files) if file_format(file) == "dicom"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        by_file = dict(zip(headers, pool.map(dicom.read_tags, headers), strict=True))
    columns = list(dicom.TAGS.values())
    values = [by_file.get(file, dict.fromkeys(columns, "")) for file in files]
    tags = pd.DataFrame(values, paths.index, columns)
    rows = tags[[file in by_file for file in files]]
    patients, num_studies = rows["patient"].unique().tolist(), rows["study"].nunique()
    if len(patients) != 1 or not patients[0] or num_studies < 2:
        return tags, ()
    note = f"all DICOM files have the PatientID {patients[0]!r}, which is ignored"
    return tags.assign(patient=""), (note,)
