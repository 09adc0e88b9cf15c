"""The model card of a run: items filled from its files, as Markdown and HTML."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from consilium.inference.card_contents import Artifacts, MissingArtifact
from consilium.inference.card_items import ITEMS, Fill, Item
from evaluation.files import write_text
from evaluation.metrics.registry import summary_metrics
from evaluation.reports import html
from evaluation.reports.subgroups import subgroup_table
from evaluation.results import ExperimentFolder
from evaluation.stats.estimate import Estimate

NAME = "card"  # of the files
STANDARDS = {
    "CLAIM 2024": ("claim", "Tejani et al. 2024, doi:10.1148/ryai.240300"),
    "TRIPOD+AI": ("tripod", "Collins et al. 2024, doi:10.1136/bmj-2023-078378"),
}
OPEN = "Open items"


@dataclass(frozen=True)
class FilledItem:
    """An item, its text ("" if blank), and the files that the text was read from."""

    item: Item
    content: str
    files: tuple[Path, ...]


def fill_items(run: Path) -> list[FilledItem]:
    """All checklist items filled from a run folder; blank if for a person or a file is missing."""
    contents = {fill: _fill_item(fill, run) for fill in {item.fill for item in ITEMS}}
    return [FilledItem(item, *contents[item.fill]) for item in ITEMS]


def _fill_item(fill: Fill | None, run: Path) -> tuple[str, tuple[Path, ...]]:
    """Text of an item and the files it was read from; both empty if a file is missing."""
    files: dict[Path, None] = {}
    with suppress(MissingArtifact):
        if fill and (content := fill(Artifacts(run, files))):
            return content, tuple(files)
    return "", ()


def run_of(folder: Path) -> Path:
    """The run folder itself; of an experiment's folder its first ensemble, else first member."""
    if (folder / "members").is_dir():
        if not (folder / "results.json").is_file():
            hint = "finish it with consilium experiment run, or give the folder of one member"
            raise ValueError(f"{folder}: the experiment has no report yet; {hint}")
        return ExperimentFolder(folder).first_run
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder}: is neither a run folder nor that of an experiment")
    return folder


def write_card(folder: Path, run: Path) -> list[FilledItem]:
    """Writes card.md and card.html about a run to a folder; returns the items."""
    filled = fill_items(run)
    sections = card_sections(filled, run, folder)
    title = f"Model card: {folder.resolve().name}"
    html.write_report(folder / f"{NAME}.html", title, sections)
    parts = [f"# {title}", html.NOTICE, *(_markdown(section) for section in sections)]
    write_text(folder / f"{NAME}.md", "\n\n".join(parts) + "\n")
    return filled


def card_sections(filled: Sequence[FilledItem], run: Path, folder: Path) -> list[html.Section]:
    """Sections of the card: filled items, metrics, open items, and both checklists."""
    page, shown = list[html.Section](), set[str]()
    for section in dict.fromkeys(item.section for item in ITEMS):
        rows: dict[str, str] = {}  # wording by content, for the first of equal ones
        for f in filled:
            if f.item.section == section and f.content not in {"", *shown}:
                rows.setdefault(f.content, f.item.wording)
        shown |= set(rows)
        if rows:
            page.append(
                html.Table(("", ""), [(w, content) for content, w in rows.items()], section)
            )
        if section == "Results":
            page += _metric_tables(run)
    open_items = [
        (_numbers(f.item), f.item.wording, "no file shows it" if f.item.fill else "a person has to")
        for f in filled
        if not f.content
    ]
    page.append(html.Table(("item", "wording", "why"), open_items, OPEN))
    for standard, (field, source) in STANDARDS.items():
        own_items = [f for f in filled if getattr(f.item, field)]
        own_items.sort(key=lambda f: _number_key(getattr(f.item, field)))
        checklist = [
            (getattr(f.item, field), f.item.wording, f.content, _relative_paths(f.files, folder))
            for f in own_items
        ]
        note = f"{source}. The wording is ours; blank items are open."
        columns = ("item", "wording", "content", "shown in")
        page.append(html.Table(columns, checklist, standard, note))
    return page


def _metric_tables(run: Path) -> list[html.Section]:
    """Tables of the test metrics and of subgroups; [] if results.json is missing."""
    tables: list[html.Section] = []
    with suppress(MissingArtifact):
        results = Artifacts(run, {}).results
        tables.append(html.metrics_table({n: results.metrics[n] for n in summary_metrics()}))
        if groups := [group for group in results.subgroups if not group.is_intersection]:
            tables.append(subgroup_table(groups, "Metrics of groups"))
    return tables


def _number_key(number: str) -> tuple[int, str]:
    """`12b` as (12, "b"), to sort the numbers of items."""
    digits = number.rstrip("abcdefg")
    return int(digits), number[len(digits) :]


def _numbers(item: Item) -> str:
    """The numbers of an item in the checklists, such as `CLAIM 22, TRIPOD+AI 22`."""
    numbers = {"CLAIM": item.claim, "TRIPOD+AI": item.tripod}
    return ", ".join(f"{name} {number}" for name, number in numbers.items() if number)


def _relative_paths(files: Sequence[Path], folder: Path) -> str:
    """The paths of files relative to a folder, joined by commas."""
    return ", ".join(os.path.relpath(file, folder) for file in files)


def _markdown(section: html.Section) -> str:
    """A table as Markdown."""
    if not isinstance(section, html.Table):
        raise TypeError(f"a card has no {type(section).__name__}")
    rows = [section.columns, ["---"] * len(section.columns), *section.rows]
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(
        [f"## {section.heading}\n", *lines, *[f"\n{section.note}"] * bool(section.note)]
    )


def _cell(cell: html.Cell) -> str:
    """The content of a table cell in Markdown."""
    text = html.format_estimate(cell) if isinstance(cell, Estimate) else str(cell)
    return text.replace("|", r"\|")
