"""Peak memory of an ensemble, of the ensemble with one member loaded at a time, and of its members.

Run: python -m benchmarks.memory [--images N] [--device cpu|cuda]
Each measurement is a test in a process of its own. On a GPU, memory is what torch allocates on it.
On a CPU, it is anonymous memory (not backed by a file) above that of the process before the test.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.ensemble import CLASS_NAMES, generate_data, test, write_members
from datamodules.preprocess import Preprocess
from lightning_modules import EnsembleModule

ROOT = Path(__file__).parents[1]
SAMPLING_SECONDS = 0.002  # between two readings of the memory


def main() -> None:
    """Prints the peak of each member and of both ensembles, and the ratio to the largest member."""
    args = parse_arguments()
    if args.checkpoints:
        print(measure_peak(args))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_members(generate_data(folder, args.images), folder)
        members = {file.stem: measure_in_process(folder, [file], args) for file in files}
        ensemble = measure_in_process(folder, files, args)
        one_at_a_time = measure_in_process(folder, files, args, "--one-at-a-time")
    peaks = {**members, "ensemble": ensemble, "ensemble, one at a time": one_at_a_time}
    for subject, peak in peaks.items():
        print(f"{subject}: {peak / 2**20:.0f} MiB")
    print(f"one at a time / largest member: {one_at_a_time / max(members.values()):.2f}")


def parse_arguments() -> argparse.Namespace:
    """The arguments of the benchmark and those of the processes that it starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64, help="generated images (64)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoints", nargs="+", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--one-at-a-time", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_in_process(
    folder: Path, files: list[Path], args: argparse.Namespace, *flags: str
) -> int:
    """`measure_peak` in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--folder", str(folder),
               "--images", str(args.images), "--device", args.device, *flags,
               "--checkpoints", *map(str, files)]  # fmt: skip
    process = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(process.stdout.splitlines()[-1])


def measure_peak(args: argparse.Namespace) -> int:
    """Peak bytes of the test of an ensemble of `args.checkpoints`."""
    data = generate_data(args.folder, args.images)(Preprocess())
    data.prepare_data()

    def test_ensemble() -> None:
        ensemble = EnsembleModule(CLASS_NAMES, args.checkpoints, one_at_a_time=args.one_at_a_time)
        test(ensemble, data, args.device)

    return gpu_peak(test_ensemble) if args.device == "cuda" else anonymous_peak(test_ensemble)


def gpu_peak(work: Callable[[], None]) -> int:
    """Peak bytes that torch allocates on the GPU."""
    work()
    return int(torch.cuda.max_memory_allocated())


def anonymous_peak(work: Callable[[], None]) -> int:
    """Peak anonymous bytes of this process above those before `work`."""
    is_done, before, peak = threading.Event(), anonymous_memory(), 0

    def sample() -> None:
        nonlocal peak
        while not is_done.wait(SAMPLING_SECONDS):
            peak = max(peak, anonymous_memory())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        work()
    finally:
        is_done.set()
        sampler.join()
    return peak - before


def anonymous_memory() -> int:
    """Bytes of resident memory of this process that are not backed by a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
