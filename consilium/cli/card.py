"""Write the model card of a run, or of an experiment's ensemble, with reporting checklists.

Writes card.md and card.html into the folder. Items of CLAIM 2024 and TRIPOD+AI are filled from the
files of the run, each with the files that show it; those that only a person can answer, or whose
file is missing, are blank and listed. Both files are written anew each time: complete a copy.
"""

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  consilium card runs/resnet10t
  consilium card runs/demo
"""


def run(options: argparse.Namespace) -> int:
    """Writes the card and prints how many items are open."""
    from consilium.inference.card import NAME, run_of, write_card

    filled = write_card(options.folder, run_of(options.folder))
    num_open = sum(not item.content for item in filled)
    print(
        f"{len(filled) - num_open} of {len(filled)} items are filled; {num_open} are listed as open"
    )
    print(f"Card: {options.folder / NAME}.html, {options.folder / NAME}.md")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = EXAMPLES
    help_ = "folder of a run or of an experiment"
    parser.add_argument("folder", type=Path, metavar="RUN|EXPERIMENT", help=help_)
