"""`consilium test RUN --data OTHER --name NAME`: a frozen run on the data of another hospital."""

import argparse
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pandas as pd
from jsonargparse import Namespace

from callbacks.model_card import ModelCard
from consilium.config_files import read_config
from consilium.inference.data_config import COLUMN_ALIASES, read_split
from consilium.inference.starter_configs import source_of
from consilium.training.lightning_cli import ConsiliumCLI, run_training
from consilium.training.preflight import RUN_CONFIG
from consilium.training.run_lock import is_first_process
from datamodules.audit.file_stats import describe_images
from datamodules.sources import Table, has_split_folders, scan_folder
from evaluation.external import SITES, validate_externally
from evaluation.predictions import PredictionTable
from evaluation.reports import external as report
from evaluation.reports import html
from evaluation.results import read_results, read_tables, write_results
from lightning_modules.checkpoints import environment

NO_IMAGES = "the images of the internal test were not found, and are not compared"
FOLDER, RESULTS, PAGE = "external", "external.json", "external.html"
FROZEN = ("class_names", "preprocess", "clinical_use")  # data settings of the run that stay
LOADING = ("batch_size", "num_workers")  # also stay, if the data are no config
DATAMODULE, DATA_CONFIGS = "datamodules.ImageDataModule", (".yaml", ".yml")


class ExternalCLI(ConsiliumCLI):
    """A test that writes no model card: the model is that of the run."""

    def parse(self, args: list[str], files: Sequence[Path] = ()) -> Namespace:
        """The checked settings without ModelCard, which would write weights and README.md."""
        config = super().parse(args, files)
        trainer = config["test"]["trainer"]
        trainer["callbacks"] = [
            item for item in trainer["callbacks"] if resolve_name(item.class_path) is not ModelCard
        ]
        return config


def run_external(args: Sequence[str]) -> int:
    """Tests a run (the first argument) on other data and reports both tests; returns 0."""
    options, further = _parse(args)
    run, folder = options.run, options.run / FOLDER / options.name
    if (folder / RESULTS).exists():
        raise ValueError(f"--name {options.name}: {folder} exists; give another, or remove it")
    [internal] = read_tables([run], "RUN").values()
    results = read_results(run / "results.json")
    config = read_config(run / RUN_CONFIG)
    checkpoint = ["--ckpt_path", str(run / "best.ckpt")] * (run / "best.ckpt").is_file()
    data = data_arguments(options.data, config["data"]["init_args"])
    arguments = ["--config", str(run / RUN_CONFIG), *data, "--run", str(folder), *checkpoint]
    run_training(["test", *arguments, *further], ExternalCLI)
    if not is_first_process():
        return 0
    external = PredictionTable.read(folder / "predictions" / "test.parquet")
    configs = dict(zip(SITES, (run / RUN_CONFIG, folder / RUN_CONFIG), strict=True))
    stats = {site: read_image_stats(file, internal.class_names) for site, file in configs.items()}
    if any(images.empty for images in stats.values()):
        external.meta["notes"].append(NO_IMAGES)
        stats = {}
    tables = {"internal": internal, "external": external}
    if (val := run / "predictions" / "val.parquet").is_file():
        tables["val"] = PredictionTable.read(val)
    validated = validate_externally(options.name, results, tables, stats, options.net_benefit)
    write_results(folder / RESULTS, validated)
    sections = report.external_sections(validated, tables, environment())
    html.write_report(folder / PAGE, f"{run.name} on {options.name}", sections)
    print(report.shift_sentence(validated))
    print(report.net_benefit_sentence(validated))
    print(f"Internal and external side by side: {folder / PAGE}")
    return 0


def _parse(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Values of the arguments of an external validation; and the others, for Lightning's test."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("--net_benefit", type=float)
    try:
        options, further = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if options.data is None:
        raise ValueError("--data: required: a data config, a table or a folder of other images")
    if not re.fullmatch(r"\w[\w.-]*", options.name):
        reason = "a name of letters, digits, '_', '-' and '.' is required, such as hospital_b"
        raise ValueError(f"--name {options.name!r}: {reason}")
    return options, further


def data_arguments(data: Path, of_run: dict[str, Any]) -> list[str]:
    """Command-line arguments of a test on other data; `of_run` are the data settings of the run.

    Of a data config the test split is tested; of a table or a folder all images, unless the folder
    has split folders.
    """
    frozen = {name: of_run[name] for name in FROZEN}
    if data.suffix in DATA_CONFIGS:
        flags = [(f"--data.init_args.{name}", json.dumps(v)) for name, v in frozen.items()]
        return ["--data", str(data), *(text for flag in flags for text in flag)]
    source_class, source = source_of(data, dict.fromkeys(COLUMN_ALIASES))
    if source_class is Table or not has_split_folders(scan_folder(data)[0]):
        source["fractions"] = {"val": 0.0, "test": 1.0}
        source |= {"split": None} if source_class is Table else {}
    init_args = {
        "source": {"class_path": f"datamodules.{source_class.__name__}", "init_args": source},
        **{name: of_run[name] for name in LOADING},
        **frozen,
    }
    return ["--data", json.dumps({"class_path": DATAMODULE, "init_args": init_args})]


def read_image_stats(config: Path, class_names: list[str]) -> pd.DataFrame:
    """One row per test image of a config: patient, image statistics; empty if files are missing."""
    with suppress(OSError, ValueError):
        table = read_split([str(config)], "test", class_names).reset_index(drop=True)
        stats = describe_images(table["path"].tolist())
        return stats.assign(patient=table["patient"]).dropna()
    return pd.DataFrame()
