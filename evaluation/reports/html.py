"""Sections of a report and their rendering as one HTML file with embedded plots."""

import base64
import html
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from evaluation.files import write_text
from evaluation.metrics.registry import metric_label, metric_spec, named_metrics, summary_metrics
from evaluation.stats.estimate import Estimate

NOTICE = "Research use only. Not a medical device."
SMALL_PRINT = "Small print: 95 % confidence intervals."
PIXELS_PER_INCH = 104  # the same in each plot, so that text has one size down the page
GLOSSARY = "Metrics in plain words"
PLAIN_NAMES = {  # in place of names in results.json
    "manifest_digest": "hash of the table of samples", "module": "class of the model",
    "tta": "test-time augmentation", "weights": "hash of the weights",
}  # fmt: skip


class Section(ABC):
    """One part of a report, under a heading unless that is empty."""

    heading: str

    @abstractmethod
    def _content_html(self) -> str:
        """The part below the heading, as HTML."""


@dataclass(frozen=True)
class SignedEstimate:
    """A difference, shown with its sign."""

    estimate: Estimate


Cell = str | int | float | Estimate | SignedEstimate | None


@dataclass(frozen=True)
class Text(Section):
    """Paragraphs, separated by blank lines; `lead` marks the report's opening sentence."""

    body: str
    heading: str = ""
    lead: bool = False

    def _content_html(self) -> str:
        attribute = ' class="lead"' if self.lead else ""
        paragraphs = [html.escape(p.strip()) for p in self.body.split("\n\n") if p.strip()]
        return "".join(f"<p{attribute}>{p}</p>" for p in paragraphs)


@dataclass(frozen=True)
class Table(Section):
    """Rows under column names; text is aligned left, numbers and estimates right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    heading: str = ""
    note: str = ""
    digits: int = 3  # decimals of plain numbers; those of estimates depend on their n
    strong: Sequence[int] = ()  # indices of bold rows

    def _content_html(self) -> str:
        head = ""
        for column, name in enumerate(self.columns):
            is_number = all(not isinstance(row[column], str) for row in self.rows)
            head += f"<th{' class=number' if is_number else ''}>{html.escape(name)}</th>"
        rows = [f"<tr>{head}</tr>"]
        for index, row in enumerate(self.rows):
            attribute = ' class="strong"' if index in self.strong else ""
            cells = "".join(_cell_html(cell, self.digits) for cell in row)
            rows.append(f"<tr{attribute}>{cells}</tr>")
        shown = [cell for row in self.rows for cell in row]
        estimates = [cell.estimate if isinstance(cell, SignedEstimate) else cell for cell in shown]
        reasons = {e.reason: None for e in estimates if isinstance(e, Estimate) and e.reason}
        unsaid = [reason for reason in reasons if reason not in shown]
        missing = f"Without interval or value: {'; '.join(unsaid)}." if unsaid else ""
        return _table_html(rows) + _note_html(self.note) + _note_html(missing)


@dataclass(frozen=True)
class Group(Section):
    """Sections that fold out together under one heading."""

    sections: Sequence[Section]
    heading: str = ""

    def _content_html(self) -> str:
        parts = []
        for section in self.sections:
            heading = f"<h3>{html.escape(section.heading)}</h3>" if section.heading else ""
            parts.append(heading + section._content_html())
        return "".join(parts)


@dataclass(frozen=True)
class Plot(Section):
    """A matplotlib figure, or the bytes of a PNG."""

    image: Figure | bytes
    caption: str = ""
    heading: str = ""

    def _content_html(self) -> str:
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        width = None
        if isinstance(self.image, Figure):
            width = round(self.image.get_figwidth() * PIXELS_PER_INCH)
        image = _image_html(self.png(), self.caption or self.heading, width)
        return f"<figure><div class=wide>{image}</div>{caption}</figure>"

    def png(self) -> bytes:
        """The image as PNG."""
        return self.image if isinstance(self.image, bytes) else render_png(self.image)


@dataclass(frozen=True)
class Thumbnails(Section):
    """Small images (PNG bytes) with captions."""

    images: Sequence[bytes]
    captions: Sequence[str]
    heading: str = ""
    note: str = ""

    def _content_html(self) -> str:
        items = [
            f"<li>{_image_html(png, caption)}<span>{html.escape(caption)}</span></li>"
            for png, caption in zip(self.images, self.captions, strict=True)
        ]
        return f'<ul class="thumbnails">{"".join(items)}</ul>{_note_html(self.note)}'


@dataclass(frozen=True)
class Overview(Section):
    """Short questions with their answers, for the first screen of a report."""

    answers: Mapping[str, Sequence[str]]  # by question; one line each
    heading: str = ""

    def _content_html(self) -> str:
        items = [
            f"<dt>{html.escape(question)}</dt><dd>{'<br>'.join(map(html.escape, lines))}</dd>"
            for question, lines in self.answers.items()
            if lines
        ]
        return f'<dl class="overview">{"".join(items)}</dl>'


@dataclass(frozen=True)
class Gate:
    """A requirement on a metric: what is required, what was measured, whether it is met."""

    name: str
    required: str
    measured: str
    passed: bool


@dataclass(frozen=True)
class Gates(Section):
    """Gates with pass or fail."""

    gates: Sequence[Gate]
    heading: str = "Gates"

    def _content_html(self) -> str:
        rows = ["<tr><th>gate</th><th>required</th><th>measured</th><th></th></tr>"]
        for gate in self.gates:
            outcome = "pass" if gate.passed else "fail"
            cells = "".join(_cell_html(text) for text in (gate.name, gate.required, gate.measured))
            rows.append(f'<tr>{cells}<td class="{outcome}">{outcome}</td></tr>')
        return _table_html(rows)


@dataclass(frozen=True)
class Details(Section):
    """Versions, hashes and settings at the end of a report."""

    entries: Mapping[str, object]
    heading: str = "How this report was made"

    def _content_html(self) -> str:
        pairs = [(plain_name(k), plain_value(v)) for k, v in self.entries.items()]
        rows = [f"<tr>{_cell_html(name)}{_cell_html(value)}</tr>" for name, value in pairs]
        return _table_html(rows, ' class="details"')


@dataclass(frozen=True)
class NotebookSections:
    """Sections that a notebook renders when they are a cell's last expression."""

    sections: tuple[Section, ...]

    def _repr_html_(self) -> str:
        body = "\n".join(map(section_html, self.sections))
        return f'<style>{_template("notebook.css")}</style><div class="consilium">{body}</div>'


def show(*sections: Section | Figure) -> NotebookSections:
    """Sections or matplotlib figures, one below the other, for a notebook."""
    return NotebookSections(tuple(Plot(s) if isinstance(s, Figure) else s for s in sections))


def write_report(path: Path | str, title: str, sections: Sequence[Section]) -> None:
    """Writes one self-contained HTML file.

    Sections before the first heading are the first screen. The others fold out of a list of their
    headings, unless there is no first screen. One without a heading belongs to the one above it.
    """
    drawn = [(section.heading, section._content_html()) for section in sections]
    is_text = [not isinstance(section, Details) for section in sections]
    if rows := _glossary_rows(" ".join(chain.from_iterable(compress(drawn, is_text)))):
        table = Table(("", ""), rows, GLOSSARY)
        drawn.append((table.heading, table._content_html()))
    start = next((at for at, (heading, _) in enumerate(drawn) if heading), len(drawn))
    parts, chapters = [content for _, content in drawn[:start]], list[list[str]]()
    for heading, content in drawn[start:]:
        chapters += [[html.escape(heading)]] if heading else []
        chapters[-1].append(content)
    parts.append("<div class=contents>" if start else "<div>")
    for at, (heading, *contents) in enumerate(chapters):
        head, body = f"<h2>{heading}</h2>", "".join(contents)
        # a link to an element inside of details opens them
        section = f'<section id="section{at}">{body}</section>'
        details = f"<details><summary>{head}</summary>{section}</details>"
        parts.append(details if start else head + section)
    parts.append("</div>")
    page = _template("page.html").format(
        title=html.escape(title), style=_template("style.css"), notice=NOTICE, body="\n".join(parts)
    )
    write_text(path, page)


def _glossary_rows(page: str) -> list[tuple[str, str]]:
    """(names, meaning) of each metric that a page of HTML names."""
    specs = named_metrics(html.unescape(re.sub("<[^>]*>", " ", page)))
    return [(", ".join(filter(None, (s.label, s.also))), s.meaning) for s in specs]


def section_html(section: Section) -> str:
    """One section as HTML."""
    heading = f"<h2>{html.escape(section.heading)}</h2>" if section.heading else ""
    return f"<section>{heading}{section._content_html()}</section>"


def format_number(value: float, decimals: int, sign: str = "") -> str:
    """A number with decimals, `sign` "+" for a sign; without a sign if it is rounded to zero."""
    text = f"{value:{sign}.{decimals}f}"
    return text if float(text) else text.lstrip("+-")


def format_estimate(estimate: Estimate, decimals: int | None = None, sign: str = "") -> str:
    """`0.970 (0.955 to 0.980)`, or why there is no interval or value; `sign` "+" for differences.

    Decimals depend on the number of images unless they are given.
    """
    if estimate.value is None:
        return "not measured"
    decimals = estimate.decimals if decimals is None else decimals
    value = format_number(estimate.value, decimals, sign)
    if estimate.low is None or estimate.high is None:
        return f"{value} (no interval: {estimate.reason})" if estimate.reason else value
    low, high = (format_number(end, decimals, sign) for end in (estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def format_percent(estimate: Estimate) -> str:
    """`97.0 % (95.5 to 98.0 %)`, or why there is no value."""
    if estimate.value is None:
        return f"not measured: {estimate.reason}" if estimate.reason else "not measured"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1%}".replace("%", " %")
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:.1f} % ({low:.1f} to {high:.1f} %)"


def format_count(n: int, plural: str) -> str:
    """`1,200 images`, `1 image`, `1 study`."""
    singular = f"{plural[:-3]}y" if plural.endswith("ies") else plural.removesuffix("s")
    return f"{n:,} {singular if n == 1 else plural}"


def format_sample_size(estimate: Estimate, rows: str = "images") -> str:
    """`1,200 images of 300 patients`; `rows` is what was counted: images, studies or patients."""
    if rows == "patients":
        return format_count(estimate.n, rows)
    return f"{format_count(estimate.n, rows)} of {format_count(estimate.patients, 'patients')}"


def plain_name(name: str) -> str:
    """A key of results.json in words."""
    return PLAIN_NAMES.get(name, name.replace("_", " "))


def plain_value(value: object) -> str:
    """A value of results.json in words: lists and dicts without brackets, `none` if empty."""
    if isinstance(value, Mapping):
        return "; ".join(f"{plain_name(str(k))}: {plain_value(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        value = ", ".join(map(plain_value, value))
    return "none" if value in (None, "") else str(value)


def accuracy_sentence(subject: str, accuracy: Estimate) -> Text:
    """The opening sentence: accuracy, its interval and the number of images and patients."""
    if accuracy.value is None:
        return Text(f"{subject}: accuracy was not measured ({accuracy.reason}).", lead=True)
    shown = format_estimate(accuracy)
    shown = shown if accuracy.low is None else shown.replace("(", "(95 % interval ")
    sample = format_sample_size(accuracy)
    return Text(f"{subject} reaches accuracy {shown} on {sample}.", lead=True)


def metrics_table(
    metrics: Mapping[str, Estimate], heading: str = "Metrics", rows: str = "images"
) -> Table:
    """One row per metric: value, interval, sample size, method; `rows` is what was counted."""
    cells = [
        (metric_label(k), e, e.n, e.patients, e.reason or e.method) for k, e in metrics.items()
    ]
    return Table(("", "value", rows, "patients", "interval by"), cells, heading, SMALL_PRINT)


def metric_columns(names: Sequence[str]) -> list[str]:
    """Column names of a table with one row per model and one column per metric."""
    better = ["" if metric_spec(name).higher_is_better else " (lower is better)" for name in names]
    return ["", *(metric_label(n) + note for n, note in zip(names, better, strict=True))]


def models_table(
    models: Mapping[str, Mapping[str, Estimate | None]], heading: str, note: str = SMALL_PRINT, *,
    names: Sequence[str] = (), count: str = "", corner: str = "", strong: Sequence[int] = (),
) -> Table:  # fmt: skip
    """Summary metrics, or `names`, of each model; `corner` and, for n, `count` name columns."""
    names = names or summary_metrics()
    columns = [corner, *([count] if count else []), *metric_columns(names)[1:]]
    rows: list[tuple[Cell, ...]] = []
    for model, metrics in models.items():
        first = metrics.get(names[0])
        size = [first.n if first else None] if count else []
        rows.append((model, *size, *(metrics.get(name) for name in names)))
    return Table(columns, rows, heading, note, strong=strong)


def _table_html(rows: Sequence[str], attribute: str = "") -> str:
    return f"<div class=wide><table{attribute}>{''.join(rows)}</table></div>"


def _cell_html(cell: Cell, digits: int = 3) -> str:
    if isinstance(cell, str):
        return f"<td>{html.escape(cell)}</td>"
    if isinstance(cell, SignedEstimate):
        text = _estimate_html(cell.estimate, "+")
    elif isinstance(cell, Estimate):
        text = _estimate_html(cell)
    elif isinstance(cell, int):
        text = f"{cell:,}"
    else:
        text = "&ndash;" if cell is None else format_number(cell, digits)
    return f'<td class="number">{text}</td>'


def _estimate_html(estimate: Estimate, sign: str = "") -> str:
    """The value, and under it the interval in small print; a dash without a value."""
    if estimate.value is None:
        return "&ndash;"
    value, _, interval = format_estimate(estimate, sign=sign).partition(" (")
    interval = "no interval" if interval.startswith("no interval") else interval.rstrip(")")
    return f"{value}<small>{interval}</small>" if interval else value


def _note_html(note: str) -> str:
    return f'<p class="note">{html.escape(note)}</p>' if note else ""


def render_png(fig: Figure) -> bytes:
    """The figure as PNG, the same bytes each time."""
    canvas: Any = FigureCanvasAgg(fig)
    stream = io.BytesIO()
    canvas.draw()  # once: savefig draws a first time for the layout
    Image.fromarray(np.asarray(canvas.buffer_rgba())).save(stream, format="png")
    return stream.getvalue()


def _image_html(png: bytes, alternative: str, width: int | None = None) -> str:
    data = base64.b64encode(png).decode()
    attribute = f' width="{width}"' if width else ""
    return f'<img alt="{html.escape(alternative)}"{attribute} src="data:image/png;base64,{data}">'


def _template(name: str) -> str:
    """The text of a file next to this module."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
