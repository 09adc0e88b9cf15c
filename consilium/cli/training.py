"""consilium fit, validate, test and predict: train and evaluate through LightningCLI."""

from consilium.training.lightning_cli import run_training


def run(args: list[str]) -> int:
    """Runs `args`, subcommand first."""
    return run_training(args)
