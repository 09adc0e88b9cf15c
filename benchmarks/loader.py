"""Images per second of our loader, of two peers and of the floor, on the same files in one run.

    python -m benchmarks.loader

The floor is the bare OpenCV calls in a loop on one core, times the cores.
"""

import argparse
import json
import os
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
from datamodules.datamodule import ImageDataModule
from datamodules.phantoms.generate import PhantomSpec, generate_images
from datamodules.preprocess import Preprocess
from datamodules.sources import Folders

VIEW = Preprocess(size=224, clahe=2.0)
POLICY = "fracture"


def main() -> None:
    """Prints one line a contender and, last, everything as JSON."""
    asked = parser().parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        files = make_files(root / "set", asked.pictures, asked.side)
        found = dict(contenders(root, files, asked.workers))
    for line, (rate, ms) in found.items():
        print(f"{line:<28} {rate:8.1f} images/s  {ms:7.2f} processor ms an image")
    ratios = compared(found, min(cores(), max(1, asked.workers)))
    for line, value in ratios.items():
        print(f"{line:<44} {value:6.2f}")
    print(json.dumps({"cores": cores(), "load": os.getloadavg()[0], **found, **ratios}))


def compared(found: dict[str, tuple[float, float]], used: int) -> dict[str, float]:
    """Our loader against its floors and against torchvision, by the clock and by the processor."""
    peers = [found["torchvision_clahe_first"], found["torchvision_resize_first"]]
    return {
        "uncached to floor, by the clock": found["ours_uncached"][0] / found["floor"][0] / used,
        "uncached to floor, by the processor": found["floor"][1] / found["ours_uncached"][1],
        "warm to its floor, by the clock": found["ours_warm"][0] / found["floor_warm"][0] / used,
        "warm to its floor, by the processor": found["floor_warm"][1] / found["ours_warm"][1],
        "warm to torchvision, by the clock": found["ours_warm"][0] / max(p[0] for p in peers),
        "warm to torchvision, by the processor": min(p[1] for p in peers) / found["ours_warm"][1],
    }


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--pictures", type=int, default=640)
    made.add_argument("--side", type=int, default=1024)
    made.add_argument("--workers", type=int, default=2)
    return made


def make_files(folder: Path, count: int, side: int) -> list[str]:
    """Gray JPEGs in class folders of one split each."""
    paths = []
    for k, (row, pixels) in enumerate(generate_images(PhantomSpec("fracture", count, 1, side, 0))):
        for split in ("train", "val") if k < 8 else ("train",):
            path = folder / split / row["label"] / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        paths.append(str(folder / "train" / row["label"] / f"{k}.jpg"))
    return paths


def contenders(
    root: Path, files: list[str], workers: int
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Name, images per second, processor ms an image; the floors are of one core."""
    yield "floor", alone(lambda: floor_uncached(files), len(files))
    kept = [VIEW.to_pixels(cv2.imread(path, cv2.IMREAD_GRAYSCALE)) for path in files[:200]]
    yield "floor_warm", alone(lambda: floor_warm(kept), len(kept))
    yield "ours_uncached", epochs(ours(root, workers, None))
    loader = ours(root, workers, str(root / "cache"))
    yield "ours_warm", epochs(loader)
    before = memory(loader)
    epochs(loader, 6)
    print(f"memory after 4 epochs {before:.0f} MB, after 11 epochs {memory(loader):.0f} MB")
    yield "torchvision_clahe_first", epochs(torchvision_loader(root, workers, True))
    yield "torchvision_resize_first", epochs(torchvision_loader(root, workers, False))
    yield "timm_without_clahe", epochs(timm_loader(root, workers))


def floor_uncached(files: list[str]) -> None:
    """Decode, area resize, CLAHE, the policy, normalize: nothing else."""
    cv2.setNumThreads(0)
    augment, clahe = Augment(POLICY), cv2.createCLAHE(2.0, (8, 8))
    for k, path in enumerate(files):
        image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        small = clahe.apply(cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA))
        VIEW.to_tensor(augment(small, (0, 0, k)))


def floor_warm(kept: list[np.ndarray]) -> None:
    """The policy and the normalization alone."""
    cv2.setNumThreads(0)
    augment = Augment(POLICY)
    for k, pixels in enumerate(kept):
        VIEW.to_tensor(augment(pixels, (0, 0, k)))


def ours(root: Path, workers: int, cache: str | None) -> DataLoader[object]:
    """Our training loader."""
    source = Folders(str(root / "set"), patient=None)
    names = sorted(path.name for path in (root / "set" / "train").iterdir())
    data = ImageDataModule(
        source,
        names,
        VIEW,
        POLICY,
        batch_size=32,
        num_workers=workers,
        cache_dir=cache,
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


def epochs(loader: DataLoader[object], count: int = 3) -> tuple[float, float]:
    """Images per second and processor ms an image, of the best of some epochs after a first one."""
    found = []
    for _ in range(count + 1):
        start, busy, seen = time.perf_counter(), processor(loader), 0
        for batch in loader:
            seen += len(batch["label"] if isinstance(batch, dict) else batch[1])
        rate = seen / (time.perf_counter() - start)
        found.append((rate, 1000 * (processor(loader) - busy) / seen))
    return max(rate for rate, _ in found[1:]), min(ms for _, ms in found[1:])


def processor(loader: DataLoader[object]) -> float:
    """Processor seconds of this process and of the loader's workers so far."""
    workers = getattr(getattr(loader, "_iterator", None), "_workers", [])
    total = time.process_time()
    for worker in workers:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def alone(work: Callable[[], None], count: int) -> tuple[float, float]:
    """Images per second and processor ms an image on one core, of the best of three runs."""
    found = []
    for _ in range(3):
        start, busy = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - start, time.process_time() - busy))
    return count / min(wall for wall, _ in found), 1000 * min(cpu for _, cpu in found) / count


def memory(loader: DataLoader[object]) -> float:
    """Resident memory of this process and of the loader's workers, shared pages once, in MB."""
    workers = getattr(getattr(loader, "_iterator", None), "_workers", [])
    total = 0
    for process in ("self", *(worker.pid for worker in workers)):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
