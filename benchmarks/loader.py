"""Images per second of our loader, of two peers and of the floor, on the same files in one run.

    python benchmarks/loader.py --pictures 400 --workers 2

The floor is the bare OpenCV calls in a loop on one core, times the cores.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from datamodules.augment import Augment
from datamodules.datamodule import ImageDataModule, Reading
from datamodules.phantoms import Recipe, films
from datamodules.preprocess import Preprocess
from datamodules.sources import Folders

VIEW = Preprocess(size=224, clahe=2.0)
POLICY = "fracture"


def main() -> None:
    """Prints one line a loader and, last, everything as JSON."""
    asked = parser().parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = make_files(root / "set", asked.pictures, asked.side)
        found = dict(figures(root, files, asked.workers))
    found["ratio_uncached_to_floor"] = found["ours_uncached"] / found["floor_uncached"]
    found["ratio_warm_to_floor"] = found["ours_warm"] / found["floor_warm"]
    best = max(found["torchvision_clahe_first"], found["torchvision_resize_first"])
    found["ratio_warm_to_torchvision"] = found["ours_warm"] / best
    for line, value in found.items():
        print(f"{line:<28} {value:9.2f}")
    print(json.dumps({"cores": cores(), "workers": asked.workers, **found}))


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--pictures", type=int, default=400)
    made.add_argument("--side", type=int, default=1024)
    made.add_argument("--workers", type=int, default=2)
    return made


def make_files(folder: Path, count: int, side: int) -> list[str]:
    """Gray JPEGs in class folders of one split each."""
    paths = []
    for k, (row, pixels) in enumerate(films(Recipe("fracture", count, 1, side, 0))):
        for split in ("train", "val") if k < 8 else ("train",):
            path = folder / split / row["label"] / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        paths.append(str(folder / "train" / row["label"] / f"{k}.jpg"))
    return paths


def figures(root: Path, files: list[str], workers: int) -> Iterator[tuple[str, float]]:
    """Name and images per second of each contender; memory in MB at the end."""
    used = min(cores(), max(1, workers))
    yield "floor_uncached", used * per_second(lambda: floor_uncached(files), len(files))
    kept = [VIEW.pixels(cv2.imread(path, cv2.IMREAD_GRAYSCALE)) for path in files[:200]]
    yield "floor_warm", used * per_second(lambda: floor_warm(kept), len(kept))
    yield "ours_uncached", epochs(ours(root, workers, None))
    loader = ours(root, workers, str(root / "cache"))
    yield "ours_warm", epochs(loader)
    before = memory()
    epochs(loader, 4)
    yield "memory_growth_mb", memory() - before
    yield "torchvision_clahe_first", epochs(torchvision_loader(root, workers, True))
    yield "torchvision_resize_first", epochs(torchvision_loader(root, workers, False))
    yield "timm_without_clahe", epochs(timm_loader(root, workers))


def floor_uncached(files: list[str]) -> None:
    """Decode, area resize, CLAHE, the policy, normalise: nothing else."""
    cv2.setNumThreads(0)
    augment, clahe = Augment(POLICY), cv2.createCLAHE(2.0, (8, 8))
    for k, path in enumerate(files):
        image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        small = clahe.apply(cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA))
        VIEW.tensor(augment(small, (0, 0, k)))


def floor_warm(kept: list[np.ndarray]) -> None:
    """The policy and the normalisation alone."""
    cv2.setNumThreads(0)
    augment = Augment(POLICY)
    for k, pixels in enumerate(kept):
        VIEW.tensor(augment(pixels, (0, 0, k)))


def ours(root: Path, workers: int, cache: str | None) -> DataLoader[object]:
    """Our training loader."""
    source = Folders(str(root / "set"), patient=None)
    names = sorted(path.name for path in (root / "set" / "train").iterdir())
    data = ImageDataModule(
        source, names, VIEW, POLICY, batch_size=32, workers=workers, reading=Reading(cache=cache)
    )
    data.prepare_data()
    data.setup("validate")
    return data.train_dataloader()


class Clahe:
    """CLAHE as a torchvision transform."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Equalises the gray picture."""
        gray = np.asarray(image.convert("L"))
        return Image.fromarray(cv2.createCLAHE(2.0, (8, 8)).apply(gray)).convert("RGB")


def torchvision_loader(root: Path, workers: int, clahe_first: bool) -> DataLoader[object]:
    """ImageFolder with PIL and the same steps."""
    size = transforms.Resize((224, 224), antialias=True)
    first = [Clahe(), size] if clahe_first else [size, Clahe()]
    steps = [
        *first,
        transforms.RandomAffine(25, (0.05, 0.05), (0.9, 1.1), interpolation=Image.BILINEAR),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.2, 0.2),
        transforms.ToTensor(),
        transforms.Normalize(VIEW.mean, VIEW.std),
    ]
    folder = datasets.ImageFolder(str(root / "set/train"), transforms.Compose(steps))
    return DataLoader(folder, 32, shuffle=True, num_workers=workers, persistent_workers=True)


def timm_loader(root: Path, workers: int) -> DataLoader[object]:
    """The loader of timm with its own training transforms, which have no CLAHE."""
    from timm.data import create_dataset, create_loader

    folder = create_dataset("", root=str(root / "set/train"))
    return create_loader(
        folder, (3, 224, 224), 32, is_training=True, use_prefetcher=False, num_workers=workers,
        hflip=0.5, color_jitter=0.2, persistent_workers=True,
    )  # fmt: skip


def epochs(loader: DataLoader[object], count: int = 3) -> float:
    """Images per second of the best epoch after a first one that starts the workers."""
    rates = []
    for _ in range(count + 1):
        start, seen = time.perf_counter(), 0
        for batch in loader:
            seen += len(batch["label"] if isinstance(batch, dict) else batch[1])
        rates.append(seen / (time.perf_counter() - start))
    return max(rates[1:])


def per_second(work: Callable[[], None], count: int) -> float:
    """Images per second of the best of three runs."""
    best = 1e9
    for _ in range(3):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return count / best


def memory() -> float:
    """Largest resident memory of this process and of its largest child so far, in MB."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
