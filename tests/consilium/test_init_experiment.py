"""Small tables and folders of different shapes, from `init` over `experiment run` to a report."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from consilium.cli.main import main
from consilium.inference.data_config import load_datamodule
from evaluation.results import read_results
from tests.conftest import ROOT, exhaustive_except

NUM_IMAGES = 48
FOLDER, TABLE = "images", "images/labels.csv"


def write_images() -> pd.DataFrame:
    """Different images, three of each patient, and their table; the classes differ in contrast."""
    rng, rows = np.random.default_rng(0), []
    Path(FOLDER).mkdir()
    for k in range(NUM_IMAGES):
        patient, noise = k // 3, cv2.resize(rng.uniform(-1, 1, (8, 8)), (40, 40))
        pixels = 128 + (40 + 60 * (patient % 2)) * noise
        cv2.imwrite(f"{FOLDER}/{k}.png", pixels.astype(np.uint8))
        split = ("train", "train", "val", "test")[patient // 2 % 4]
        rows.append((f"{k}.png", ("ill", "well")[patient % 2], split, f"p{patient}"))
    return pd.DataFrame(rows, columns=["path", "label", "split", "patient"])


def write_table(rows: pd.DataFrame, **options: str) -> None:
    rows.to_csv(TABLE, index=False, **options)


def no_patient(rows: pd.DataFrame) -> None:
    write_table(rows.drop(columns="patient"))


def no_split(rows: pd.DataFrame) -> None:
    write_table(rows.drop(columns="split"))


def path_and_label_alone(rows: pd.DataFrame) -> None:
    write_table(rows[["path", "label"]])


def blanks(rows: pd.DataFrame) -> None:
    """White space in every cell and column name; no label, patient or path in some rows."""
    for row, column in enumerate(("label", "patient", "path")):
        rows.loc[row, column] = ""
    write_table((" " + rows + " ").rename(columns=lambda name: f" {name} "))


def empty_split(rows: pd.DataFrame) -> None:
    write_table(rows.assign(split=" "))


def partly_empty_split(rows: pd.DataFrame) -> None:
    write_table(rows.assign(split=rows["split"].replace("val", "")))


def other_splits(rows: pd.DataFrame) -> None:
    """A column with a usual name of splits and other content."""
    write_table(rows.assign(fold=range(NUM_IMAGES)).drop(columns="split"))


def semicolons(rows: pd.DataFrame) -> None:
    write_table(rows, sep=";")


def numbers_as_labels(rows: pd.DataFrame) -> None:
    """Grades as pandas writes them if one is missing: 9.0, 10.0."""
    grades = rows["label"].map({"ill": 9.0, "well": 10.0})
    grades[5] = np.nan
    write_table(rows.assign(label=grades))


def odd_column_names(rows: pd.DataFrame) -> None:
    write_table(rows.set_axis(["Bild", "Befund: ärztlich", "2", "Person"], axis=1))


def class_folders(rows: pd.DataFrame) -> None:
    for row in rows.itertuples():
        folder = Path(FOLDER, str(row.label))
        folder.mkdir(exist_ok=True)
        Path(FOLDER, str(row.path)).rename(folder / f"{row.patient}_{row.path}")


def patients_in_two_classes(rows: pd.DataFrame) -> None:
    class_folders(rows.assign(patient=[f"p{k // 6}" for k in range(NUM_IMAGES)]))


def copies_with_two_labels(rows: pd.DataFrame) -> None:
    """Two images of patients who are ill and, as other patients, well."""
    copies = rows[:2].assign(path=["x.png", "y.png"], label="well", patient=["q", "r"])
    for first, second in zip(rows["path"], copies["path"], strict=False):
        Path(FOLDER, second).write_bytes(Path(FOLDER, first).read_bytes())
    write_table(pd.concat([rows, copies]).drop(columns="split"))


def no_class_folders(rows: pd.DataFrame) -> None:
    write_table(rows)


class Shape(NamedTuple):
    """How a dataset is written, and the arguments of `init`, by trial and error."""

    write: Callable[[pd.DataFrame], None]
    arguments: list[str]
    error: str = ""  # of `init` with these arguments
    remedy: list[str] | None = None  # arguments that the error suggests


COLUMNS = ["--path", "Bild", "--label", "Befund: ärztlich", "--split", "2", "--patient", "Person"]
SHAPES = {
    shape.write.__name__: shape
    for shape in (
        Shape(no_patient, [TABLE]),
        Shape(no_split, [TABLE]),
        Shape(path_and_label_alone, [TABLE]),
        Shape(blanks, [TABLE]),
        Shape(empty_split, [TABLE]),
        Shape(partly_empty_split, [TABLE], "12 rows have no 'split'", [TABLE, "--split", "none"]),
        Shape(other_splits, [TABLE], "--split none (in a config", [TABLE, "--split", "none"]),
        Shape(semicolons, [TABLE]),
        Shape(numbers_as_labels, [TABLE]),
        Shape(odd_column_names, [TABLE], "--path must name the column", [TABLE, *COLUMNS]),
        Shape(class_folders, [FOLDER]),
        Shape(patients_in_two_classes, [FOLDER, "--patient", "(p[0-9]+)_"]),
        Shape(copies_with_two_labels, [TABLE]),
        Shape(no_class_folders, [FOLDER], f"from a table: consilium init {TABLE}", [TABLE]),
    )
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, which has images and their table."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_init(shape: Shape, capsys: pytest.CaptureFixture[str]) -> None:
    """Writes the dataset and its config files; an error is one line, and its remedy works."""
    shape.write(write_images())
    options = ["--size", "32", "-o", "mine"]
    if shape.error:
        assert main(["init", *shape.arguments, *options]) == 2
        error = capsys.readouterr().err
        assert shape.error in error
        assert error.count("\n") == 1
    code = main(["init", *(shape.remedy or shape.arguments), *options])
    assert code == 0, capsys.readouterr().err


FAST = ["blanks", "odd_column_names", "copies_with_two_labels"]


@pytest.mark.parametrize("name", exhaustive_except(FAST, SHAPES))
def test_init_reads_a_dataset_of_any_shape(name, folder, capsys):
    run_init(SHAPES[name], capsys)
    assert main(["experiment", "run", "mine/mine.yaml", "--dry-run"]) == 0
    data = load_datamodule(["mine/data.yaml"])
    data.num_workers = 0
    for stage in ("fit", "test"):
        data.setup(stage)
    table = data.manifest.table
    num_dropped = {"blanks": 2, "numbers_as_labels": 1, "copies_with_two_labels": 2}.get(name, 0)
    assert len(table) == NUM_IMAGES - num_dropped
    assert data.class_names == (["9.0", "10.0"] if name == "numbers_as_labels" else ["ill", "well"])
    assert table.groupby("patient")["split"].nunique().max() == 1
    data.num_workers = 0
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert batch["image"].shape[1:] == (3, 32, 32)
        assert set(batch["label"].tolist()) <= {0, 1}


def shrink(file: Path) -> None:
    """Replaces the networks of an experiment by two that train in seconds."""
    content = yaml.safe_load(file.read_text())
    member = next(iter(content["members"].values()))
    member |= {"model": str(ROOT / "configs/model/test_resnet.yaml"),
               "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1}}  # fmt: skip
    content["members"] = {"first": member, "second": member}
    content["overrides"] = {
        "data.init_args.num_workers": 0,
        "model.init_args.lr_scheduler": {"name": "none", "warmup_epochs": 0},
    }
    file.write_text(yaml.safe_dump(content))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["class_folders", "copies_with_two_labels", "numbers_as_labels"])
def test_a_dataset_of_any_shape_ends_in_a_report(name, folder, capsys):
    run_init(SHAPES[name], capsys)
    shrink(folder / "mine/mine.yaml")
    output = ["--output", str(folder / "runs/mine")]
    code = main(["experiment", "run", str(folder / "mine/mine.yaml"), *output])
    assert code == 0, capsys.readouterr()
    assert (folder / "runs/mine/report.html").is_file()
    results = read_results(folder / "runs/mine/results.json")
    assert set(results.others) == {"first", "second", "ensemble"}


@pytest.mark.exhaustive
def test_an_installed_wheel_writes_and_runs_an_experiment_from_any_folder(folder):
    """Wheel and bare environment, which finds the dependencies of this one, without network."""
    class_folders(write_images())
    packages = ("callbacks", "consilium", "datamodules", "evaluation", "lightning_modules")
    for name in (*packages, "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input"]
    options = ["--no-index", "--no-deps"]
    run([*pip, "wheel", *options, "--no-build-isolation", "-w", "wheels", "./source"])
    run([sys.executable, "-m", "venv", "--without-pip", "bare"])
    (wheel,) = map(str, Path("wheels").iterdir())
    run([*pip, "--python", "bare/bin/python", "install", *options, wheel])
    shutil.rmtree("source")
    (site_packages,) = Path("bare/lib").glob("*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    consilium = "bare/bin/consilium"
    run([consilium, "init", FOLDER, "--size", "32", "-o", "mine"])
    experiment = yaml.safe_load(Path("mine/mine.yaml").read_text())
    member = experiment["members"]["mobilenetv3_small"]
    for file in (experiment["base"], member["model"]):
        assert (Path("mine") / file).resolve().is_relative_to(site_packages.resolve())
    member["trainer"] |= {"accelerator": "cpu", "max_epochs": 1}
    content = experiment | {"members": {"a": member}, "ensemble": None}
    Path("mine/mine.yaml").write_text(yaml.safe_dump(content))
    run([consilium, "experiment", "run", "mine/mine.yaml"])
    assert read_results(Path("runs/mine/members/a/results.json")).split == "test"
    fit = ["--config", "configs/base.yaml", "--config", "configs/demo/resnet10t.yaml"]
    run([consilium, "fit", *fit, "--config", "configs/recipe/debug.yaml", "--run", "runs/debug"])


def run(command: list[str]) -> None:
    """Runs a command without the packages of this source tree."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or done.stdout
