"""List backbones with parameters, MACs, license of the pretrained weights, and CAM layer."""

import argparse
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    from lightning_modules.model_info import BackboneInfo

EXAMPLES = """\
examples:
  consilium backbones                 the backbones of the shipped configs
  consilium backbones swin            every timm architecture with "swin" in its name
  consilium backbones 'resnet50.*'    the pretrained weights of one architecture
  consilium backbones 'convnextv2_*.*' --commercial-only
"""


def run(args: argparse.Namespace) -> int:
    """Prints a table of the backbones that match the pattern."""
    from lightning_modules.model_info import backbone_info, find_backbones

    names = find_backbones(args.pattern, args.commercial_only)
    table = backbone_table([backbone_info(name, args.image_size) for name in names])
    Console(width=160).print(table)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("pattern", nargs="?", help="timm name, with * and ?; with a dot it matches weight tags")
    add("--commercial-only", action="store_true", help="only weights licensed for commercial use")
    add("--image-size", type=int, help="side in pixels (default: that of the pretrained weights)")


def backbone_table(rows: "list[BackboneInfo]") -> Table:
    """A table with one row per backbone, for the terminal."""
    numeric = [Column(title, justify="right") for title in ("parameters", "MACs", "pixels")]
    others = ("license of weights", "CAM layer")
    table = Table("backbone", *numeric, *others, box=None, pad_edge=False)
    for row in rows:
        usage = row.license if row.is_commercial else f"{row.license} (not commercial)"
        cam = f"{row.cam.name} {row.cam.height}x{row.cam.width}" if row.cam else "none"
        numbers = (f"{row.parameters / 1e6:.1f} M", f"{row.macs / 1e9:.2f} G", str(row.image_size))
        table.add_row(row.name, *numbers, usage, cam)
    return table
