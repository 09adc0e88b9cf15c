"""Makes every notebook from the .py file beside it: `python notebooks/make.py`."""

from pathlib import Path

import jupytext
import nbformat

from evaluation.files import write_text

HERE = Path(__file__).parent


def sources() -> list[Path]:
    """The files that notebooks are made from."""
    return sorted(HERE.glob("[0-9]*.py"))


def made(source: Path) -> str:
    """The notebook without outputs; its cells are numbered, so that it is the same each time."""
    book = jupytext.read(source)
    for at, cell in enumerate(book.cells):
        cell["id"] = f"cell-{at:02d}"
    book.metadata.pop("jupytext", None)  # names the version that read it
    return str(nbformat.writes(book, indent=1)) + "\n"


if __name__ == "__main__":
    for source in sources():
        write_text(source.with_suffix(".ipynb"), made(source))
