"""Processor seconds of eight one-epoch runs: forked from one process, or each in an interpreter.

Usage: python -m benchmarks.startup [PAIRS]. Both ways run in turns; every process that the command
starts is counted, and so is the report.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RUNS = 8


def write_experiment(folder: Path) -> Path:
    """An experiment of RUNS networks with an epoch of generated images of 64 pixels each."""
    images = {"kind": "fracture", "num_patients": 100, "images_per_patient": 2, "image_size": 64,
              "root": str(folder / "phantoms")}  # fmt: skip
    source = {"class_path": "datamodules.Phantoms", "init_args": images}
    member = str(ROOT / "configs/demo/resnet10t.yaml")
    content = {
        "title": "Short runs",
        "base": str(ROOT / "configs/base.yaml"),
        "members": {f"m{k}": [member, {"seed_everything": k}] for k in range(RUNS)},
        "overrides": {"trainer.max_epochs": 1, "data.init_args.source": source},
    }
    file = folder / "short.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def processor_seconds(file: Path, *options: str) -> float:
    """User and system seconds of the experiment in a new folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "consilium", "experiment", "run", str(file)]
        command += ["--output", output, "--jobs", "2", *options]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(pairs: int = 2) -> None:
    """Prints the seconds of both ways and their ratio, pair by pair."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_experiment(Path(folder))
        processor_seconds(file)  # generates the images
        for _ in range(pairs):
            forked, isolated = (processor_seconds(file, *o) for o in ((), ("--isolated",)))
            print(f"forked {forked:.1f} s, isolated {isolated:.1f} s: {forked / isolated:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
