"""Peak memory of an ensemble that keeps one member at a time, beside its largest member alone.

python -m benchmarks.memory [--images 64] [--device cpu]

Each figure is of a test in a process of its own. On a GPU: bytes allocated on it. On a processor:
anonymous memory (what cannot be read again from a file) above that of the process once all is
imported and the data are there.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.ensemble import CLASSES, MEMBERS, member, source, tested
from datamodules.preprocess import Preprocess
from lightning_modules import EnsembleModule

ROOT = Path(__file__).parents[1]
EVERY = 0.002  # seconds between two looks at the process


def main() -> None:
    """Peaks of each member, of the ensemble, and of the ensemble one at a time; then the ratio."""
    asked = arguments()
    if asked.of:
        print(measured(asked))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = source(folder, asked.images)
        files = [member(each, view, data, folder) for each, view in MEMBERS.items()]
        alone = {file.stem: peak(folder, [file], asked) for file in files}
        whole, apart = (peak(folder, files, asked, *flag) for flag in ((), ("--apart",)))
    for each, found in {**alone, "ensemble": whole, "ensemble, one at a time": apart}.items():
        print(f"{each}: {found / 2**20:.0f} MiB")
    print(f"one at a time / largest member alone: {apart / max(alone.values()):.2f}")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    for hidden in ("--folder", "--of"):
        parser.add_argument(hidden, nargs="+", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def peak(folder: Path, files: list[Path], asked: argparse.Namespace, *flags: str) -> int:
    """Peak bytes of these members' ensemble in a process of its own."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--folder", str(folder),
             "--images", str(asked.images), "--device", asked.device, *flags,
             "--of", *map(str, files)]  # fmt: skip
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def measured(asked: argparse.Namespace) -> int:
    """The same, in this process."""
    data = source(Path(asked.folder[0]), asked.images)(Preprocess())
    data.prepare_data()

    def work() -> None:
        ensemble = EnsembleModule(CLASSES, asked.of, one_at_a_time=asked.apart)
        tested(ensemble, data, asked.device)

    return on_gpu(work) if asked.device == "cuda" else in_memory(work)


def on_gpu(work: Callable[[], None]) -> int:
    """Peak bytes allocated on the GPU."""
    work()
    return int(torch.cuda.max_memory_allocated())


def in_memory(work: Callable[[], None]) -> int:
    """Peak anonymous bytes of this process above what it holds now."""
    over, before, most = threading.Event(), anonymous(), 0

    def watch() -> None:
        nonlocal most
        while not over.wait(EVERY):
            most = max(most, anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        work()
    finally:
        over.set()
        watching.join()
    return most - before


def anonymous() -> int:
    """Bytes of memory of this process that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
