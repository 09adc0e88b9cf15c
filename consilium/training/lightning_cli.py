"""fit, validate, test and predict: LightningCLI with run folders and one-line errors."""

import logging
import os
import shutil
import tempfile
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, cast

import lightning as L
import torch
from jsonargparse import Namespace
from jsonargparse._typehints import ActionTypeHint
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks.checkpoint import LAST, PREVIOUS, ResumableEarlyStopping
from callbacks.wandb_logger import close_loggers, set_run_folder
from callbacks.writers import ResultsWriter, SaveConfig
from consilium.config_files import explain_parser_error, shorten_parser_error
from consilium.inference.predictor import load_predictor
from consilium.inference.val_predictions import prediction_sets, write_sets
from consilium.training import COMMANDS, preflight
from consilium.training.command_help import USAGE
from consilium.training.run_lock import (
    given_options,
    is_first_process,
    lock_run_folder,
    print_once,
    raise_run_stopped,
    refuse_used_run_folder,
)
from datamodules.datamodule import ImageDataModule
from evaluation.files import remove_unfinished
from lightning_modules import checkpoints, packing
from lightning_modules.base import BaseModule
from lightning_modules.ensemble import EnsembleModule, find_ensemble_file
from lightning_modules.tta import ALLOWED, tta_notes

CHECKPOINT_HELP = "checkpoint; default: best.ckpt of --run, or that in the folder of the config"
SETS_HELP = "add the set of classes that has the right one at this rate, in each class; by val"
NO_ACCELERATOR = ("No supported gpu backend found", "since the accelerator is not available")
DEV_RUN_FOLDER = ".fast_dev_run"  # in the run folder, removed at the end
CLASS_HELP = {  # what the help of an argument describes if no class is named
    "--data.help": "datamodules.ImageDataModule",
    "--model.help": "lightning_modules.ImageClassifier",
}
PARSER_OPTIONS: dict[str, Any] = {
    name: {
        "exit_on_error": False,
        "allow_abbrev": False,
        "usage": USAGE.format(command=name),
        "description": f"{summary.capitalize()}.",
    }
    for name, summary in COMMANDS.items()
} | {"exit_on_error": False, "allow_abbrev": False}


class ConsiliumCLI(LightningCLI):
    """LightningCLI with a run folder `--run`; `fit` evaluates its best epoch at the end."""

    parsers: ClassVar[dict[str, Any]] = {}

    def __init__(self, args: list[str]) -> None:
        with ExitStack() as self.resources:
            super().__init__(
                BaseModule,
                ImageDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=SaveConfig,
                seed_everything_default=0,
                parser_kwargs=PARSER_OPTIONS,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=args,
            )

    def setup_parser(self, *args: Any, **options: Any) -> None:
        """Builds the parsers once per process, in which many runs may be parsed."""
        if not ConsiliumCLI.parsers:
            super().setup_parser(*args, **options)
            names = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
            ConsiliumCLI.parsers = {name: getattr(self, name) for name in names}
        vars(self).update(ConsiliumCLI.parsers)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds our arguments, and the links that pass data settings to the model."""
        parser.add_argument("--run", type=str, default="runs/default", help="run folder")
        parser.add_lightning_class_args(ResumableEarlyStopping, "early_stopping")
        help_text = f"test-time augmentations: {ALLOWED}"
        parser.add_argument("--tta", type=list[str], default=[], help=help_text)
        help_text = "evaluate with another preprocess than the checkpoint's; every report says so"
        parser.add_argument("--allow_other_preprocess", type=bool, default=False, help=help_text)
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data.init_args.class_names", "model.init_args.class_names")
        parser.link_arguments("data.init_args.preprocess.size", "model.init_args.image_size")

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        """Adds our arguments and help texts to Lightning's parser of a subcommand."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        help_text = CHECKPOINT_HELP
        if subcommand == "fit":
            help_text = "last.ckpt of an interrupted run, to resume it"
            test_help = "also evaluate the best epoch on the test split"
            parser.add_argument("--test", type=bool, default=False, help=test_help)
        if subcommand == "predict":
            parser.add_argument("--sets", type=float | None, default=None, help=SETS_HELP)
        parser._option_string_actions["--ckpt_path"].help = help_text  # Lightning's names URLs
        parser._option_string_actions["--data"].__class__ = ReplaceValue
        parser.add_argument("--trainer.help", action="help", help="show all arguments and exit")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, locks the run folder, sets the checkpoint; ValueError if a run cannot start."""
        self.config = self.parse(cast(list[str], args))
        command = self.config["subcommand"]
        config, run = self.config[command], Path(self.config[command]["run"])
        self.resources.enter_context(lock_run_folder(run))
        self._choose_checkpoint(command, config, run)
        self.is_dev_run = bool(config["trainer"]["fast_dev_run"])
        if self.is_dev_run:
            self._redirect_to_dev_run(config, run / DEV_RUN_FOLDER)
        elif command == "fit" and not config["ckpt_path"]:
            refuse_used_run_folder(run)

    def _choose_checkpoint(self, command: str, config: Namespace, run: Path) -> None:
        """Sets the path of the checkpoint: the default one, `best`, `last`, or the given file."""
        name = config["ckpt_path"]
        is_ensemble = issubclass(resolve_name(config["model"].class_path), EnsembleModule)
        folders = [run, *(Path(str(file)).parent for file in config["config"] or [])]
        self.model_path = next(filter(find_ensemble_file, folders), run)
        if not name and (command == "fit" or is_ensemble):
            return
        if name in (None, "best", "last"):
            name = preflight.default_checkpoint(run, config["config"] or [], name or "best")
            print_once(f"checkpoint: {name}")
        file: Path | None = Path(name)
        self.model_path = Path(name)
        last = run / LAST
        if command == "fit" and last.is_file() and last.resolve() == Path(name).resolve():
            file = preflight.checkpoint_to_resume(run)
        config["ckpt_path"] = file and self._unpack(file)
        arguments = config["model"].init_args
        pretrained = arguments.get("pretrained")
        if command != "fit" and isinstance(pretrained, str) and not Path(pretrained).exists():
            print_once(f"{pretrained} is gone; the checkpoint has all weights")
            arguments["pretrained"] = False

    def _redirect_to_dev_run(self, config: Namespace, folder: Path) -> None:
        """Limits a run to a few batches, and its files to a folder that is removed at the end."""
        preflight.limit_to_first_batches(config["trainer"])
        config["run"] = config["trainer"]["default_root_dir"] = str(folder)
        if is_first_process():
            self.resources.callback(shutil.rmtree, folder, ignore_errors=True)
        print_once("fast_dev_run: the first batches of each split; no file is kept")

    def parse(self, args: list[str], files: Sequence[Path] = ()) -> Namespace:
        """The settings that arguments (subcommand first) give; ValueError if a check fails.

        `files` are further files in which `args` may be written, for the error message.
        """
        paths = [*files, *map(Path, given_options(args).config)]
        try:
            config = self.parser.parse_args(args)
        except (ArgumentError, UnicodeDecodeError) as error:
            keys = self._subcommand_parsers[args[0]].get_defaults().keys()
            typed = () if files else args  # flags of an experiment are written in its file
            raise ValueError(explain_parser_error(str(error), paths, keys, typed)) from error
        command = config["subcommand"]
        if not config[command]["run"].strip():
            raise ValueError(f"--run {config[command]['run']!r}: must be the path of a folder")
        preflight.require_result_callbacks(config[command]["trainer"]["callbacks"], paths)
        preflight.check_settings(config[command], paths)
        if command == "fit":
            preflight.check_fit_config(config[command])
        return config

    def _unpack(self, path: Path) -> str:
        """Verifies a checkpoint; returns its path, or that of an unpacked temporary copy."""
        block, state = checkpoints.read(path, verify=True)
        if not path.name.endswith(packing.SUFFIX):
            return str(path)
        if self.config["subcommand"] == "fit":
            reason = "a packed checkpoint has no optimizer state to resume from"
            raise ValueError(f"--ckpt_path {path}: {reason}")
        folder = self.resources.enter_context(tempfile.TemporaryDirectory())
        file = Path(folder) / "unpacked.ckpt"
        torch.save(checkpoints.inference_checkpoint(block, state), file)
        return str(file)

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the command; raises OutOfMemory, and RunStopped after a signal."""
        folder, accumulate = self.trainer.default_root_dir, self.trainer.accumulate_grad_batches
        with (
            preflight.raise_out_of_memory(self.datamodule.batch_size, accumulate, folder),
            raise_run_stopped(Path(folder), subcommand),
            close_loggers(self.trainer.loggers),
        ):
            super()._run_subcommand(subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Creates the trainer; ValueError if this machine lacks the accelerator."""
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            if not any(text in str(error) for text in NO_ACCELERATOR):
                raise
            argument = f"--trainer.accelerator {self._get(self.config, 'trainer.accelerator')}"
            remedy = "not available on this machine; give --trainer.accelerator auto, or cpu"
            raise ValueError(f"{argument}: {remedy}") from error

    def after_instantiate_classes(self) -> None:
        """Sets test-time augmentation and the loggers' run folder."""
        config = self.config[self.subcommand]
        self.model.tta = config["tta"]
        self.model.allow_other_preprocess = config["allow_other_preprocess"]
        self.config_init[self.subcommand]["verbose"] = False  # ResultsWriter prints the metrics
        for note in tta_notes(self.model.tta):  # raises on an unknown name
            print_once(note)
        job = "ensemble" if isinstance(self.model, EnsembleModule) else "member"
        set_run_folder(self.trainer.loggers, self.trainer.default_root_dir, job)

    def before_predict(self) -> None:
        """Fits the prediction sets, if they are asked for, on the model's predictions of val."""
        self.sets, rate = None, self.config["predict"]["sets"]
        if rate is not None and not 0 < rate < 1:
            raise ValueError(f"--sets {rate:g}: must be between 0 and 1")
        if rate is not None:
            predictor = load_predictor(self.model_path)
            self.sets = prediction_sets(self.model_path, predictor, rate)

    def after_predict(self) -> None:
        """Adds the sets to the table that was written."""
        if self.sets and is_first_process():
            folder = Path(self.trainer.default_root_dir) / "predictions"
            write_sets(folder / f"{self.datamodule.predict_split}.parquet", self.sets)

    def after_fit(self) -> None:
        """Evaluates the best epoch on val, and with `--test true` on test."""
        best = Path(self.trainer.default_root_dir) / "best.ckpt"
        if self.is_dev_run and not best.is_file():  # a sparse stage would select it later
            best = best.with_name("last.ckpt")
        if not best.is_file():
            print_once(f"no validation, hence no {best} and no metrics; last.ckpt is the last step")
            return
        options = {"model": self.model, "datamodule": self.datamodule, "ckpt_path": str(best)}
        evaluations = {"val": self.trainer.validate}
        if (self.config["fit"]["test"] or self.is_dev_run) and len(self.datamodule.rows("test")):
            evaluations["test"] = self.trainer.test
            for callback in vars(self.trainer)["callbacks"]:  # Lightning does not declare them
                if isinstance(callback, ResultsWriter):
                    callback.has_val_report = self.is_dev_run
        for split, evaluate in evaluations.items():
            if self.trainer.received_sigterm:  # during the last batch of the previous stage
                raise SIGTERMException
            if len(self.datamodule.rows(split)):
                evaluate(**options, verbose=False)
        if is_first_process():
            best.with_name(PREVIOUS).unlink(missing_ok=True)  # of a fit that can be interrupted
            for checkpoint in (best, best.with_name(LAST)):
                remove_unfinished(checkpoint)


class ReplaceValue(ActionTypeHint):
    """`--data VALUE` replaces settings of earlier config files; jsonargparse merges them.

    Otherwise a test on other data would keep, for instance, the splits of the run's own source.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Parses a value; `args` are parser, settings, value and option."""
        _, settings, _, option = args
        if option == "--data":
            settings.pop("data", None)
        parse: Callable[..., None] = super().__call__
        parse(*args, **kwargs)


class ConfigValidator(ConsiliumCLI):
    """Parses the arguments of a run without locking its folder or creating any object."""

    def __init__(self, args: list[str], files: Sequence[Path]) -> None:
        self.files = files
        super().__init__(args)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses and checks the config alone."""
        self.config = self.parse(cast(list[str], args), self.files)

    def _do_nothing(self, subcommand: str = "") -> None:
        """Replaces the steps of LightningCLI that follow parsing."""

    _set_seed = instantiate_classes = after_instantiate_classes = _run_subcommand = _do_nothing


def run_training(args: list[str], cli: type[ConsiliumCLI] = ConsiliumCLI) -> int:
    """Runs fit, validate, test or predict (the first of `args`); returns 0 or raises ValueError."""
    silence_lightning()
    try:
        args = [args[0], *preflight.default_config(args), *complete_help_arguments(args[1:])]
        preflight.run_with_smaller_batches(cli, args)
    except (ArgumentError, MisconfigurationException, ValueError) as error:
        raise ValueError(shorten_parser_error(str(error))) from error
    return 0


def validate_config(args: list[str], files: Sequence[Path] = ()) -> Namespace:
    """The settings that arguments (subcommand first) give, parsed and checked; creates nothing.

    An unknown key or a wrong value is a ValueError of one line: file, key, nearest allowed key.
    `files` are further files in which flags of `args` may be written, such as an experiment's.
    """
    silence_lightning()
    return cast(Namespace, ConfigValidator(args, files).config)


def complete_help_arguments(args: Sequence[str]) -> list[str]:
    """The arguments with a class added to each `--data.help` or `--model.help` without one."""
    pairs = zip(args, [*args, "--"][1:], strict=True)
    return [f"{arg}={CLASS_HELP[arg]}" if arg in CLASS_HELP and after.startswith("-") else arg
            for arg, after in pairs]  # fmt: skip


def silence_lightning() -> None:
    """Turns off Lightning's messages about itself."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # raised by Lightning's code
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
    # metrics of a split are equal on every process, which Lightning cannot know
    warnings.filterwarnings("ignore", r".*recommended to use `self.log\('(val|test)/.*")
    for message in (
        "does not have many workers",
        "smaller than the logging interval",
        "exists and is not empty",
        "The dirpath has changed",  # test into another folder
        "predict returned None",  # PredictionWriter gathers the table
    ):
        warnings.filterwarnings("ignore", f".*{message}.*")
