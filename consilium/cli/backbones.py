"""consilium backbones [PATTERN]: what each backbone costs, under which license its weights are."""

import argparse
import fnmatch

import timm
from rich.console import Console
from rich.table import Table

from consilium.cli import words
from lightning_modules import backbones
from lightning_modules.model_info import KNOWN, Facts, facts


def run(argv: list[str]) -> int:
    """Prints one row for each name that matches; without a pattern those of the shipped configs."""
    asked = _arguments(argv)
    names = _names(asked.pattern)
    if asked.commercial_only:
        names = [name for name in names if backbones.is_commercial(backbones.license(name))]
    if not names:
        close = ", ".join(backbones.nearest(asked.pattern or "")) or "none"
        raise ValueError(f"PATTERN: nothing matches {asked.pattern!r}; the nearest are: {close}")
    _print([facts(name, asked.image_size) for name in names])
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = words.parser("backbones", __doc__)
    parser.add_argument("pattern", nargs="?", help="a timm name, * and ? allowed; tags after a dot")
    parser.add_argument("--commercial_only", action="store_true", help="leave out the others")
    parser.add_argument("--image_size", type=int, help="side in pixels; default: of the weights")
    return parser.parse_args(argv)


def _names(pattern: str | None) -> list[str]:
    """Known names without a pattern; else architectures, or with a dot weights, that match."""
    if pattern is None:
        return list(KNOWN)
    everything = timm.list_pretrained() if "." in pattern else timm.list_models()
    wide = pattern if "*" in pattern or "?" in pattern else f"*{pattern}*"
    return [name for name in everything if fnmatch.fnmatch(name, wide)]


def _print(rows: list[Facts]) -> None:
    table = Table("backbone", box=None, pad_edge=False)
    for title in ("parameters", "MACs", "pixels"):
        table.add_column(title, justify="right")
    table.add_column("license of weights")
    table.add_column("CAM layer")
    for row in rows:
        use = row.license if row.commercial else f"{row.license} (not commercial)"
        cam = f"{row.cam.name} {row.cam.height}x{row.cam.width}" if row.cam else "none"
        numbers = (f"{row.parameters / 1e6:.1f} M", f"{row.macs / 1e9:.2f} G", str(row.image_size))
        table.add_row(row.name, *numbers, use, cam)
    Console(width=160).print(table)
