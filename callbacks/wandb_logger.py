"""Logger for Weights & Biases: config, metrics by epoch, images, predictions, checkpoints."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from evaluation.files import write_text

if TYPE_CHECKING:
    from wandb import Run

MAX_TABLE_ROWS = 10_000  # W&B truncates longer tables
WANDB_FOLDER, RUN_ID_FILE = "wandb", "wandb/run-id"


class WandbLogger(LightningWandbLogger):
    """One W&B run per run folder, stored there and uploaded later by `wandb sync`, or at once.

    Patients, other attributes, notes and ids (which may name a patient) are not sent: tables have
    classes, probabilities and a hash of each id. Runs start offline, unlike Lightning's.

    Args:
        project: W&B project.
        mode: offline or online; null uses WANDB_MODE, or offline if that is not set.
        group: W&B group of the run; null uses the name of the experiment's folder.
        checkpoints: whether to upload best.ckpt as an artifact.
        folder: run folder; null uses that of the trainer.
    """

    def __init__(
        self, project: str = "consilium", mode: Literal["offline", "online"] | None = None,
        group: str | None = None, checkpoints: bool = False, folder: str | None = None,
    ) -> None:  # fmt: skip
        # set before wandb is imported: no network access that the user did not ask for
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        super().__init__(project=project)
        self.project, self.group, self.checkpoints = project, group, checkpoints
        self.mode = mode if mode or os.environ.get("WANDB_MODE") else "offline"
        self.folder, self.has_own_folder = Path(folder or "."), bool(folder)
        self.job_type = "member"

    @property
    def version(self) -> str | None:
        """The id of the run, which a resumed run shares; None before it starts."""
        file = self.folder / RUN_ID_FILE
        return file.read_text().strip() if file.is_file() else None

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The W&B run, started on first access."""
        if self._experiment is None:
            self._experiment = self._start_run()
            write_text(self.folder / RUN_ID_FILE, self._experiment.id)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs at step `metrics["epoch"]`, else at the latest; leaves a test to `log_summary`."""
        steps = {} if step is None else {"trainer/global_step": step}
        if "epoch" not in metrics:
            self.experiment.log({**metrics, **steps}, commit=False)
        elif not any(name.startswith("test/") for name in metrics):
            self.experiment.log({**metrics, **steps}, step=int(metrics["epoch"]))

    @rank_zero_only
    def log_summary(self, key: str, values: Mapping[str, Any]) -> None:
        """Sets values of the whole run (metrics with intervals, say) under `key` in its summary."""
        self.experiment.summary.update({key: dict(values)})

    @rank_zero_only
    def close(self, failed: bool = False) -> None:
        """Adds best.ckpt if `checkpoints` is set, ends the run and prints how to upload it."""
        run, best = self._experiment, self.folder / "best.ckpt"
        if run is None:
            return
        if self.checkpoints and best.is_file():
            import wandb

            artifact = wandb.Artifact(f"{run.id}-best", type="model")
            artifact.add_file(str(best), policy="immutable")  # without a copy
            run.log_artifact(artifact)
        folder, is_offline = Path(run.dir).parent, run.offline
        run.finish(exit_code=int(failed))
        self._experiment = None
        if is_offline:
            print(f"W&B: upload this run with `wandb sync {os.path.relpath(folder)}`")

    def _start_run(self) -> "Run":
        """Starts the W&B run, or continues that of the run folder; ValueError if W&B refuses."""
        import wandb

        # not in the home directory
        os.environ["WANDB_DATA_DIR"] = str((self.folder / WANDB_FOLDER).absolute())
        group, name = group_and_name(self.folder)
        options: dict[str, Any] = {"project": self.project, "group": self.group or group}
        options |= {"name": name, "job_type": self.job_type, "mode": self.mode}
        options |= {"id": self.version, "resume": "allow"} if self.version else {}
        settings = wandb.Settings(console="off", silent=True)
        try:
            return wandb.init(dir=self.folder, settings=settings, **options)
        except wandb.Error as error:
            mode = self.mode or os.environ["WANDB_MODE"]
            raise ValueError(f"W&B, mode {mode}: {error}; offline needs no account") from error


def group_and_name(folder: Path) -> tuple[str | None, str]:
    """The experiment that a run folder belongs to, or None, and the run's name within it."""
    parent, name = folder.absolute().parent, folder.absolute().name
    if parent.name == "members":
        return parent.parent.name, name
    return (parent.name if (parent / "members").is_dir() else None), name


def set_run_folder(loggers: Iterable[object], folder: str, job_type: str) -> None:
    """Sets the run folder (unless its config does) and `job_type` of every WandbLogger."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.job_type = job_type
            if not logger.has_own_folder:
                logger.folder = Path(folder)


@contextmanager
def close_loggers(loggers: Iterable[object]) -> Iterator[None]:
    """Context that ends the run of every WandbLogger at exit, after an error as a failed run."""
    failed = True
    try:
        yield
        failed = False
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.close(failed)


def log_image(loggers: Iterable[object], key: str, png: bytes) -> None:
    """Logs an image to every logger of W&B and TensorBoard."""
    for logger in loggers:
        if isinstance(logger, LightningWandbLogger):
            logger.log_image(key, [Image.open(io.BytesIO(png))])
        elif isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            logger.experiment.add_image(key, pixels, dataformats="HWC")


def log_table(loggers: Iterable[object], key: str, table: pd.DataFrame) -> None:
    """Logs a table to every logger of W&B, in parts of at most `MAX_TABLE_ROWS` rows."""
    for logger in loggers:
        if isinstance(logger, LightningWandbLogger):
            for i, start in enumerate(range(0, len(table), MAX_TABLE_ROWS)):
                part = table.iloc[start : start + MAX_TABLE_ROWS]
                logger.log_table(f"{key}/{i + 1}" if i else key, dataframe=part)
