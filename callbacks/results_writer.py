"""The run folder's account of itself: config.yaml, results.json, ensemble.json, report.html."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.table import Table

from callbacks import weights
from callbacks.history import FILE as HISTORY
from callbacks.wandb_logger import WandbLogger, show, tell
from evaluation import one_vs_one
from evaluation.files import write_json, write_text
from evaluation.metrics.compute import Estimate, compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports import run
from evaluation.reports.answers import shared
from evaluation.reports.html import Picture, Section, number, png_of
from evaluation.results import Results, write_results


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config of a fit, without the checkpoint it resumed from."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes config.yaml at the start of a fit or of an ensemble's test; tells loggers."""
        file = Path(trainer.default_root_dir) / self.config_filename
        wanted = stage == "fit" or not file.exists()
        if not trainer.is_global_zero or not (wanted or trainer.loggers):
            return
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        config["ckpt_path"] = None
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
        if wanted:
            write_text(file, yaml.safe_dump(config, sort_keys=False))


class ResultsWriter(L.Callback):
    """After validate or test: figures with intervals to files and terminal, and a report."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the figures of val and draws their report, but not at every epoch of a fit."""
        if trainer.state.fn == "validate":
            self._keep(trainer, pl_module, "val", "results.val.json")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the figures of test and draws their report."""
        self._keep(trainer, pl_module, "test", "results.json")

    def _keep(self, trainer: L.Trainer, module: L.LightningModule, split: str, name: str) -> None:
        said: dict[str, PredictionTable] = getattr(module, "tables", {}).get(split, {})
        if not trainer.is_global_zero or not said:
            return
        folder = Path(trainer.default_root_dir)
        ours = weights.size(module) > 0 and run.is_of(
            folder, weights.size(module), weights.zeros(module)
        )
        results = results_of(folder.name, split, said)
        results = replace(results, measures=run.measures(folder) if ours else {})
        if results.meta.get("members"):
            write_json(folder / "ensemble.json", ensemble(results, folder))
        page = run.sections(folder, results, said, folder / HISTORY, savings=ours)
        run.write_run_report(folder, results, page)
        if ours:
            run.write_changed(folder, said[""])
        write_results(folder / name, results)
        mirror(trainer.loggers, results, said[""], page)
        Console().print(summary(results))


def mirror(
    loggers: Sequence[Logger], results: Results, table: PredictionTable, page: Sequence[Section]
) -> None:
    """Hands figures, predictions and the report's pictures to whatever logger takes them."""
    for section in page if loggers else ():
        if isinstance(section, Picture):
            show(loggers, f"{results.split}/{section.heading or section.caption}", png_of(section))
    tell(loggers, f"{results.split}/predictions", shared(table))
    for board in loggers:
        if isinstance(board, WandbLogger):
            board.log_facts(results.split, facts(results))


def facts(results: Results) -> dict[str, Any]:
    """Figures with their intervals, what the report says of the run, and how many notes it has.

    The notes themselves name images and patients.
    """
    figures = {name: asdict(figure) for name, figure in results.metrics.items()}
    notes = len(results.meta["notes"])
    return {"figures": figures, "about": run.facts(results), "notes": notes}


def results_of(name: str, split: str, said: dict[str, PredictionTable]) -> Results:
    """Figures of the module's own table, and of its members' beside them."""
    own = said[""]
    others = {member: compute_metrics(table) for member, table in said.items() if member}
    metrics = compute_metrics(own) | one_vs_one.figures(own)
    return Results(name, split, own.class_names, metrics, others, meta=own.meta)


def ensemble(results: Results, folder: Path) -> dict[str, Any]:
    """What makes the ensemble one thing: voter, classes and members, by paths from `folder`."""
    members = {
        name: {**member, "path": os.path.relpath(member["path"], folder)}
        for name, member in results.meta["members"].items()
    }
    return {
        "format": 1,
        "class_names": results.class_names,
        "voter": results.meta["voter"],
        "members": members,
    }


def summary(results: Results) -> Table:
    """The main figures as a table for the terminal."""
    first, *rest = run.MAIN
    table = Table(f"{results.split} split", f"{first} (95 % interval)", *rest, box=None)
    for name, metrics in {results.name: results.metrics, **results.others}.items():
        table.add_row(name, number(metrics[first]), *(value(metrics[key]) for key in rest))
    return table


def value(figure: Estimate) -> str:
    """The bare figure, four digits."""
    return "-" if figure.value is None else f"{figure.value:.4f}"
