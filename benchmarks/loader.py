"""Images per second of the training loader, of torchvision's and timm's, and their upper limit.

Run: python -m benchmarks.loader [--images N] [--size PX] [--workers N]
The limit is the same OpenCV calls in a plain loop on one core, times the number of cores.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.resources import Stopwatch
from datamodules.augment import Augment
from datamodules.datamodule import ImageDataModule
from datamodules.phantoms.generate import PhantomSpec, generate_images
from datamodules.preprocess import Preprocess
from datamodules.sources import Folders

PREPROCESS = Preprocess(size=224, clahe=2.0)
AUGMENT = "fracture"
BATCH_SIZE = 32
Loader = DataLoader[object]


class Speed(NamedTuple):
    """Throughput and processor time of a pipeline."""

    images_per_second: float
    processor_ms: float  # per image


def main() -> None:
    """Prints one line per pipeline, the ratios and, last, everything as JSON."""
    args = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = write_files(root / "set", args.images, args.size)
        speeds = dict(measure_pipelines(root, files, args.workers))
    for pipeline, speed in speeds.items():
        print(f"{pipeline:<26} {speed.images_per_second:8.1f} images/s  "
              f"{speed.processor_ms:7.2f} processor ms per image")  # fmt: skip
    ratios = compute_ratios(speeds, min(num_cores(), max(1, args.workers)))
    for ratio_name, ratio in ratios.items():
        print(f"{ratio_name:<50} {ratio:6.2f}")
    print(json.dumps({"cores": num_cores(), "load": os.getloadavg()[0], **speeds, **ratios}))


def parse_arguments() -> argparse.Namespace:
    """The arguments of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=640, help="generated images (640)")
    parser.add_argument("--size", type=int, default=1024, help="of the files in pixels (1024)")
    parser.add_argument("--workers", type=int, default=2, help="processes of each loader (2)")
    return parser.parse_args()


def compute_ratios(speeds: dict[str, Speed], cores: int) -> dict[str, float]:
    """Our loader relative to its limits and to torchvision, by wall-clock and processor time."""
    limit, limit_cached = speeds["limit"], speeds["limit, cached"]
    ours, cached = speeds["consilium"], speeds["consilium, cached"]
    peers = [speeds["torchvision, CLAHE first"], speeds["torchvision, resize first"]]
    fastest_peer = max(peer.images_per_second for peer in peers)
    return {
        "without cache / limit, wall-clock time": ours[0] / limit[0] / cores,
        "without cache / limit, processor time": limit[1] / ours[1],
        "cached / limit with cached pixels, wall-clock time": cached[0] / limit_cached[0] / cores,
        "cached / limit with cached pixels, processor time": limit_cached[1] / cached[1],
        "cached / faster torchvision, wall-clock time": cached[0] / fastest_peer,
        "cached / faster torchvision, processor time": min(p[1] for p in peers) / cached[1],
    }


def write_files(folder: Path, count: int, size: int) -> list[str]:
    """Gray JPEG files in folders of splits and classes; returns those of train."""
    files = []
    images = generate_images(PhantomSpec("fracture", count, 1, size, 0))
    for number, (row, pixels) in enumerate(images):
        for split in ("val", "train") if number < 8 else ("train",):
            path = folder / split / row["label"] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        files.append(str(path))
    return files


def measure_pipelines(root: Path, files: list[str], workers: int) -> Iterator[tuple[str, Speed]]:
    """Name and speed of each pipeline; the limits are of one core."""
    yield "limit", measure_on_one_core(lambda: process_files(files), len(files))
    cached_pixels = [PREPROCESS.to_pixels(read_gray(file)) for file in files[:200]]
    yield (
        "limit, cached",
        measure_on_one_core(lambda: process_pixels(cached_pixels), len(cached_pixels)),
    )
    yield "consilium", measure_epochs(consilium_loader(root, workers, None))
    loader = consilium_loader(root, workers, str(root / "cache"))
    yield "consilium, cached", measure_epochs(loader)
    memory = proportional_memory(loader)
    measure_epochs(loader, 6)
    print(f"memory after 4 epochs {memory:.0f} MB, "
          f"after 11 epochs {proportional_memory(loader):.0f} MB")  # fmt: skip
    yield "torchvision, CLAHE first", measure_epochs(torchvision_loader(root, workers, True))
    yield "torchvision, resize first", measure_epochs(torchvision_loader(root, workers, False))
    yield "timm, without CLAHE", measure_epochs(timm_loader(root, workers))


def read_gray(file: str) -> np.ndarray:
    """The pixels of a file that OpenCV can read."""
    image = cv2.imread(file, cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ValueError(f"{file} cannot be read")
    return np.asarray(image)


def process_files(files: list[str]) -> None:
    """Decodes, resizes, applies CLAHE, augments and normalizes, in a plain loop."""
    cv2.setNumThreads(0)
    augment, clahe = Augment(AUGMENT), cv2.createCLAHE(2.0, (8, 8))
    for index, file in enumerate(files):
        resized = cv2.resize(read_gray(file), (224, 224), interpolation=cv2.INTER_AREA)
        PREPROCESS.to_tensor(augment(clahe.apply(resized), (0, 0, index)))


def process_pixels(cached_pixels: list[np.ndarray]) -> None:
    """Augments and normalizes in a plain loop."""
    cv2.setNumThreads(0)
    augment = Augment(AUGMENT)
    for index, pixels in enumerate(cached_pixels):
        PREPROCESS.to_tensor(augment(pixels, (0, 0, index)))


def consilium_loader(root: Path, workers: int, cache_dir: str | None) -> Loader:
    """Our training loader."""
    source = Folders(str(root / "set"), patient=None)
    class_names = sorted(path.name for path in (root / "set" / "train").iterdir())
    data = ImageDataModule(
        source,
        class_names,
        PREPROCESS,
        AUGMENT,
        batch_size=BATCH_SIZE,
        num_workers=workers,
        cache_dir=cache_dir,
    )
    data.prepare_data()
    data.setup("validate")
    return data.train_dataloader()


class Clahe:
    """CLAHE as a torchvision transform."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Equalizes the gray image."""
        gray = np.asarray(image.convert("L"))
        return Image.fromarray(cv2.createCLAHE(2.0, (8, 8)).apply(gray)).convert("RGB")


def torchvision_loader(root: Path, workers: int, clahe_first: bool) -> Loader:
    """ImageFolder with PIL and the same steps."""
    resize = transforms.Resize((224, 224), antialias=True)
    bilinear = transforms.InterpolationMode.BILINEAR
    steps = [
        *([Clahe(), resize] if clahe_first else [resize, Clahe()]),
        transforms.RandomAffine(25, (0.05, 0.05), (0.9, 1.1), interpolation=bilinear),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.2, 0.2),
        transforms.ToTensor(),
        transforms.Normalize(PREPROCESS.mean, PREPROCESS.std),
    ]
    dataset = datasets.ImageFolder(str(root / "set/train"), transforms.Compose(steps))
    return DataLoader(
        dataset, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def timm_loader(root: Path, workers: int) -> Loader:
    """The loader of timm with its own training transforms, which have no CLAHE."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=str(root / "set/train"))
    loader: Loader = create_loader(
        dataset, (3, 224, 224), BATCH_SIZE, is_training=True, use_prefetcher=False,
        num_workers=workers, hflip=0.5, color_jitter=0.2, persistent_workers=workers > 0,
    )  # fmt: skip
    return loader


def measure_epochs(loader: Loader, num_epochs: int = 3) -> Speed:
    """The best of `num_epochs` epochs after a first one."""
    speeds = []
    for _ in range(num_epochs + 1):
        stopwatch, before, num_images = Stopwatch(), processor_seconds(loader), 0
        for batch in loader:
            num_images += len(batch["label"] if isinstance(batch, dict) else batch[1])
        rate = num_images / stopwatch.wall
        speeds.append(Speed(rate, 1000 * (processor_seconds(loader) - before) / num_images))
    return best_speed(speeds[1:])


def measure_on_one_core(work: Callable[[], None], num_images: int) -> Speed:
    """The best of three runs in this process."""
    speeds = []
    for _ in range(3):
        stopwatch = Stopwatch()
        work()
        speeds.append(Speed(num_images / stopwatch.wall, 1000 * stopwatch.processor / num_images))
    return best_speed(speeds)


def best_speed(speeds: Iterable[Speed]) -> Speed:
    """The highest throughput and the lowest processor time."""
    rates, milliseconds = zip(*speeds, strict=True)
    return Speed(max(rates), min(milliseconds))


def worker_ids(loader: Loader) -> list[int]:
    """Process ids of the loader's persistent workers."""
    workers = getattr(getattr(loader, "_iterator", None), "_workers", [])
    return [worker.pid for worker in workers]


def processor_seconds(loader: Loader) -> float:
    """Processor seconds of this process and of the loader's workers so far."""
    total = time.process_time()
    for process_id in worker_ids(loader):
        fields = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def proportional_memory(loader: Loader) -> float:
    """Memory in MB of this process and the loader's workers; shared pages are counted once."""
    total = 0
    for process_id in ("self", *worker_ids(loader)):
        lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
