"""fit, validate, test, predict: LightningCLI with our links, run folders and one-line errors."""

import logging
import os
from argparse import ArgumentError
from pathlib import Path
from typing import cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from callbacks.record import SaveConfig
from datamodules.datamodule import ImageDataModule
from lightning_modules import checkpoints
from lightning_modules.exact import ExactModule

VERBS = ("fit", "validate", "test", "predict")


class ConsiliumCLI(LightningCLI):
    """LightningCLI with a run folder `--run`, whose fit ends with the figures of its best epoch."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds --run, and says which fact of the data the model must know: linked on parse."""
        parser.add_argument("--run", type=str, default="runs/default", help="run folder")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data.init_args.class_names", "model.init_args.class_names")
        parser.link_arguments("data.init_args.preprocess.size", "model.init_args.image_size")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, then looks at the checkpoint before anything else opens it."""
        self.config = parser.parse_args(cast(list[str], args))
        config = self.config[self.config["subcommand"]]
        if config.get("ckpt_path"):
            checkpoints.read(config["ckpt_path"])
        elif self.config["subcommand"] == "fit":
            refuse_used(Path(config["run"]))

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


def run(args: list[str]) -> int:
    """Parses `args` (verb first) and carries the verb out; wrong input is a ValueError."""
    os.environ.setdefault("WANDB_MODE", "offline")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        ConsiliumCLI(
            ExactModule,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_kwargs={verb: {"exit_on_error": False} for verb in VERBS}
            | {"exit_on_error": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )
    except (ArgumentError, MisconfigurationException) as error:
        raise ValueError(str(error)) from error
    return 0
