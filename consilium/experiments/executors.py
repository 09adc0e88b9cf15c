"""Where the runs of a study run: as processes of this machine, or as tasks of a Ray cluster."""

import os
import time
from typing import Any, Protocol

from consilium.cli.words import needed
from consilium.experiments.run import Run


class Engine(Protocol):
    """Starts runs and says when they have ended.

    `slots` is how many it takes at a time; what there is to know of a run stands in its folder.
    """

    slots: int

    def start(self, run: Run) -> list[str] | None:
        """Begins a run and returns the arguments of its command; None if others are at it."""

    def ended(self, run: Run) -> bool:
        """Whether a run that was started is over, well or not."""

    def stop(self, runs: list[Run]) -> None:
        """Ends these runs."""


class Local:
    """Processes of this machine, `slots` at a time."""

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"--jobs {slots}: at least 1")
        self.slots = slots

    def start(self, run: Run) -> list[str] | None:
        """Starts the process, unless another one fills the folder."""
        return run.start()

    def ended(self, run: Run) -> bool:
        """Whether there is no process any more."""
        return run.process is None or run.poll()

    def stop(self, runs: list[Run]) -> None:
        """Ends the processes."""
        for run in runs:
            run.stop()


class Ray:
    """Tasks of a Ray cluster, one a run; all nodes must see the study's folder by one path.

    A task whose worker is lost is begun again, up to `RETRIES` times, and goes on from last.ckpt.
    """

    RETRIES = 3

    def __init__(self, address: str | None, gpus: float | None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
        os.environ.setdefault("RAY_worker_niceness", "0")  # a cluster begun here is not nice
        ray = needed("ray", "ray")
        alone = {} if address else {"include_dashboard": False}  # for a cluster it is settled
        ray.init(address=address, log_to_driver=False, logging_level="warning", **alone)
        there = ray.cluster_resources().get("GPU", 0)
        self.ray, self.slots = ray, 1_000_000
        self.gpus = gpus if gpus is not None else min(1.0, there)
        self.tasks: dict[str, Any] = {}

    def start(self, run: Run) -> list[str]:
        """Hands the run to the cluster, which waits until a GPU is free."""
        task = self.ray.remote(max_retries=self.RETRIES, max_calls=1)(_fill)
        # an ensemble's voters are arithmetic on tables
        gpus = 0 if run.arguments[0] == "ensemble" else self.gpus
        self.tasks[run.name] = task.options(num_gpus=gpus, name=run.name).remote(run, _threads())
        return run.arguments

    def ended(self, run: Run) -> bool:
        """Whether the task has ended; one whose worker was lost too often counts as failed."""
        task = self.tasks[run.name]
        if not self.ray.wait([task], timeout=0)[0]:
            return False
        try:
            self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            run.fail(str(error).strip().splitlines()[0])
        return True

    def stop(self, runs: list[Run]) -> None:
        """Ends the tasks that are left and leaves the cluster."""
        for task in [self.tasks[run.name] for run in runs if run.name in self.tasks]:
            self.ray.cancel(task, force=True)
        self.ray.shutdown()


def _threads() -> str | None:
    """Ray would set the number of threads; equal bits need that of this process."""
    return os.environ.get("OMP_NUM_THREADS")


def _fill(run: Run, threads: str | None) -> None:
    """What a worker does: the run's own command, as a process that ends with the worker."""
    os.environ.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads
    while run.start(with_parent=True) is None:
        time.sleep(0.5)
    run.wait()
