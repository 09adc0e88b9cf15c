"""consilium export: the members of an ensemble in a format that other runtimes read, held to torch.

Every member becomes one file with its Preprocess, class names and the hash of its weights inside;
the batch size is free. The exported files are then asked about pictures that went through the
members' own Preprocess, and the export is kept only if they answer like the checkpoints.
`consilium serve FOLDER` answers from such a folder without the checkpoints.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from consilium.cli import words
from consilium.inference.export import bundle, parity
from consilium.inference.export.formats import FORMATS
from consilium.inference.predictor import Model, load
from datamodules.images import read

PICTURES = 8
HELP = "; ".join(f"{name} {each.suffix}, {each.says}" for name, each in FORMATS.items())


def run(argv: list[str]) -> int:
    """Exports, compares with torch, and prints one line a member."""
    asked = parser().parse_args(argv)
    model = load(asked.model)
    pictures = [read(path) for path in asked.images] if asked.images else parity.generated(PICTURES)
    console = Console(soft_wrap=True)
    with console.status("exporting") as status:
        found = export(model, asked.format, asked.output, pictures, status.update)
    console.print(table(found))
    console.print(f"{len(found)} files, each held to torch on {len(pictures)} pictures, "
                  f"in batches of 1 and {len(pictures)}: {asked.output}")  # fmt: skip
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = words.parser("export", __doc__)
    add = main.add_argument
    add("model", type=Path, metavar="CKPT|ENSEMBLE", help="checkpoint, run folder or ensemble.json")
    add("--format", choices=list(FORMATS), default="onnx", help=f"{HELP} (onnx)")
    add("-o", "--output", type=Path, default=Path("runs/export"), help="folder (runs/export)")
    help_ = "pictures to compare on; generated radiographs if none are named"
    add("--images", nargs="+", default=[], metavar="IMAGE", help=help_)
    return main


def export(
    model: Model,
    kind: str,
    folder: Path,
    pictures: Sequence[np.ndarray],
    done: Callable[[str], None] = lambda name: None,
) -> dict[str, parity.Parity]:
    """Writes the folder, whole or not at all, and returns how far each member is from torch."""
    folder = folder.resolve()  # "." has no name and no parent of its own
    if folder.exists() and any(folder.iterdir()) and not (folder / bundle.FILE).is_file():
        raise ValueError(f"--output {folder}: holds files that are no export; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        made = Path(name) / folder.name
        files = bundle.save(made, kind, model, done)
        found = parity.compare(model, bundle.load(made), pictures, files)
        parity.refuse(kind, found)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    return found


def table(found: dict[str, parity.Parity]) -> Table:
    """One row a member."""
    rows = Table("member", "file", box=None, pad_edge=False)
    for title in ("MB", "difference of a logit", "of a probability"):
        rows.add_column(title, justify="right")
    for name, each in found.items():
        numbers = (f"{each.bytes / 1e6:.1f}", f"{each.logit:.1e}", f"{each.probability:.1e}")
        rows.add_row(name, each.file, *numbers)
    return rows
