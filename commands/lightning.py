"""fit, validate, test, predict: LightningCLI with our links, run folders and one-line errors."""

import logging
import os
import tempfile
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from callbacks.board import closed, settle
from callbacks.record import SaveConfig
from callbacks.stopping import Stopping
from commands.memory import OutOfMemory, fitting, watched
from commands.words import in_short, told
from datamodules.datamodule import ImageDataModule
from lightning_modules import checkpoints, packing
from lightning_modules.ensemble import EnsembleModule
from lightning_modules.exact import ExactModule
from lightning_modules.tta import ALLOWED, changes

NEVER = 1_000_000  # epochs without gain; a member's early_stopping says fewer
VERBS = ("fit", "validate", "test", "predict")


class ConsiliumCLI(LightningCLI):
    """LightningCLI with a run folder `--run`, whose fit ends with the figures of its best epoch."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds --run, and says which fact of the data the model must know: linked on parse."""
        parser.add_argument("--run", type=str, default="runs/default", help="run folder")
        parser.add_lightning_class_args(Stopping, "early_stopping")
        parser.set_defaults(
            {"early_stopping.monitor": "val/loss", "early_stopping.patience": NEVER}
        )
        parser.add_argument("--tta", type=list[str], default=[], help=f"looked at again: {ALLOWED}")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data.init_args.class_names", "model.init_args.class_names")
        parser.link_arguments("data.init_args.preprocess.size", "model.init_args.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, then looks at the checkpoint before anything else opens it."""
        self.config = parser.parse_args(cast(list[str], args))
        config = self.config[self.config["subcommand"]]
        if config.get("ckpt_path"):
            config["ckpt_path"] = self._readable(Path(config["ckpt_path"]))
        elif self.config["subcommand"] == "fit":
            refuse_used(Path(config["run"]))

    def _readable(self, path: Path) -> str:
        """A checkpoint as Lightning reads it: a packed one unpacked, for as long as this lives."""
        block, state = checkpoints.read(path)
        if not packing.is_packed(path):
            return str(path)
        if self.config["subcommand"] == "fit":
            raise ValueError(f"--ckpt_path {path}: a packed checkpoint holds no training to "
                             "go on from")  # fmt: skip
        self.unpacked = tempfile.TemporaryDirectory()
        file = Path(self.unpacked.name) / "unpacked.ckpt"
        torch.save(checkpoints.content(block, state), file)
        return str(file)

    def _run_subcommand(self, subcommand: str) -> None:
        """Carries the verb out; a batch that does not fit into memory is said as such."""

        def sizes() -> tuple[int, int, str]:
            trainer = self.trainer
            return (
                self.datamodule.batch_size,
                trainer.accumulate_grad_batches,
                trainer.default_root_dir,
            )

        with watched(sizes), closed(self.trainer.loggers):
            super()._run_subcommand(subcommand)

    def after_instantiate_classes(self) -> None:
        """Hands the module what is asked of a test alone."""
        self.model.tta = self.config[self.config["subcommand"]]["tta"]
        changes(self.model.tta)  # refuses a wrong name before anything is computed
        job = "council" if isinstance(self.model, EnsembleModule) else "member"
        settle(self.trainer.loggers, self.trainer.default_root_dir, job)

    def test(self, **options: Any) -> None:
        """Tests; `Record` prints the figures with their intervals, so Lightning need not."""
        self.trainer.test(**{**options, "verbose": False})

    def validate(self, **options: Any) -> None:
        """Validates, likewise."""
        self.trainer.validate(**{**options, "verbose": False})

    def after_fit(self) -> None:
        """Measures the best epoch on val and test."""
        best = Path(self.trainer.default_root_dir) / "best.ckpt"
        if self.trainer.interrupted or not best.is_file():
            return
        again = {"model": self.model, "datamodule": self.datamodule, "ckpt_path": str(best)}
        self.trainer.validate(**again, verbose=False)
        if len(self.datamodule.rows("test")):
            self.trainer.test(**again, verbose=False)


def refuse_used(folder: Path) -> None:
    """An error when a fit would write over another run."""
    if (folder / "results.json").exists():
        raise ValueError(f"--run {folder}: holds a finished run; give another --run, or remove it")
    if (folder / "last.ckpt").exists():
        raise ValueError(
            f"--run {folder}: holds an unfinished run; go on with --ckpt_path {folder}/last.ckpt, "
            "give another --run, or remove it"
        )


def quieten() -> None:
    """Silences what Lightning says of itself; what it says of the run is kept."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's, not ours
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
    # the figures of val are the same on every process, which Lightning cannot know
    warnings.filterwarnings("ignore", r".*recommended to use `self.log\('val/.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")


def run(args: list[str]) -> int:
    """Parses `args` (verb first) and carries the verb out; wrong input is a ValueError."""
    quieten()
    try:
        fitting(_carry_out, args)
    except OutOfMemory:
        raise
    except (ArgumentError, MisconfigurationException, ValueError) as error:
        raise ValueError(in_short(told(str(error)))) from error
    return 0


def _carry_out(args: list[str]) -> None:
    ConsiliumCLI(
        ExactModule,
        ImageDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveConfig,
        seed_everything_default=0,
        parser_kwargs={verb: {"exit_on_error": False} for verb in VERBS} | {"exit_on_error": False},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=args,
    )
