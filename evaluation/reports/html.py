"""Reports: one HTML file with its pictures inside, readable on screen and on paper."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path

from matplotlib.figure import Figure as Drawing

from evaluation.files import write_text
from evaluation.reports.page import PAGE, STYLE
from evaluation.stats.estimate import Estimate

CSS_PER_INCH = 104


@dataclass(frozen=True)
class Gap:
    """A difference, shown with its sign."""

    figure: Estimate


Cell = str | int | float | Estimate | Gap | None


@dataclass(frozen=True)
class Text:
    """Paragraphs (blank lines part them); `lead` sets them as the report's opening sentence."""

    body: str
    heading: str = ""
    lead: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under column names; numbers and Figures are aligned right, the first column left.

    `strong` are the positions of rows set in bold.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    heading: str = ""
    note: str = ""
    digits: int = 4
    strong: Sequence[int] = ()


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure, or the bytes of a PNG."""

    image: Drawing | bytes
    caption: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures (PNG bytes) with a line under each."""

    images: Sequence[bytes]
    captions: Sequence[str]
    heading: str = ""
    note: str = ""


@dataclass(frozen=True)
class Gate:
    """One thing that was asked for: its name, what was asked, what was found, whether it holds."""

    name: str
    asked: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Gates:
    """Gates with pass or fail."""

    gates: Sequence[Gate]
    heading: str = "Gates"


@dataclass(frozen=True)
class Details:
    """Plain facts at the report's end: versions, hashes, settings."""

    facts: Mapping[str, object] = field(default_factory=dict)
    heading: str = "How this was made"


Section = Text | Table | Picture | Thumbnails | Gates | Details


def write_report(path: Path | str, title: str, sections: Sequence[Section]) -> None:
    """Writes one self-contained page, whole or not at all."""
    body = "\n".join(html_of(section) for section in sections)
    write_text(path, PAGE.format(title=html.escape(title), style=STYLE, body=body))


def number(figure: Estimate, digits: int = 4) -> str:
    """`0.9701 (0.9553 to 0.9801)`, or `not measured`."""
    if figure.value is None:
        return "not measured"
    value = f"{figure.value:.{digits}f}"
    if figure.low is None or figure.high is None:
        return value
    return f"{value} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def counted(figure: Estimate, rows: str = "images") -> str:
    """`1,200 images of 300 patients`; `rows` is what was counted: images, studies or patients."""
    if rows == "patients":
        return f"{figure.n:,} patients"
    return f"{figure.n:,} {rows} of {figure.patients:,} patients"


def lead(subject: str, name: str, figure: Estimate) -> Text:
    """The opening sentence: what was found, on how much, with its interval."""
    if figure.value is None:
        return Text(f"{subject}: {name} was not measured ({figure.reason}).", lead=True)
    interval = (
        "" if figure.low is None else f" (95 % interval {figure.low:.4f} to {figure.high:.4f})"
    )
    said = f"{subject} reaches {name} {figure.value:.4f}{interval} on {counted(figure)}."
    return Text(said, lead=True)


def figures_table(
    figures: Mapping[str, Estimate], heading: str = "Figures", counts: str = "images"
) -> Table:
    """One row a figure: value, interval, method, images or what else `counts` says, patients."""
    rows = [
        (name, f.value, f.low, f.high, f.n, f.patients, f.reason or f.method)
        for name, f in figures.items()
    ]
    columns = ("", "value", "low", "high", counts, "patients", "interval by")
    return Table(columns, rows, heading, "Intervals are at 95 %.")


def html_of(section: Section) -> str:
    """One section as HTML."""
    heading = "" if section.heading == "" else f"<h2>{html.escape(section.heading)}</h2>"
    return f"<section>{heading}{_body(section)}</section>"


@singledispatch
def _body(section: object) -> str:
    raise TypeError(f"a report has no section of type {type(section).__name__}")


@_body.register
def _(text: Text) -> str:
    kind = ' class="lead"' if text.lead else ""
    paragraphs = [html.escape(p.strip()) for p in text.body.split("\n\n") if p.strip()]
    return "".join(f"<p{kind}>{p}</p>" for p in paragraphs)


@_body.register
def _(table: Table) -> str:
    head = "".join(
        _head(name, [row[at] for row in table.rows]) for at, name in enumerate(table.columns)
    )
    rows = [_row(row, table.digits, at in table.strong) for at, row in enumerate(table.rows)]
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>{note}"


def _head(name: str, below: Sequence[Cell]) -> str:
    numbers = all(not isinstance(cell, str) for cell in below)
    return f"<th{' class=number' if numbers else ''}>{html.escape(name)}</th>"


def _row(row: Sequence[Cell], digits: int, strong: bool) -> str:
    cells = "".join(_cell(cell, digits) for cell in row)
    return f'<tr class="strong">{cells}</tr>' if strong else f"<tr>{cells}</tr>"


def _cell(cell: Cell, digits: int) -> str:
    if cell is None:
        return '<td class="number">&ndash;</td>'
    if isinstance(cell, str):
        return f"<td>{html.escape(cell)}</td>"
    if isinstance(cell, Estimate | Gap):
        return f'<td class="number">{_figure_cell(cell, digits)}</td>'
    shown = f"{cell:,}" if isinstance(cell, int) else f"{cell:.{digits}f}"
    return f'<td class="number">{shown}</td>'


def _figure_cell(cell: Estimate | Gap, digits: int) -> str:
    """The value, and under it the interval in small."""
    figure, sign = (cell.figure, "+") if isinstance(cell, Gap) else (cell, "")
    if figure.value is None:
        return "&ndash;"
    value = f"{figure.value:{sign}.{digits}f}"
    if figure.low is None or figure.high is None:
        return value
    ends = f"{figure.low:{sign}.{digits}f} to {figure.high:{sign}.{digits}f}"
    return f"{value}<small>{ends}</small>"


@_body.register
def _(picture: Picture) -> str:
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else ""
    drawn, name = picture.image, picture.caption or picture.heading
    # one inch is as wide in every picture, so that letters have one size down the page
    width = None if isinstance(drawn, bytes) else round(drawn.get_figwidth() * CSS_PER_INCH)
    return f"<figure>{_image(png_of(picture), name, width)}{caption}</figure>"


@_body.register
def _(small: Thumbnails) -> str:
    each = zip(small.images, small.captions, strict=True)
    items = [f"<li>{_image(png, c)}<span>{html.escape(c)}</span></li>" for png, c in each]
    note = f'<p class="note">{html.escape(small.note)}</p>' if small.note else ""
    return f'<ul class="thumbnails">{"".join(items)}</ul>{note}'


@_body.register
def _(gates: Gates) -> str:
    rows = "".join(_gate(gate) for gate in gates.gates)
    head = "<tr><th>gate</th><th>asked</th><th>found</th><th></th></tr>"
    return f"<div class=wide><table>{head}{rows}</table></div>"


def _gate(gate: Gate) -> str:
    word = "pass" if gate.passed else "fail"
    texts = "".join(f"<td>{html.escape(t)}</td>" for t in (gate.name, gate.asked, gate.found))
    return f'<tr>{texts}<td class="{word}">{word}</td></tr>'


@_body.register
def _(details: Details) -> str:
    rows = [
        f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in details.facts.items()
    ]
    return f'<table class="facts">{"".join(rows)}</table>'


def png_of(picture: Picture) -> bytes:
    """The picture as PNG, drawn or ready."""
    return picture.image if isinstance(picture.image, bytes) else to_png(picture.image)


def to_png(drawing: Drawing) -> bytes:
    """The figure as PNG, the same bytes each time."""
    stream = io.BytesIO()
    drawing.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _image(png: bytes, alternative: str, width: int | None = None) -> str:
    data, wide = base64.b64encode(png).decode(), f' width="{width}"' if width else ""
    return f'<img alt="{html.escape(alternative)}"{wide} src="data:image/png;base64,{data}">'
