"""Sections of a report and their rendering as one HTML file with embedded plots."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path

from matplotlib.figure import Figure

from evaluation.files import write_text
from evaluation.metrics.registry import metric_label, metric_spec
from evaluation.stats.estimate import Estimate

SMALL_PRINT = "Small print: 95 % confidence intervals."
PIXELS_PER_INCH = 104  # the same in each plot, so that text has one size down the page


@dataclass(frozen=True)
class SignedEstimate:
    """A difference, shown with its sign."""

    estimate: Estimate


Cell = str | int | float | Estimate | SignedEstimate | None


@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by blank lines; `lead` marks the report's opening sentence."""

    body: str
    heading: str = ""
    lead: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under column names; text is aligned left, numbers and estimates right.

    `strong` are the indices of bold rows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    heading: str = ""
    note: str = ""
    digits: int = 4
    strong: Sequence[int] = ()


@dataclass(frozen=True)
class Plot:
    """A matplotlib figure, or the bytes of a PNG."""

    image: Figure | bytes
    caption: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Thumbnails:
    """Small images (PNG bytes) with captions."""

    images: Sequence[bytes]
    captions: Sequence[str]
    heading: str = ""
    note: str = ""


@dataclass(frozen=True)
class Gate:
    """A requirement on a metric: what is required, what was measured, whether it is met."""

    name: str
    required: str
    measured: str
    passed: bool


@dataclass(frozen=True)
class Gates:
    """Gates with pass or fail."""

    gates: Sequence[Gate]
    heading: str = "Gates"


@dataclass(frozen=True)
class Details:
    """Versions, hashes and settings at the end of a report."""

    entries: Mapping[str, object] = field(default_factory=dict)
    heading: str = "How this report was made"


Section = Text | Table | Plot | Thumbnails | Gates | Details


@dataclass(frozen=True)
class NotebookSections:
    """Sections that a notebook renders when they are a cell's last expression."""

    sections: tuple[Section, ...]

    def _repr_html_(self) -> str:
        body = "\n".join(section_html(section) for section in self.sections)
        return f'<style>{_template("notebook.css")}</style><div class="consilium">{body}</div>'


def show(*sections: Section | Figure) -> NotebookSections:
    """Sections or matplotlib figures, one below the other, for a notebook."""
    return NotebookSections(tuple(Plot(s) if isinstance(s, Figure) else s for s in sections))


def write_report(path: Path | str, title: str, sections: Sequence[Section]) -> None:
    """Writes one self-contained HTML file."""
    body = "\n".join(section_html(section) for section in sections)
    page = _template("page.html")
    style = _template("style.css")
    write_text(path, page.format(title=html.escape(title), style=style, body=body))


def format_estimate(estimate: Estimate, digits: int = 4, sign: str = "") -> str:
    """`0.9701 (0.9553 to 0.9801)`, or `not measured`; `sign` "+" for differences."""
    if estimate.value is None:
        return "not measured"
    value = f"{estimate.value:{sign}.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({estimate.low:{sign}.{digits}f} to {estimate.high:{sign}.{digits}f})"


def format_sample_size(estimate: Estimate, rows: str = "images") -> str:
    """`1,200 images of 300 patients`; `rows` is what was counted: images, studies or patients."""
    if rows == "patients":
        return f"{estimate.n:,} patients"
    return f"{estimate.n:,} {rows} of {estimate.patients:,} patients"


def lead_sentence(subject: str, metric: str, estimate: Estimate) -> Text:
    """The opening sentence: a metric, its interval and the number of images and patients."""
    label = metric_label(metric)
    label = label[0].lower() + label[1:] if label[1:2].islower() else label
    if estimate.value is None:
        return Text(f"{subject}: {label} was not measured ({estimate.reason}).", lead=True)
    interval = ""
    if estimate.low is not None:
        interval = f" (95 % interval {estimate.low:.4f} to {estimate.high:.4f})"
    sample = format_sample_size(estimate)
    return Text(f"{subject} reaches {label} {estimate.value:.4f}{interval} on {sample}.", lead=True)


def metrics_table(
    metrics: Mapping[str, Estimate], heading: str = "Metrics", rows: str = "images"
) -> Table:
    """One row per metric: value, interval, sample size, method; `rows` is what was counted."""
    cells = [
        (metric_label(name), e.value, e.low, e.high, e.n, e.patients, e.reason or e.method)
        for name, e in metrics.items()
    ]
    columns = ("", "value", "low", "high", rows, "patients", "interval by")
    return Table(columns, cells, heading, "Low and high: 95 % confidence intervals.")


def metric_columns(names: Sequence[str]) -> list[str]:
    """Column names of a table with one row per model and one column per metric."""
    better = ["" if metric_spec(name).higher_is_better else " (lower is better)" for name in names]
    return ["", *(metric_label(n) + note for n, note in zip(names, better, strict=True))]


def models_table(
    models: Mapping[str, Mapping[str, Estimate]],
    names: Sequence[str],
    heading: str,
    note: str = SMALL_PRINT,
    strong: Sequence[int] = (),
) -> Table:
    """One row per model: number of evaluated images, studies or patients, and its metrics."""
    rows: list[tuple[Cell, ...]] = [
        (model, metrics[names[0]].n, *(metrics.get(name) for name in names))
        for model, metrics in models.items()
    ]
    return Table(("", "n", *metric_columns(names)[1:]), rows, heading, note, strong=strong)


def section_html(section: Section) -> str:
    """One section as HTML."""
    heading = "" if section.heading == "" else f"<h2>{html.escape(section.heading)}</h2>"
    return f"<section>{heading}{_body(section)}</section>"


@singledispatch
def _body(section: object) -> str:
    raise TypeError(f"a report has no section of type {type(section).__name__}")


@_body.register
def _(text: Text) -> str:
    attribute = ' class="lead"' if text.lead else ""
    paragraphs = [html.escape(p.strip()) for p in text.body.split("\n\n") if p.strip()]
    return "".join(f"<p{attribute}>{p}</p>" for p in paragraphs)


@_body.register
def _(table: Table) -> str:
    head = "".join(
        _head_cell(name, [row[column] for row in table.rows])
        for column, name in enumerate(table.columns)
    )
    rows = [_row(row, table.digits, index in table.strong) for index, row in enumerate(table.rows)]
    return f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>{_note(table.note)}"


def _head_cell(name: str, cells: Sequence[Cell]) -> str:
    is_numeric = all(not isinstance(cell, str) for cell in cells)
    return f"<th{' class=number' if is_numeric else ''}>{html.escape(name)}</th>"


def _row(row: Sequence[Cell], digits: int, strong: bool) -> str:
    cells = "".join(_cell(cell, digits) for cell in row)
    return f'<tr class="strong">{cells}</tr>' if strong else f"<tr>{cells}</tr>"


def _cell(cell: Cell, digits: int) -> str:
    if cell is None:
        return '<td class="number">&ndash;</td>'
    if isinstance(cell, str):
        return f"<td>{html.escape(cell)}</td>"
    if isinstance(cell, SignedEstimate):
        return f'<td class="number">{_estimate(cell.estimate, digits, "+")}</td>'
    if isinstance(cell, Estimate):
        return f'<td class="number">{_estimate(cell, digits)}</td>'
    number = f"{cell:,}" if isinstance(cell, int) else f"{cell:.{digits}f}"
    return f'<td class="number">{number}</td>'


def _estimate(estimate: Estimate, digits: int, sign: str = "") -> str:
    """The value, and under it the interval in small print."""
    if estimate.value is None:
        return "&ndash;"
    value, _, interval = format_estimate(estimate, digits, sign).partition(" (")
    return f"{value}<small>{interval.rstrip(')')}</small>" if interval else value


def _note(note: str) -> str:
    return f'<p class="note">{html.escape(note)}</p>' if note else ""


@_body.register
def _(plot: Plot) -> str:
    caption = f"<figcaption>{html.escape(plot.caption)}</figcaption>" if plot.caption else ""
    width = None
    if isinstance(plot.image, Figure):
        width = round(plot.image.get_figwidth() * PIXELS_PER_INCH)
    return (
        f"<figure>{_image(plot_png(plot), plot.caption or plot.heading, width)}{caption}</figure>"
    )


@_body.register
def _(thumbnails: Thumbnails) -> str:
    items = [
        f"<li>{_image(png, caption)}<span>{html.escape(caption)}</span></li>"
        for png, caption in zip(thumbnails.images, thumbnails.captions, strict=True)
    ]
    return f'<ul class="thumbnails">{"".join(items)}</ul>{_note(thumbnails.note)}'


@_body.register
def _(gates: Gates) -> str:
    rows = "".join(_gate_row(gate) for gate in gates.gates)
    head = "<tr><th>gate</th><th>required</th><th>measured</th><th></th></tr>"
    return f"<div class=wide><table>{head}{rows}</table></div>"


def _gate_row(gate: Gate) -> str:
    outcome = "pass" if gate.passed else "fail"
    texts = (gate.name, gate.required, gate.measured)
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
    return f'<tr>{cells}<td class="{outcome}">{outcome}</td></tr>'


@_body.register
def _(details: Details) -> str:
    rows = [
        f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in details.entries.items()
    ]
    return f'<table class="details">{"".join(rows)}</table>'


def plot_png(plot: Plot) -> bytes:
    """The plot as PNG."""
    return plot.image if isinstance(plot.image, bytes) else render_png(plot.image)


def render_png(fig: Figure) -> bytes:
    """The figure as PNG, the same bytes each time."""
    stream = io.BytesIO()
    fig.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _image(png: bytes, alternative: str, width: int | None = None) -> str:
    data = base64.b64encode(png).decode()
    attribute = f' width="{width}"' if width else ""
    return f'<img alt="{html.escape(alternative)}"{attribute} src="data:image/png;base64,{data}">'


def _template(name: str) -> str:
    """A file of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
