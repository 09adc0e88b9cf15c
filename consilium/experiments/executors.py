"""Executors of runs: processes of this machine, or tasks of a Ray cluster.

An executor has `slots` runs at a time; the state of a run is read from its folder.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consilium.experiments.processes import start_fork, start_interpreter
from consilium.experiments.run import Run

MEMINFO, MEMORY_LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")  # of Linux
BYTES_PER_RUN, BYTES_PER_PIXEL = 2**30, 2**13  # of a training; of its batches
BATCH_SIZE, IMAGE_SIZE = "data.init_args.batch_size", "data.init_args.preprocess.size"
DEFAULTS = {BATCH_SIZE: "32", IMAGE_SIZE: "224"}  # of ImageDataModule


class LocalExecutor:
    """Executes runs on this machine, `slots` at a time: forks, or new interpreters if `isolated`.

    torch's threads are divided by `slots`, or by the number of `runs` of a command if that is less.
    """

    def __init__(self, slots: int, isolated: bool = False, runs: Sequence[Run] = ()) -> None:
        self.slots, self.launch = slots, start_interpreter if isolated else start_fork
        self.num_runs = Counter(run.arguments[0] for run in runs)

    def start(self, run: Run) -> list[str] | None:
        """Starts the run and returns its arguments; None if another process has its folder."""
        import torch

        # not the number of runs at this moment, which would make results depend on the time
        side_by_side = min(self.slots, self.num_runs[run.arguments[0]] or 1)
        return run.start(self.launch, max(1, torch.get_num_threads() // side_by_side))

    def has_ended(self, run: Run) -> bool:
        """Whether the run's process has ended, successfully or not."""
        return run.process is None or run.poll()

    def stop(self, runs: list[Run]) -> None:
        """Ends the processes of the runs."""
        for run in runs:
            run.stop()


class RayExecutor:
    """Runs tasks of a Ray cluster; all nodes must have the experiment's folder at the same path.

    A task whose worker is lost is started again, up to `MAX_RETRIES` times, from last.ckpt.
    """

    MAX_RETRIES = 3

    def __init__(self, address: str | None, gpus: float | None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # sends no usage statistics
        os.environ.setdefault("RAY_worker_niceness", "0")  # a local cluster gets full priority
        import ray

        self.ray, self.slots = ray, 1_000_000
        self.address, self.gpus = address, gpus
        self.tasks: dict[str, Any] = {}

    def start(self, run: Run) -> list[str]:
        """Submits the run and returns its arguments; the cluster starts it when a GPU is free."""
        if not self.ray.is_initialized():
            options = {} if self.address else {"include_dashboard": False}  # a cluster refuses it
            self.ray.init(
                address=self.address, log_to_driver=False, logging_level="warning", **options
            )
        gpus = self.gpus
        if gpus is None:
            gpus = min(1.0, self.ray.cluster_resources().get("GPU", 0))
        if run.arguments[0] == "ensemble":  # arithmetic on prediction tables
            gpus = 0
        threads = os.environ.get("OMP_NUM_THREADS")
        task = self.ray.remote(max_retries=self.MAX_RETRIES, max_calls=1)(_run_in_worker)
        self.tasks[run.name] = task.options(num_gpus=gpus, name=run.name).remote(run, threads)
        return run.arguments

    def has_ended(self, run: Run) -> bool:
        """Whether the run's task has ended; marks the run as failed if the task raised an error."""
        task = self.tasks[run.name]
        if not self.ray.wait([task], timeout=0)[0]:
            return False
        try:
            self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            run.fail(str(error).strip().splitlines()[0])
        return True

    def stop(self, runs: list[Run]) -> None:
        """Cancels the tasks and disconnects from the cluster."""
        for name in {run.name for run in runs} & self.tasks.keys():
            self.ray.cancel(self.tasks[name], force=True)
        self.ray.shutdown()


Executor = LocalExecutor | RayExecutor


def default_slots(runs: Sequence[Run]) -> int:
    """Number of runs at a time: 1 with a GPU, else as many as cores and free memory allow.

    A training is expected to take 1 GiB and, per pixel of a batch, 8 KiB.
    """
    import torch

    settings = [DEFAULTS | run.settings for run in runs if run.arguments[0] == "fit"]
    pixels = [int(values[BATCH_SIZE]) * int(values[IMAGE_SIZE]) ** 2 for values in settings]
    if torch.accelerator.is_available() or not pixels:
        return 1
    in_memory = available_memory() // (BYTES_PER_RUN + BYTES_PER_PIXEL * max(pixels))
    return max(1, min(len(os.sched_getaffinity(0)), in_memory))


def available_memory() -> int:
    """Bytes that new processes can take, at most the limit of this container; 0 if unknown."""
    if not MEMINFO.is_file():
        return 0
    sizes = dict(re.findall(r"(\w+): +(\d+) kB", MEMINFO.read_text()))
    limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
    available = int(sizes["MemAvailable"]) * 1024
    return available if limit == "max" else min(available, int(limit))


def _run_in_worker(run: Run, threads: str | None) -> None:
    """Executes a run as a Ray task: starts its process, which ends with the worker, and waits.

    Ray sets OMP_NUM_THREADS; bitwise equal results need the number of the submitting process.
    """
    os.environ.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads
    while run.start(start_interpreter) is None:
        time.sleep(0.5)
    run.wait()
