"""Remove whole channels from a trained model, and fine-tune the smaller model."""

import argparse
from pathlib import Path

from consilium.cli.options import device
from consilium.training.run_lock import RunStopped

EXAMPLE = """\
example: consilium prune runs/b2 --macs 0.6 --epochs 10
Reads runs/b2/best.ckpt, removes the channels with the smallest effect on the loss of training
images until 60 % of the multiply-accumulates remain, measures the smaller model next to the
original, and fine-tunes it for 10 epochs with runs/b2/config.yaml. The result (runs/b2-pruned) is
an ordinary run folder; after an interruption the same command resumes it. With --latency, channels
that take the most time are removed first, at some loss of accuracy. Sparse training
(configs/recipe/ast25.yaml) zeroes single weights instead, which saves no time."""


def run(options: argparse.Namespace) -> int:
    """Prunes and fine-tunes a run, and prints its size, speed and accuracy next to the original."""
    from consilium.training.pruning import PruningRun, run_pruning

    args = vars(options)
    args["output"] = args["output"] or args["dense"].with_name(args["dense"].name + "-pruned")
    try:
        print(run_pruning(PruningRun(**args)))
    except RunStopped as stopped:
        raise RunStopped("stopped; the same command resumes it", stopped.code) from None
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("dense", type=Path, metavar="RUN", help="run folder of a fit (best.ckpt, config.yaml)")
    add("--macs", type=float, help="fraction of the multiply-accumulates that may remain")
    add("--latency", type=float, help="fraction of one image's latency that may remain, measured")
    add("--round-to", type=int, default=16, help="widths are multiples of it; 8 for GPUs (16)")
    help_ = "weight of a channel's cost against its importance: 0 ignores the cost (0.5)"
    add("--cost-power", type=float, default=0.5, help=help_)
    add("--images", type=int, default=640, help="training images that decide on importance (640)")
    add("--epochs", type=int, default=10, help="epochs of fine-tuning (10)")
    add("--lr", type=float, help="peak learning rate, cosine after one epoch of warmup (as in RUN)")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="run folder of the pruned model (RUN-pruned)",
    )
    add("--pairs", type=int, default=20, help="timed passes of the dense and the pruned model (20)")
    add("--energy", action="store_true", help="measure energy as well: at least four minutes")
    help_ = "where latency is measured: cpu, cuda, cuda:N or auto (cpu)"
    add("--device", type=device, default="cpu", help=help_)
