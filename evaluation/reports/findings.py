"""The report of one run on images with several findings."""

from collections.abc import Mapping

import pandas as pd

from evaluation.findings import MACRO, MICRO, MultiLabelTable
from evaluation.metrics.registry import METRICS
from evaluation.plots import curves
from evaluation.reports import html
from evaluation.reports.run import readable_details, run_sections
from evaluation.results import Results
from evaluation.stats.estimate import Estimate

COLUMNS = ("auroc", "average_precision", "recall", "specificity", "balanced_accuracy")
LABELS = [METRICS[name].label for name in COLUMNS]


def finding_rows(results: Results) -> dict[str, dict[str, Estimate | None]]:
    """The `COLUMNS` of each finding by name, then those of the macro mean and of all labels."""
    rows: dict[str, dict[str, Estimate | None]] = {}
    for name, part in results.findings.items():
        own = {c: part.metrics.get(f"{c}/{name}") or part.metrics.get(c) for c in COLUMNS}
        rows[name] = own
    for mean in (MACRO, MICRO):
        rows[f"{mean} mean"] = {c: results.metrics.get(f"{c}/{mean}") for c in COLUMNS}
    return rows


def findings_frame(results: Results) -> pd.DataFrame:
    """`finding_rows` with the ends of intervals, one row per finding."""
    frame = []
    for name, row in finding_rows(results).items():
        cells: dict[str, object] = {"finding": name}
        for column, e in row.items():
            ends = (e.value, e.low, e.high) if e else (None,) * 3
            cells |= dict(zip((column, f"{column}_low", f"{column}_high"), ends, strict=True))
        frame.append(cells)
    return pd.DataFrame(frame)


def findings_sections(
    results: Results, table: MultiLabelTable, history: pd.DataFrame | None,
    environment: Mapping[str, object] = {},
) -> list[html.Section]:  # fmt: skip
    """The report of a run: macro AUROC, a table of findings, and a section for each finding."""
    auroc = results.metrics[f"auroc/{MACRO}"]
    shown = html.format_estimate(auroc).replace("(", "(95 % interval ", 1)
    sample = html.format_sample_size(auroc)
    lead = f"{results.name} has a mean AUROC of {shown} over {len(results.findings)} findings"
    page: list[html.Section] = [html.Text(f"{lead} on {sample}.", lead=True)]
    page.append(_findings_table(results, table))
    notes = [*map(str, results.meta.get("notes", [])), *_unmeasured(results)]
    page += [html.Text("\n\n".join(notes))] * bool(notes)
    tables = table.findings()
    for name, part in results.findings.items():
        page.append(html.Group(run_sections(part, tables[name]), name))
    if history is not None:
        plot = curves.learning_curves(history)
        page.append(html.Plot(plot, "One point per epoch.", "Learning curves"))
    return [*page, html.Details({**readable_details(results), **environment})]


def _findings_table(results: Results, table: MultiLabelTable) -> html.Table:
    """One row per finding: numbers of known and positive labels, and metrics."""
    tables, rows = table.findings(), list[tuple[html.Cell, ...]]()
    for name, row in finding_rows(results).items():
        labels = tables[name].labels if name in tables else table.labels[table.labels >= 0]
        rows.append((name, len(labels), int((labels == 1).sum()), *row.values()))
    note = (
        "Unknown labels are left out. The macro mean weights the findings that have both kinds of "
        "labels equally, the micro mean is of all known labels together. Their intervals are from "
        "one bootstrap over patients."
    )
    columns = ("", "known labels", "positive", *LABELS)
    return html.Table(columns, rows, note=note)


def _unmeasured(results: Results) -> list[str]:
    """A note on the findings without a known label."""
    names = [name for name in results.class_names if name not in results.findings]
    message = f"no label of these findings is known in {results.split}: {', '.join(names)}"
    return [message] * bool(names)
