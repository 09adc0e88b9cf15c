"""Converts every numbered .py file of this folder to a notebook: `python notebooks/make.py`."""

from pathlib import Path

import jupytext
import nbformat

from evaluation.files import write_text

HERE = Path(__file__).parent


def sources() -> list[Path]:
    """The numbered .py files of this folder."""
    return sorted(HERE.glob("[0-9]*.py"))


def to_notebook(source: Path) -> str:
    """The notebook without outputs as JSON; numbered cell ids make the result reproducible."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
    notebook.metadata.pop("jupytext", None)  # contains the jupytext version
    return str(nbformat.writes(notebook, indent=1)) + "\n"


if __name__ == "__main__":
    for source in sources():
        write_text(source.with_suffix(".ipynb"), to_notebook(source))
