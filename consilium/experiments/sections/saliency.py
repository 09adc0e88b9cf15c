"""What the heat maps of a study are worth, where it asks for that."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from consilium.experiments.config import ExperimentConfig
from consilium.experiments.plan import plan
from consilium.inference import saliency_evaluation
from consilium.inference.saliency_evaluation import Row
from evaluation import saliency
from evaluation.reports import html


def measured(study: ExperimentConfig, folder: Path) -> list[tuple[Path, list[Row]]]:
    """Folder and rows of each run whose maps have been measured."""
    done = [run.folder for run in plan(study, folder) if run.result == saliency.FILE and run.done()]
    return [(run, saliency_evaluation.read_rows(run)) for run in done]


def sections(study: ExperimentConfig, folder: Path) -> list[html.Section]:
    """One table of all, and examples of each."""
    found = measured(study, folder)
    if not found:
        return []
    pictures = [
        picture
        for run, _ in found
        for picture in saliency_evaluation.pictures(run, f"{run.name}: where it looks")
    ]
    return [saliency_evaluation.section(_named(found)), *pictures]


def table(study: ExperimentConfig, folder: Path) -> pd.DataFrame:
    """One row a run, method and figure."""
    rows = [
        {"member": member, "method": method, "figure": name, **asdict(figure)}
        for member, method, found in _named(measured(study, folder))
        for name, figure in found.items()
    ]
    return pd.DataFrame(rows)


def _named(found: list[tuple[Path, list[Row]]]) -> list[Row]:
    """All rows, an ensemble's members by the name of the ensemble as well."""
    return [
        (member if member == run.name else f"{run.name}: {member}", method, figures)
        for run, rows in found
        for member, method, figures in rows
    ]
