"""How well and how fast the audit finds copies.

python benchmarks/audit.py pairs          precision and recall on generated pairs
python benchmarks/audit.py size 2000 20000    seconds and memory for so many files
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from datamodules.audit.near_duplicates import (
    THUMBNAIL_SIZE,
    Thumbnails,
    find_near_duplicates,
    make_thumbnails,
)
from datamodules.phantoms.generate import KINDS, PhantomSpec, generate_images, write_dataset


def main() -> int:
    """Carries out what is asked."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("what", choices=["pairs", "size", "one"])
    made.add_argument("numbers", nargs="*", type=int)
    made.add_argument("--folder", type=Path)
    asked = made.parse_args()
    if asked.what == "pairs":
        pairs(asked.numbers[0] if asked.numbers else 400)
    elif asked.what == "size":
        for count in asked.numbers:
            size(count)
    else:
        one(asked.folder)
    return 0


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The picture after a JPEG file."""
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """The picture turned about its middle, in a frame of the same size."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return np.asarray(cv2.warpAffine(image, turn, (width, height)))


def scaled(image: np.ndarray, share: float) -> np.ndarray:
    """The picture made smaller."""
    return np.asarray(cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA))


def mirrored(image: np.ndarray) -> np.ndarray:
    """The picture in a mirror."""
    return np.ascontiguousarray(image[:, ::-1])


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG 60": lambda image: jpeg(image, 60),
    "half size": lambda image: scaled(image, 0.5),
    "mirrored": mirrored,
    "quarter turn": lambda image: np.ascontiguousarray(np.rot90(image)),
    "turned by 10": lambda image: turned(image, 10),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.25, beta=10),
    "mirrored, turned by -5, JPEG 80": lambda image: jpeg(turned(mirrored(image), -5), 80),
}


def pairs(count: int) -> None:
    """Precision and recall of the search among generated pictures of every kind."""
    total: Counter[str] = Counter()
    for kind, side in [("fracture", 64), *((name, 224) for name in KINDS)]:
        total += planted(kind, side, count)
    recall = total["found"] / total["planted"]
    precision = total["found"] / (total["found"] + total["false"])
    for name in CHANGES:
        print(f"{name:<34} recall {total['found ' + name] / total['planted ' + name]:.3f}")
    print(f"{total['planted']} pairs: recall {recall:.4f}, precision {precision:.4f}")


def planted(kind: str, side: int, count: int) -> Counter[str]:
    """Hits and false alarms when a third of the pictures has one changed copy."""
    drawn = list(generate_images(PhantomSpec(kind, count, 1, side, 7)))
    pictures = [pixels for _, pixels in drawn]
    truth = {}
    for k, original in enumerate(range(0, count, 3)):
        name = list(CHANGES)[k % len(CHANGES)]
        truth[original, len(pictures)] = name
        pictures.append(CHANGES[name](pictures[original]))
    looks = np.zeros((len(pictures), 2, THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)
    for k, picture in enumerate(pictures):
        small = make_thumbnails(picture)
        looks[k, : len(small)] = small
    sides = np.array([min(picture.shape[:2]) for picture in pictures])
    square = np.array([picture.shape[0] == picture.shape[1] for picture in pictures])
    seen = Thumbnails(looks, sides, square, np.arange(len(pictures)))
    found = {(p.first, p.second) for p in find_near_duplicates(seen, np.full(len(pictures), -1))}
    counts = Counter(planted=len(truth), found=len(found & set(truth)))
    counts["false"] = len(found - set(truth))
    for pair, name in truth.items():
        counts.update({f"planted {name}": 1, f"found {name}": int(pair in found)})
    print(f"{kind} {side} px: {dict(list(counts.items())[:3])}", flush=True)
    return counts


def size(count: int) -> None:
    """Seconds and memory of an audit of so many generated files, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        recipe = PhantomSpec("fracture", count, 1, 128, 11)
        folder = write_dataset(recipe, Path(name))
        command = [sys.executable, __file__, "one", "--folder", str(folder)]
        subprocess.run(command, check=True)


def one(folder: Path) -> None:
    """Audits a folder of phantoms and prints what it took."""
    from datamodules.audit.audit import audit_manifest
    from datamodules.sources import Table
    from datamodules.splits import SplitFractions

    source = Table(str(folder / "manifest.csv"), "patient", split=None, fractions=SplitFractions())
    manifest = source.manifest(KINDS["fracture"].classes)
    start, busy = time.perf_counter(), time.process_time()
    found = audit_manifest(manifest)
    told = {
        "files": len(manifest.table),
        "seconds": round(time.perf_counter() - start, 1),
        "processor_ms_a_file": round(1000 * (time.process_time() - busy) / len(manifest.table), 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "leaks": [finding.message for finding in found.leaks],
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main())
