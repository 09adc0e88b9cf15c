"""fit, validate, test, predict: LightningCLI with our links, run folders and one-line errors."""

import logging
import os
import tempfile
import warnings
from argparse import ArgumentError
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.early_stopping import Stopping
from callbacks.results_writer import SaveConfig
from callbacks.wandb_logger import closed, settle
from consilium.cli.memory import OutOfMemory, fitting, watched
from consilium.cli.options import HELP, Parser
from consilium.cli.preflight import (
    best_of,
    is_ensemble,
    refuse_used,
    require_kept,
    require_training,
)
from consilium.cli.words import in_short, told
from consilium.experiments.run_lock import filling, say, stoppable
from datamodules.datamodule import ImageDataModule
from lightning_modules import checkpoints, packing
from lightning_modules.base import BaseModule
from lightning_modules.ensemble import EnsembleModule
from lightning_modules.tta import ALLOWED, looks

VERBS = ("fit", "validate", "test", "predict")


class ConsiliumCLI(LightningCLI):
    """LightningCLI with a run folder `--run`, whose fit ends with the figures of its best epoch."""

    def __init__(self, args: list[str]) -> None:
        verbs = {verb: {"exit_on_error": False, "epilog": HELP.format(verb=verb)} for verb in VERBS}
        with ExitStack() as self.ends:
            super().__init__(
                BaseModule,
                ImageDataModule,
                parser_class=Parser,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=SaveConfig,
                seed_everything_default=0,
                parser_kwargs={**verbs, "exit_on_error": False},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=args,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds --run, and says which fact of the data the model must know: linked on parse."""
        parser.add_argument("--run", type=str, default="runs/default", help="run folder")
        parser.add_lightning_class_args(Stopping, "early_stopping")
        parser.add_argument("--tta", type=list[str], default=[], help=f"looked at again: {ALLOWED}")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data.init_args.class_names", "model.init_args.class_names")
        parser.link_arguments("data.init_args.preprocess.size", "model.init_args.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, then refuses what cannot work, before a checkpoint is opened by anything else."""
        self.config = parser.parse_args(cast(list[str], args))
        verb = self.config["subcommand"]
        config, run = self.config[verb], Path(self.config[verb]["run"])
        require_kept(config["trainer"]["callbacks"])
        self.ends.enter_context(filling(run))
        if verb == "fit":
            require_training(config)
            if not config["ckpt_path"]:
                refuse_used(run)
        elif not config["ckpt_path"] and not is_ensemble(config["model"]):
            config["ckpt_path"] = str(best_of(run, config["config"] or []))
            say(f"checkpoint: {config['ckpt_path']}")
        if config["ckpt_path"]:
            config["ckpt_path"] = self._readable(Path(config["ckpt_path"]))

    def _readable(self, path: Path) -> str:
        """A checkpoint as Lightning reads it: a packed one unpacked, for as long as this lives."""
        block, state = checkpoints.read(path)
        if not packing.is_packed(path):
            return str(path)
        if self.config["subcommand"] == "fit":
            raise ValueError(f"--ckpt_path {path}: a packed checkpoint holds no training to "
                             "go on from")  # fmt: skip
        folder = self.ends.enter_context(tempfile.TemporaryDirectory())
        file = Path(folder) / "unpacked.ckpt"
        torch.save(checkpoints.content(block, state), file)
        return str(file)

    def _run_subcommand(self, subcommand: str) -> None:
        """Carries the verb out; a batch that does not fit into memory is said as such."""
        folder, accumulated = self.trainer.default_root_dir, self.trainer.accumulate_grad_batches

        def sizes() -> tuple[int, int, str]:
            return self.datamodule.batch_size, accumulated, folder

        with watched(sizes), stoppable(Path(folder), subcommand), closed(self.trainer.loggers):
            super()._run_subcommand(subcommand)

    def after_instantiate_classes(self) -> None:
        """Hands the module what is asked of a test alone."""
        self.model.tta = self.config[self.config["subcommand"]]["tta"]
        for note in looks(self.model.tta):  # a wrong name is refused before anything is computed
            say(note)
        job = "ensemble" if isinstance(self.model, EnsembleModule) else "member"
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
        if not best.is_file():
            return
        again = {"model": self.model, "datamodule": self.datamodule, "ckpt_path": str(best)}
        for split, measure in (("val", self.trainer.validate), ("test", self.trainer.test)):
            if self.trainer.received_sigterm:  # by the last batch of what went before
                raise SIGTERMException
            if len(self.datamodule.rows(split)):
                measure(**again, verbose=False)


def quieten() -> None:
    """Silences what Lightning says of itself; what it says of the run is kept."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's, not ours
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
    # the figures of a split are the same on every process, which Lightning cannot know
    warnings.filterwarnings("ignore", r".*recommended to use `self.log\('(val|test)/.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*The dirpath has changed.*")  # a test into another folder
    warnings.filterwarnings("ignore", ".*predict returned None.*")  # its table is gathered apart


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
    ConsiliumCLI(args)
