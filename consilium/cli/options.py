"""The parser of fit, validate, test and predict."""

from argparse import ArgumentError, RawDescriptionHelpFormatter
from typing import Any

from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.pytorch.cli import LightningArgumentParser

HELP = """\
What the data and the model take is explained by their own help:
  consilium {verb} --data.help datamodules.ImageDataModule
  consilium {verb} --model.help lightning_modules.ImageClassifier
All of it may stand in a config or be a flag: --model.init_args.optimization.lr 0.001
"""
CKPT = {
    "fit": "last.ckpt of a run that was interrupted: the fit goes on from there",
    "": "the checkpoint; a member without one takes best.ckpt of --run, or that beside the config",
}


class Lines(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of what stands below the help."""


class Parser(LightningArgumentParser):
    """Lightning's, with errors that say which file they are in, and with our own words."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, formatter_class=Lines, **options)

    def parse_path(self, *args: Any, **options: Any) -> Namespace:
        """The settings of a file."""
        try:
            found: Namespace = super().parse_path(*args, **options)
        except ArgumentError as error:
            raise ArgumentError(None, f"{args[0]}: {error}") from error
        return found

    def add_method_arguments(self, owner: type, verb: str, *args: Any, **options: Any) -> list[str]:
        """The arguments of a verb; of checkpoints Lightning tells what is refused here."""
        added: list[str] = super().add_method_arguments(owner, verb, *args, **options)
        self._option_string_actions["--ckpt_path"].help = CKPT.get(verb, CKPT[""])
        return added
