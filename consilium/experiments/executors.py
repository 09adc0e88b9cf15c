"""Executors of runs: processes of this machine, or tasks of a Ray cluster.

An executor has `slots` runs at a time; the state of a run is read from its folder.
"""

import os
import time
from typing import Any

from consilium.experiments.processes import start_fork, start_interpreter
from consilium.experiments.run import Run


class LocalExecutor:
    """Runs processes of this machine, `slots` at a time: forks, or interpreters if `isolated`."""

    def __init__(self, slots: int, isolated: bool = False) -> None:
        if slots < 1:
            raise ValueError(f"--jobs {slots}: at least 1")
        self.slots, self.launch = slots, start_interpreter if isolated else start_fork

    def start(self, run: Run) -> list[str] | None:
        """Starts a process and returns its arguments; None if the folder is locked by another."""
        return run.start(self.launch)

    def has_ended(self, run: Run) -> bool:
        """Whether the process has ended, successfully or not."""
        return run.process is None or run.poll()

    def stop(self, runs: list[Run]) -> None:
        """Ends the processes."""
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
        """Submits the run; the cluster starts it when a GPU is free."""
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
        task = self.ray.remote(max_retries=self.MAX_RETRIES, max_calls=1)(_execute)
        self.tasks[run.name] = task.options(num_gpus=gpus, name=run.name).remote(run, threads)
        return run.arguments

    def has_ended(self, run: Run) -> bool:
        """Whether the task has ended; one that lost its worker too often is marked as failed."""
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


def _execute(run: Run, threads: str | None) -> None:
    """Runs the command in a process that ends with the Ray worker.

    Ray sets OMP_NUM_THREADS; bitwise equal results need the number of the submitting process.
    """
    os.environ.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads
    while run.start(start_interpreter) is None:
        time.sleep(0.5)
    run.wait()
