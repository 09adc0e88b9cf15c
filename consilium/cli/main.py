"""The front door: training through LightningCLI, and a table of the other verbs."""

import importlib
import sys
from importlib.metadata import version

from consilium.cli import threads
from consilium.cli.errors import ended
from consilium.cli.words import unknown, usage

TRAINING = {
    "fit": "train one member, then measure its best epoch on val and test",
    "validate": "measure a checkpoint on the val split",
    "test": "measure a checkpoint or an ensemble on the test split",
    "predict": "write the prediction table of a split, labels or not",
}
VERBS = {
    "experiment": "run members and their ensemble from one file; resume, status, dry run",
    "ensemble": "fit every voter on val tables, judge it on test tables",
    "compare": "members side by side: figures, strengths, diversity, paired tests",
    "inspect": "what a checkpoint is, what it was measured at, whether its weights are its own",
    "prune": "take channels out of a member, train it on, measure it beside the dense one",
    "audit": "find leaks, copies, broken files and confounds before training",
    "cache": "info: list stores of prepared pixels; build, clear",
    "explain": "where a model, or each member of an ensemble, sees what it says",
    "serve": "a web page and an API that answer with the evaluation's numbers",
    "export": "write members as ONNX, torch.export or safetensors, held to torch",
    "backbones": "list backbones with their size, cost, license and CAM layer",
}


def run(args: list[str]) -> int:
    """Carries out one verb and returns its exit code; errors are raised."""
    verb, rest = args[0], args[1:]
    if verb not in TRAINING | VERBS:
        raise ValueError(unknown(verb, TRAINING | VERBS))
    module = "consilium.cli.training" if verb in TRAINING else f"consilium.cli.{verb}"
    return int(importlib.import_module(module).run(args if verb in TRAINING else rest))


def main(args: list[str] | None = None) -> int:
    """Runs `args` (default: the command line); an error is one line, with --debug a traceback."""
    threads.sleep_soon()
    given = sys.argv[1:] if args is None else args
    args = [a for a in given if a != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage(TRAINING | VERBS))
        return 0
    if args[0] == "--version":
        print(f"consilium {version('consilium')}")
        return 0
    return ended(run, args, debug="--debug" in given)
