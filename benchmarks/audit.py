"""Precision and recall of the search for near-duplicates, and time and memory of an audit.

Run: python -m benchmarks.audit pairs [IMAGES_PER_KIND]
     python -m benchmarks.audit planted [IMAGES] --table CSV [--patient COLUMNS]
     python -m benchmarks.audit size NUM_FILES...
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from benchmarks.resources import Stopwatch, peak_memory
from consilium.inference.data_config import COLUMN_ALIASES, load_target
from datamodules.audit.audit import audit_manifest
from datamodules.audit.near_duplicates import find_near_duplicates
from datamodules.audit.thumbnails import Thumbnails
from datamodules.images import read_image
from datamodules.phantoms.generate import KINDS, PhantomSpec, generate_images, write_dataset
from datamodules.sources import Table
from datamodules.splits import SplitFractions

ROOT = Path(__file__).parents[1]
SHARES = (0.0, 0.05, 0.3, 0.9)  # of the images that get a changed copy
Change = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Prints precision and recall, or time and memory for each number of files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measurement", choices=["pairs", "planted", "size"])
    help_ = "pairs: images per kind (400); planted: images (400); size: numbers of files"
    parser.add_argument("counts", nargs="*", type=int, help=help_)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, help="planted: table of real images")
    parser.add_argument("--patient", help="planted: columns of the patient, as of consilium audit")
    args = parser.parse_args()
    if args.measurement == "planted":
        images = read_images(args.table, args.patient, args.counts[0] if args.counts else 400)
        for share in SHARES:
            print_planted(images, share)
            print_leaks_left(images, share)
    elif args.folder:
        print(json.dumps(measure_audit(args.folder)))
    elif args.measurement == "pairs":
        print_precision_and_recall(args.counts[0] if args.counts else 400)
    else:
        for count in args.counts:
            measure_audit_in_process(count)


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """The image after JPEG compression."""
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """The image rotated about its center, of the same size."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return np.asarray(cv2.warpAffine(image, matrix, (width, height)))


def shrink(image: np.ndarray, factor: float) -> np.ndarray:
    """The image with `factor` times its height and width."""
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))


def crop(image: np.ndarray) -> np.ndarray:
    """The lower right 90 % of the height and width."""
    height, width = image.shape[:2]
    return np.ascontiguousarray(image[height // 10 :, width // 10 :])


def mirror(image: np.ndarray) -> np.ndarray:
    """The image with left and right exchanged."""
    return np.ascontiguousarray(image[:, ::-1])


CHANGES: dict[str, Change] = {
    "JPEG quality 60": lambda image: compress(image, 60),
    "half the size": lambda image: shrink(image, 0.5),
    "mirrored": mirror,
    "rotated by 90 degrees": lambda image: np.ascontiguousarray(np.rot90(image)),
    "rotated by 10 degrees": lambda image: rotate(image, 10),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.25, beta=10),
    "cropped to 90 %": crop,
    "blurred": lambda image: cv2.GaussianBlur(image, (0, 0), min(image.shape[:2]) / 224),
    "inverted": lambda image: 255 - image,
    "mirrored, rotated by -5 degrees, JPEG quality 80": lambda image: compress(
        rotate(mirror(image), -5), 80
    ),
}


def print_precision_and_recall(count: int) -> None:
    """Searches `count` generated images of each kind for copies."""
    total: Counter[str] = Counter()
    for kind, size in [("fracture", 64), *((name, 224) for name in KINDS)]:
        counts = count_detected_copies(kind, size, count)
        print(f"{kind} {size} px: {counts['copies']} copies, {counts['detected']} detected, "
              f"{counts['false alarms']} false alarms", flush=True)  # fmt: skip
        total += counts
    for name in CHANGES:
        print(f"{name:<50} recall {total['detected ' + name] / total['copies ' + name]:.3f}")
    recall = total["detected"] / total["copies"]
    precision = total["detected"] / (total["detected"] + total["false alarms"])
    print(f"{total['copies']} pairs: recall {recall:.4f}, precision {precision:.4f}")


def count_detected_copies(kind: str, size: int, count: int) -> Counter[str]:
    """Copies, detected copies and false alarms if a third of the images has one changed copy."""
    images = [pixels for _, pixels in generate_images(PhantomSpec(kind, count, 1, size, 7))]
    return count_detected(images, range(0, count, 3))


def read_images(table: Path, patient: str | None, count: int) -> list[np.ndarray]:
    """Images of a table, one a patient, evenly spaced over the patients."""
    columns = dict.fromkeys(COLUMN_ALIASES) | {"patient": patient}
    paths = load_target(table, columns)[0].table.drop_duplicates("patient")["path"]
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)
    return [read_image(path) for path in paths.iloc[chosen]]


def print_planted(images: list[np.ndarray], share: float) -> None:
    """Recall and precision if a share of the images has one changed copy."""
    originals = np.linspace(0, len(images) - 1, round(share * len(images))).astype(int)
    counts = count_detected(images, originals.tolist())
    detected, false_alarms = counts["detected"], counts["false alarms"]
    recall = detected / counts["copies"] if counts["copies"] else float("nan")
    precision = detected / (detected + false_alarms) if detected else float("nan")
    missed = [f"{counts['copies ' + name] - counts['detected ' + name]} {name}" for name in CHANGES
              if counts["copies " + name] > counts["detected " + name]]  # fmt: skip
    results = f"recall {recall:.3f}, precision {precision:.3f}, {false_alarms} false alarms"
    print(
        f"{len(images)} images, {counts['copies']} copies: {results}; missed: {missed}", flush=True
    )


def plant_copies(
    originals: list[np.ndarray], with_copy: Sequence[int]
) -> tuple[list[np.ndarray], dict[tuple[int, int], str]]:
    """The images with one changed copy of some of them; the change of each planted pair."""
    images, copies = [*originals], {}
    for number, original in enumerate(with_copy):
        name = list(CHANGES)[number % len(CHANGES)]
        copies[original, len(images)] = name
        images.append(CHANGES[name](images[original]))
    return images, copies


def count_detected(originals: list[np.ndarray], with_copy: Sequence[int]) -> Counter[str]:
    """Copies, detected copies and false alarms if some images have one changed copy each."""
    images, copies = plant_copies(originals, with_copy)
    candidates = find_near_duplicates(Thumbnails.of_images(images), np.full(len(images), -1))
    detected = {(pair.first, pair.second) for pair in candidates}
    counts = Counter(copies=len(copies), detected=len(detected & set(copies)))
    counts["false alarms"] = len(detected - set(copies))
    for pair, name in copies.items():
        counts.update({f"copies {name}": 1, f"detected {name}": int(pair in detected)})
    return counts


def print_leaks_left(originals: list[np.ndarray], share: float) -> None:
    """Leaks that are left after quarantine, and if all images are split as `init` does.

    The copies are in train, their originals and all other images in test.
    """
    chosen = np.linspace(0, len(originals) - 1, round(share * len(originals))).astype(int)
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        for k, image in enumerate(plant_copies(originals, chosen.tolist())[0]):
            cv2.imwrite(str(folder / f"{k}.png"), image if image.ndim == 2 else image[..., ::-1])
            rows.append((f"{k}.png", "one", "test" if k < len(originals) else "train"))
        table, copies = folder / "manifest.csv", folder / "copies.csv"
        pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(table, index=False)
        given = Table(str(table)).manifest(["one"])
        audit = audit_manifest(given, folder / "audit")
        excluded = set(audit.quarantine()["id"])
        again = audit_manifest(given.drop(excluded, "excluded"), folder / "audit")
        audit.copy_groups().to_csv(copies, index=False)
        fractions = SplitFractions(0.15, 0.15, stratified=True, copies=str(copies))
        anew = Table(str(table), split=None, fractions=fractions).manifest(["one"])
        leaks = audit_manifest(anew, folder / "audit").leaks
    print(f"{len(chosen)} copies: {len(excluded)} in quarantine, then {len(again.leaks)} leaks; "
          f"{len(leaks)} leaks in new splits", flush=True)  # fmt: skip


def measure_audit_in_process(count: int) -> None:
    """Audits `count` generated files in a new process, which prints time and memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_dataset(PhantomSpec("fracture", count, 1, 256, 11), Path(name))
        command = [sys.executable, "-m", "benchmarks.audit", "size", "--folder", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True)


def measure_audit(folder: Path) -> dict[str, object]:
    """Time, memory and leaks of the audit of a folder of fracture phantoms, and of another one."""
    source = Table(str(folder / "manifest.csv"), "patient", split=None, fractions=SplitFractions())
    manifest = source.manifest(KINDS["fracture"].classes)
    stopwatch, count = Stopwatch(), len(manifest.table)
    audit = audit_manifest(manifest, folder / "audit")
    wall, processor, again = stopwatch.wall, stopwatch.processor, Stopwatch()
    audit_manifest(manifest, folder / "audit")
    return {
        "files": count,
        "wall_seconds": round(wall, 1),
        "processor_ms_per_file": round(1000 * processor / count, 2),
        "processor_percent_of_second_audit": round(100 * again.processor / processor, 1),
        "peak_mb": round(peak_memory()),
        "leaks": [issue.message for issue in audit.leaks],
    }


if __name__ == "__main__":
    main()
