"""Converts every numbered .py file of this folder to a notebook, with outputs if there are any.

`python notebooks/make.py` executes each notebook whose experiment's folder exists; the outputs of
the others, if their code is unchanged, are kept. Images are stored as small PNG or JPEG
files, which repository pages show.
"""

import base64
import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_output
from PIL import Image

from evaluation.files import write_text
from evaluation.reports.html import NotebookSections, Plot, Section, Thumbnails, section_html

HERE = Path(__file__).parent
MAX_WIDTH = 720  # pixels of a stored image
COLORS, COLUMNS = 96, 6  # of a stored image; of a sheet of thumbnails


def sources() -> list[Path]:
    """The numbered .py files of this folder."""
    return sorted(HERE.glob("[0-9]*.py"))


def to_notebook(source: Path) -> str:
    """The notebook without outputs as JSON; numbered cell ids make the result reproducible."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
    notebook.metadata.pop("jupytext", None)  # contains the jupytext version
    return to_json(notebook)


def to_json(notebook: nbformat.NotebookNode) -> str:
    """The content of an .ipynb file."""
    return str(nbformat.writes(notebook, indent=1)) + "\n"


def without_outputs(file: Path) -> str:
    """An .ipynb file as if it had never been executed."""
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return to_json(notebook)


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs all code cells in this process and stores the results that they show."""
    shell = InteractiveShell()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            with redirect_stdout(io.StringIO()):  # the results as text
                executed = shell.run_cell(cell.source)
            executed.raise_error()
            cell.outputs = to_outputs(executed.result)


def to_outputs(result: object) -> list[nbformat.NotebookNode]:
    """The outputs of a cell with this result: one for each section of a report."""
    if result is None:
        return []
    if isinstance(result, NotebookSections):
        return [output for section in result.sections for output in section_outputs(section)]
    if isinstance(result, pd.DataFrame):
        return [html_output(result.to_html())]
    raise TypeError(f"a cell shows a {type(result).__name__}; show sections, plots or a table")


def section_outputs(section: Section) -> list[nbformat.NotebookNode]:
    """Images after their heading and before their captions, everything else as HTML."""
    if isinstance(section, Plot):
        texts, image = (section.heading, section.caption), open_png(section.png())
    elif isinstance(section, Thumbnails):
        captions = [f"{at}: {text}" for at, text in enumerate(section.captions, 1)]
        texts = (section.heading, "\n".join([*captions, section.note]))
        image = thumbnail_sheet([open_png(png) for png in section.images])
    else:
        return [html_output(section_html(section))]
    heading, caption = ([new_output("display_data", {"text/plain": t})] if t else [] for t in texts)
    return [*heading, image_output(image), *caption]


def open_png(png: bytes) -> Image.Image:
    """The image of a PNG file."""
    return Image.open(io.BytesIO(png)).convert("RGB")


def thumbnail_sheet(images: list[Image.Image]) -> Image.Image:
    """Images in rows, in their order."""
    side = MAX_WIDTH // COLUMNS
    sheet = Image.new("RGB", (MAX_WIDTH, side * -(-len(images) // COLUMNS)), "white")
    for at, image in enumerate(images):
        image.thumbnail((side - 4, side - 4))
        sheet.paste(image, (at % COLUMNS * side, at // COLUMNS * side))
    return sheet


def html_output(text: str) -> nbformat.NotebookNode:
    """An output of HTML, for readers without it of its text."""
    plain = re.sub(r"\s*<[^>]*>\s*", " ", text).strip()
    return new_output("display_data", {"text/html": text, "text/plain": plain[:200]})


def image_output(image: Image.Image) -> nbformat.NotebookNode:
    """An output of a small image: PNG for plots, JPEG for photographs, whichever is smaller."""
    image.thumbnail((MAX_WIDTH, 4 * MAX_WIDTH))
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.quantize(COLORS).save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=80)
    is_plot = len(png.getvalue()) <= len(jpeg.getvalue())
    data = base64.b64encode((png if is_plot else jpeg).getvalue()).decode()
    kind = "image/png" if is_plot else "image/jpeg"
    return new_output("display_data", {kind: data, "text/plain": "image"})


def make(source: Path) -> None:
    """Writes the notebook of one source, executed if its experiment's folder exists."""
    file, text = source.with_suffix(".ipynb"), to_notebook(source)
    notebook = nbformat.reads(text, as_version=4)
    match = re.search(r'^EXPERIMENT = "(.+?)"', source.read_text(encoding="utf-8"), re.MULTILINE)
    if match and (HERE.parent / match[1]).is_dir():
        execute(notebook)
    elif file.is_file() and without_outputs(file) == text:
        return
    write_text(file, to_json(notebook))


if __name__ == "__main__":
    for source in sources():
        make(source)
