"""Write the members of an ensemble in a format for other runtimes.

Every member becomes one file that contains its preprocessing, class names and the hash of its
weights; the batch size is free. The files are then verified against PyTorch on preprocessed images:
unless the probabilities agree, nothing is written. `consilium serve FOLDER` serves such a folder
without the checkpoints.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from consilium.inference.export import ExportDifference

NUM_IMAGES = 8
FORMAT_HELP = """onnx: for onnxruntime and other runtimes, without torch; torch_export: archive of
torch.export, without timm; safetensors: weights only, with timm's names; packed: checkpoint with
float16 weights and a bitmap of zeros (onnx)"""
EXAMPLES = """\
examples:
  consilium export runs/demo/ensemble --format onnx -o runs/onnx
  consilium serve runs/onnx
"""


def run(args: argparse.Namespace) -> int:
    """Exports the members of a model or ensemble, and prints one line for each."""
    from consilium.inference.export import export_ensemble, foreign_files, generated_images
    from consilium.inference.export_formats import FORMATS
    from consilium.inference.predictor import load_predictor
    from datamodules.images import read_image

    if args.format not in FORMATS:
        raise ValueError(f"--format {args.format!r} is not one of {', '.join(FORMATS)}")
    predictor = load_predictor(args.model)
    images = [read_image(path) for path in args.images] or generated_images(NUM_IMAGES)
    print(f"exporting {len(predictor.members)} members, verified on {len(images)} images")
    differences = export_ensemble(predictor, args.format, args.output, images)
    console = Console(soft_wrap=True)
    console.print(difference_table(differences))
    console.print(f"{len(differences)} files, each verified against PyTorch on {len(images)} "
                  f"images, in batches of 1 and {len(images)}: {args.output}")  # fmt: skip
    for name in foreign_files(args.output):
        console.print(f"{args.output / name}: kept, since no export wrote it", markup=False)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("model", type=Path, metavar="CKPT|ENSEMBLE", help="checkpoint, run folder or ensemble.json")
    add("--format", default="onnx", metavar="NAME", help=FORMAT_HELP)
    folder = Path("runs/export")
    add("-o", "--output", type=Path, default=folder, metavar="DIR", help=f"({folder})")
    add("--images", nargs="+", default=[], metavar="IMAGE", help="to verify on (synthetic images)")


def difference_table(differences: "dict[str, ExportDifference]") -> Table:
    """A row per member with its file, file size and differences from PyTorch."""
    titles = ("MB", "logit difference", "probability difference")
    numeric = [Column(title, justify="right") for title in titles]
    table = Table("member", "file", *numeric, box=None, pad_edge=False)
    for name, d in differences.items():
        numbers = (f"{d.bytes / 1e6:.1f}", f"{d.logit:.1e}", f"{d.probability:.1e}")
        table.add_row(name, d.file, *numbers)
    return table
