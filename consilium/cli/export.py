"""consilium export: writes the members of an ensemble in a format for other runtimes.

Every member becomes one file that contains its preprocessing, class names and the hash of its
weights; the batch size is free. The files are then verified against PyTorch on preprocessed images:
unless the probabilities agree, nothing is written. `consilium serve FOLDER` serves such a folder
without the checkpoints.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from consilium.inference.export import ExportDifference, export_ensemble, generated_images
from consilium.inference.export_formats import FORMATS
from consilium.inference.predictor import load_predictor
from datamodules.images import read_image

NUM_IMAGES = 8
FORMAT_HELP = "; ".join(f"{name}: {spec.description}" for name, spec in FORMATS.items())


def run(args: argparse.Namespace) -> int:
    """Exports, and prints one line per member."""
    predictor = load_predictor(args.model)
    images = [read_image(path) for path in args.images] or generated_images(NUM_IMAGES)
    differences = export_ensemble(predictor, args.format, args.output, images)
    console = Console(soft_wrap=True)
    console.print(difference_table(differences))
    console.print(f"{len(differences)} files, each verified against PyTorch on {len(images)} "
                  f"images, in batches of 1 and {len(images)}: {args.output}")  # fmt: skip
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add = parser.add_argument
    add("model", type=Path, metavar="CKPT|ENSEMBLE", help="checkpoint, run folder or ensemble.json")
    add("--format", choices=list(FORMATS), default="onnx", help=f"{FORMAT_HELP} (onnx)")
    add("-o", "--output", type=Path, default=Path("runs/export"), help="folder (runs/export)")
    add("--images", nargs="+", default=[], metavar="IMAGE", help="to verify on (synthetic images)")


def difference_table(differences: dict[str, ExportDifference]) -> Table:
    """Size and differences of each member's file."""
    titles = ("MB", "logit difference", "probability difference")
    numeric = [Column(title, justify="right") for title in titles]
    table = Table("member", "file", *numeric, box=None, pad_edge=False)
    for name, d in differences.items():
        numbers = (f"{d.bytes / 1e6:.1f}", f"{d.logit:.1e}", f"{d.probability:.1e}")
        table.add_row(name, d.file, *numbers)
    return table
