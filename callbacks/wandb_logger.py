"""A run in W&B: settings, a row an epoch, pictures, prediction tables, checkpoints."""

import io
import os
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pandas as pd
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from evaluation.files import write_text

if TYPE_CHECKING:
    from wandb import Artifact, Run

ROWS = 10_000  # of one W&B table; it would cut the rest off
FOLDER, ID, BEST = "wandb", "wandb/run-id", "best.ckpt"


class WandbLogger(Logger):
    """One W&B run a run folder, kept in it and sent later by `wandb sync`, or at once.

    What is logged in one epoch stands in one row. Patients, other attributes, ids and notes stay
    here: tables carry classes and probabilities, and a code for each id, which may name a patient.

    Args:
        project: the project at W&B.
        mode: offline, or online; null goes by WANDB_MODE, and is offline where that is not set.
        group: what its runs stand together under; null takes the study that the folder is in.
        checkpoints: whether best.ckpt becomes an artifact.
        folder: the run folder; null takes the trainer's.
    """

    def __init__(
        self,
        project: str = "consilium",
        mode: Literal["offline", "online"] | None = None,
        group: str | None = None,
        checkpoints: bool = False,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        # before wandb is imported: nobody asked for that network
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.project, self.group, self.checkpoints = project, group, checkpoints
        self.mode = mode or os.environ.get("WANDB_MODE") or "offline"
        self.given, self.folder, self.job = folder, Path(folder or "."), "member"
        self._run: Run | None = None

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str | None:
        """The run's id; a run that goes on keeps it."""
        file = self.folder / ID
        return file.read_text().strip() if file.is_file() else None

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The W&B run, begun when it is first asked for."""
        if self._run is None:
            self._run = self._begun()
            write_text(self.folder / ID, self._run.id)
        return self._run

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """The resolved config."""
        settings = params if isinstance(params, dict) else vars(params)
        self.experiment.config.update(settings, allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Adds to the row of the epoch that `metrics` names, else to the newest."""
        steps = {} if step is None else {"trainer/global_step": step}
        if "epoch" in metrics:
            self.experiment.log({**metrics, **steps}, step=int(metrics["epoch"]))
        else:
            self.experiment.log({**metrics, **steps}, commit=False)

    @rank_zero_only
    def log_image(self, key: str, images: list[Image.Image], step: int | None = None) -> None:
        """Pictures under one name."""
        import wandb

        self.log_metrics({key: [wandb.Image(image) for image in images]}, step)

    @rank_zero_only
    def log_table(self, key: str, dataframe: pd.DataFrame) -> None:
        """A table; one of more rows than W&B shows becomes several."""
        import wandb

        for at, start in enumerate(range(0, len(dataframe), ROWS)):
            part = wandb.Table(dataframe=dataframe.iloc[start : start + ROWS])
            self.log_metrics({f"{key}/{at + 1}" if at else key: part})

    @rank_zero_only
    def log_facts(self, key: str, facts: Mapping[str, Any]) -> None:
        """What is known of the run as a whole: figures with intervals, hashes."""
        self.experiment.summary.update({key: dict(facts)})

    @rank_zero_only
    def close(self, failed: bool = False) -> None:
        """Adds the checkpoint, ends the run and says how to send it."""
        if self._run is None:
            return
        if self.checkpoints and (self.folder / BEST).is_file():
            self._run.log_artifact(self._artifact())
        where, offline = Path(self._run.dir).parent, self._run.offline
        self._run.finish(exit_code=int(failed))
        self._run = None
        if offline:
            print(f"W&B: `wandb sync {os.path.relpath(where)}` sends this run")

    def _begun(self) -> "Run":
        import wandb

        os.environ["WANDB_DATA_DIR"] = str((self.folder / FOLDER).absolute())  # not in the home
        group, name = place(self.folder)
        try:
            return wandb.init(
                project=self.project,
                mode=cast(Any, self.mode),
                group=self.group or group,
                job_type=self.job,
                name=name,
                id=self.version,
                dir=self.folder,
                resume="allow" if self.version else None,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise ValueError(f"W&B, mode {self.mode}: {error}; offline needs no account") from error

    def _artifact(self) -> "Artifact":
        import wandb

        found = wandb.Artifact(f"{self.experiment.id}-best", type="model")
        found.add_file(str(self.folder / BEST), policy="immutable")  # no second copy of it
        return found


def place(folder: Path) -> tuple[str | None, str]:
    """The study that a run folder is in, if any, and the run's name within it."""
    whole = folder.absolute()
    above = whole.parent
    if above.name == "members":
        return above.parent.name, whole.name
    return (above.name if (above / "members").is_dir() else None), whole.name


def settle(loggers: Iterable[object], folder: str, job: str) -> None:
    """Says to every Board which run folder this is, and whether of a member or of an ensemble."""
    for board in loggers:
        if isinstance(board, WandbLogger):
            board.folder, board.job = Path(board.given or folder), job


@contextmanager
def closed(loggers: Iterable[object]) -> Iterator[None]:
    """Ends the run of every Board, as a failed one when an error comes through."""
    failed = True
    try:
        yield
        failed = False
    finally:
        for board in loggers:
            if isinstance(board, WandbLogger):
                board.close(failed)


def show(loggers: Iterable[object], key: str, png: bytes) -> None:
    """Hands a picture to the loggers that take pictures."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            cast(Any, logger).log_image(key, [Image.open(io.BytesIO(png))])


def tell(loggers: Iterable[object], key: str, table: pd.DataFrame) -> None:
    """Hands a table to the loggers that take tables."""
    for logger in loggers:
        if hasattr(logger, "log_table"):
            cast(Any, logger).log_table(key, dataframe=table)
