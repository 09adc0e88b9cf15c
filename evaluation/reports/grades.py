"""Sections about classes that are grades."""

import numpy as np

from evaluation.metrics.compute import confusion_matrix
from evaluation.predictions import PredictionTable, has_grades, row_unit
from evaluation.reports import html


def misgrading_tables(
    table: PredictionTable, heading: str = "Misgradings by distance"
) -> list[html.Table]:
    """Rows with a label by distance of the predicted from the true grade; [] without grades."""
    if not has_grades(table.class_names):
        return []
    counts, rows = confusion_matrix(table), list[tuple[html.Cell, ...]]()
    for distance in range(len(counts)):
        under, over = (int(np.trace(counts, offset)) for offset in (-distance, distance))
        total, parts = (under + over, (under, over)) if distance else (over, (None, None))
        percent = 100 * total / int(counts.sum())
        rows.append((html.format_count(distance, "grades"), total, percent, *parts))
    columns = ("distance", row_unit(table), "%", "graded too low", "graded too high")
    return [html.Table(columns, rows, heading, digits=1)]
