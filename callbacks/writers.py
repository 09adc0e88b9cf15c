"""What a run writes: config, history, predictions, results and report; lines in the terminal."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import yaml
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.table import Table

from callbacks.wandb_logger import WandbLogger, log_image, log_table
from evaluation import sparsity
from evaluation.ensemble import calibrate_table
from evaluation.files import write_text
from evaluation.findings import MultiLabelTable, mean_estimates, require_one_label
from evaluation.metrics.calibration import Calibration
from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.operating_points import OperatingPoints, evaluate_thresholds
from evaluation.metrics.registry import metric_label, summary_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports import findings as findings_report
from evaluation.reports import run
from evaluation.reports.html import Plot, Section, format_estimate, format_number
from evaluation.reports.run import anonymized_predictions
from evaluation.reports.subgroups import HEADING
from evaluation.results import CALIBRATED_MEMBER, Results, write_results
from evaluation.subgroups import compute_subgroups
from lightning_modules.base import BaseModule, Tables
from lightning_modules.checkpoints import environment
from lightning_modules.ensemble import write_ensemble_file
from lightning_modules.model_info import count_parameters, zero_fraction

HISTORY_FILE = "history.csv"
SHOWN_METRICS = ("train/loss", "val/loss", "val/accuracy")


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config to config.yaml and to loggers, with `ckpt_path: null`."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes config.yaml at the start of a fit, of another stage only if there is none."""
        file = Path(trainer.default_root_dir) / self.config_filename
        writes_file = stage == "fit" or not file.exists()
        if not trainer.is_global_zero or not (writes_file or trainer.loggers):
            return
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        config["ckpt_path"] = None
        for name in ("test", "verbose", "sets"):  # arguments of some commands alone
            config.pop(name, None)
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
        if writes_file:
            write_text(file, yaml.safe_dump(config, sort_keys=False))


class HistoryWriter(L.Callback):
    """Writes epoch, step, learning rate, seconds and all logged metrics to history.csv."""

    def __init__(self) -> None:
        self.rows: list[dict[Any, float]] = []
        self.epoch_start, self.is_validated = 0.0, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the rows of epochs before a resume; the row of an interrupted epoch is dropped."""
        file = Path(trainer.default_root_dir) / HISTORY_FILE
        self.rows = []
        if file.is_file() and trainer.current_epoch > 0:
            history = pd.read_csv(file)
            self.rows = history[history["epoch"] < trainer.current_epoch].to_dict("records")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the epoch's clock."""
        self.epoch_start, self.is_validated = time.monotonic(), False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Records that this epoch was validated; Lightning keeps the metrics of earlier epochs."""
        self.is_validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the row of the epoch, writes history.csv, and logs epoch, rate and seconds."""
        if not trainer.is_global_zero:
            return
        rates = [group["lr"] for optim in trainer.optimizers for group in optim.param_groups]
        epoch, step = trainer.current_epoch, trainer.global_step
        timing = {"lr": max(rates), "seconds": round(time.monotonic() - self.epoch_start, 3)}
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not self.is_validated:
            metrics = {k: value for k, value in metrics.items() if not k.startswith("val/")}
        self.rows.append({"epoch": epoch, "step": step, **timing, **metrics})
        for logger in trainer.loggers:  # Lightning logs the metrics itself
            logger.log_metrics({"epoch": epoch, **timing}, step=step)
        history = pd.DataFrame(self.rows).to_csv(index=False)
        write_text(Path(trainer.default_root_dir) / HISTORY_FILE, history)


class PredictionWriter(L.Callback):
    """Writes predictions/SPLIT.parquet, and predictions/SPLIT/MEMBER.parquet of an ensemble."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes predictions/val.parquet, except during a fit."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes predictions/test.parquet."""
        self._write(trainer, pl_module, "test")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the predicted split and prints the file's path."""
        datamodule = pl_module.datamodule if isinstance(pl_module, BaseModule) else None
        split = datamodule.predict_split if datamodule else "predict"
        folder = self._write(trainer, pl_module, split)
        if trainer.is_global_zero:
            print(f"predictions: {folder / split}.parquet")

    def _write(self, trainer: L.Trainer, module: L.LightningModule, split: str) -> Path:
        """Writes the tables of the module and its members; returns the folder `predictions`."""
        folder = Path(trainer.default_root_dir) / "predictions"
        for name, table in _tables(trainer, module, split).items():
            table.write(folder / (f"{split}/{name}.parquet" if name else f"{split}.parquet"))
        return folder


class ResultsWriter(L.Callback):
    """Writes metrics with intervals after validate and test, prints them and writes a report.

    Set `has_val_report` to False before a validation that a test of the same weights follows.
    """

    def __init__(self) -> None:
        self.has_val_report = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes results.val.json and the report of val, except during a fit."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val", "results.val.json")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes results.json and the report of test."""
        self._write(trainer, pl_module, "test", "results.json")

    def _write(self, trainer: L.Trainer, module: L.LightningModule, split: str, name: str) -> None:
        """Computes the results of a split; writes them to the file `name`, logs and prints them."""
        all_tables, folder = _tables(trainer, module, split), Path(trainer.default_root_dir)
        if not all_tables:
            return
        if isinstance(findings := all_tables[""], MultiLabelTable):
            self._write_findings(trainer, findings, split, folder / name)
            return
        tables = require_one_label(all_tables)
        table, size = tables[""], count_parameters(module)
        metrics = {member: compute_metrics(predictions) for member, predictions in tables.items()}
        for member, predictions in tables.items():
            calibration = Calibration(**predictions.meta.get("calibration", {}))
            if not calibration.is_neutral:
                calibrated = calibrate_table(predictions, calibration)
                metrics[f"{CALIBRATED_MEMBER}{member}"] = compute_metrics(calibrated)
        is_saving = size > 0 and run.describes_weights(folder, size, zero_fraction(module))
        measures = run.measured_ratios(folder) if is_saving else {}
        own = (folder.name, split, table.class_names, metrics.pop(""))
        val_file = folder / "predictions" / "val.parquet"
        has_val = split == "test" and val_file.is_file()
        val = PredictionTable.read(val_file) if has_val else None
        points = OperatingPoints() if val is None else evaluate_thresholds(val, table)
        groups = compute_subgroups(table)
        results = Results(*own, metrics, measures, points, groups, meta=table.meta)
        if members := table.meta.get("members"):
            write_ensemble_file(folder, table.class_names, members, table.meta["voter"])
        further = sparsity.savings_sections(folder, table) if is_saving else []
        history = folder / HISTORY_FILE
        epochs = pd.read_csv(history) if history.is_file() else None
        has_report, page = split == "test" or self.has_val_report, list[Section]()
        if has_report or trainer.loggers:
            page = run.run_sections(results, table, epochs, further, environment(), val)
        report = run.write_run_report(folder, results, page) if has_report else None
        if is_saving:
            run.write_changed_decisions(folder, table)
        write_results(folder / name, results)
        log_results(trainer.loggers, results, table, page)
        Console().print(summary_table(results))
        if report:
            print(f"Report: {report}")

    def _write_findings(
        self, trainer: L.Trainer, table: MultiLabelTable, split: str, file: Path
    ) -> None:
        """Writes the results of each finding, as of two classes, and the means over findings."""
        folder, val_tables = file.parent, dict[str, PredictionTable]()
        val_file = folder / "predictions" / "val.parquet"
        if split == "test" and val_file.is_file():
            val_tables = MultiLabelTable.read(val_file).findings()
        parts = {}
        for name, of_finding in table.findings().items():
            points, val = OperatingPoints(), val_tables.get(name)
            if val is not None:
                points = evaluate_thresholds(val, of_finding)
            parts[name] = Results(
                f"{folder.name}, {name}", split, of_finding.class_names,
                compute_metrics(of_finding), operating_points=points,
                subgroups=compute_subgroups(of_finding), meta=of_finding.meta,
            )  # fmt: skip
        means = mean_estimates(table)
        results = Results(
            folder.name, split, table.class_names, means, findings=parts, meta=table.meta
        )
        history = folder / HISTORY_FILE
        epochs = pd.read_csv(history) if history.is_file() else None
        page = findings_report.findings_sections(results, table, epochs, environment())
        suffix = "" if split == "test" else f".{split}"
        rows = findings_report.findings_frame(results)
        write_text(folder / f"findings{suffix}.csv", rows.to_csv(index=False))
        write_results(file, results)
        log_results(trainer.loggers, results, None, page)
        Console().print(findings_table(results))
        if split == "test" or self.has_val_report:
            print(f"Report: {run.write_run_report(folder, results, page)}")


def log_results(
    loggers: Sequence[Logger],
    results: Results,
    table: PredictionTable | None,
    page: Sequence[Section],
) -> None:
    """Sends metrics, predictions and the report's plots to the loggers that support them.

    Without a table there are no predictions, as with several findings per image.
    """
    split = results.split
    for section in page if loggers else ():
        is_of_groups = section.heading == HEADING  # attributes are not sent
        if isinstance(section, Plot) and not is_of_groups:
            log_image(loggers, f"{split}/{section.heading or section.caption}", section.png())
    if table is not None:
        log_table(loggers, f"{split}/predictions", anonymized_predictions(table))
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            metrics = {name: asdict(estimate) for name, estimate in results.metrics.items()}
            summary = {"metrics": metrics, "about": run.run_details(results)}
            # the number of notes only: a note may name patients
            logger.log_summary(split, summary | {"notes": len(results.meta["notes"])})


def summary_table(results: Results) -> Table:
    """Table for the terminal: the summary metrics of the run and of each member."""
    first, *others = summary_metrics()
    titles = (f"{metric_label(first)} (95 % interval)", *map(metric_label, others))
    table = Table(f"{results.split} split", *titles, box=None)
    for name, metrics in run.labeled_models(results).items():
        estimates = [metrics[other] for other in others]
        plain = ["-" if e.value is None else format_number(e.value, e.decimals) for e in estimates]
        table.add_row(name, format_estimate(metrics[first]), *plain)
    return table


def findings_table(results: Results) -> Table:
    """Table for the terminal: one row per finding, then the macro and the micro mean."""
    first, *others = findings_report.COLUMNS
    label, *labels = findings_report.LABELS
    titles = (f"{label} (95 % interval)", *labels)
    table = Table(f"{results.split} split", *titles, box=None)
    for name, row in findings_report.finding_rows(results).items():
        plain = ["-" if e is None or e.value is None else format_number(e.value, e.decimals)
                 for e in (row[other] for other in others)]  # fmt: skip
        shown = row[first]
        table.add_row(name, "-" if shown is None else format_estimate(shown), *plain)
    return table


class ProgressBar(RichProgressBar):
    """A progress bar with losses and accuracy; outside of a terminal, one line per epoch."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        if not Console().is_terminal:
            self.disable()

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """The metrics that the bar shows, by name: losses and accuracy."""
        metrics = super().get_metrics(*args)
        return {name: value for name, value in metrics.items() if name in SHOWN_METRICS}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints one line with the metrics of the epoch if there is no bar."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.is_disabled and trainer.is_global_zero:
            metrics = trainer.callback_metrics
            values = [f"{name} {metrics[name]:.4f}" for name in SHOWN_METRICS if name in metrics]
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", *values, flush=True)


def _tables(trainer: L.Trainer, module: object, split: str) -> Tables:
    """The table of a split under "", and of each member; empty except on the first process."""
    is_writer = trainer.is_global_zero
    return module.tables.get(split, {}) if is_writer and isinstance(module, BaseModule) else {}
