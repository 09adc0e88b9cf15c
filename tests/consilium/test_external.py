"""`consilium test RUN --data OTHER --name NAME` on a generated hospital B."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from consilium.cli.main import main
from datamodules.phantoms.generate import PhantomSpec, write_dataset
from datamodules.sources import Phantoms
from evaluation.metrics.confusion import grade_estimates
from evaluation.metrics.registry import METRICS
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from tests.conftest import ROOT, TINY_CONFIG

CLASSES = ["none", "simple", "comminuted"]
# of pairs, of grades and of attributes, none of which these predictions have
UNMEASURED = {"pairs", "pairs_gap", "pair", "tpr_gap", "fpr_gap"}
UNMEASURED |= {name for name, spec in METRICS.items() if spec.compute is grade_estimates}
GAIN = 40  # gray levels that hospital B's images are brighter by


@pytest.fixture(scope="module")
def hospital_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of other patients: brighter images, and a third of the fractures left out."""
    root = tmp_path_factory.mktemp("hospital")
    folder = write_dataset(PhantomSpec("fracture", 60, 2, 64, 7), root / "generated")
    rows = pd.read_csv(folder / "manifest.csv")
    rows = rows[(rows["label"] == "none") | (np.arange(len(rows)) % 3 == 0)]
    for path in rows["path"]:
        file = root / "b" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), cv2.add(cv2.imread(str(folder / path), 0), GAIN))
    rows[["path", "label", "patient"]].to_csv(root / "b" / "labels.csv", index=False)
    return root / "b" / "labels.csv"


@pytest.fixture(scope="module")
def run(tiny, resnet, tmp_path_factory) -> Path:
    return shutil.copytree(resnet, tmp_path_factory.mktemp("external") / "resnet")


def test_a_run_and_another_hospital_stand_side_by_side(run, hospital_b, capsys):
    args = ["test", str(run), "--data", str(hospital_b), "--name", "hospital_b"]
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert main([*args, "--net_benefit", "0.125"]) == 0
    output = capsys.readouterr().out
    folder, rows = run / "external" / "hospital_b", pd.read_csv(hospital_b)
    assert f"{folder / 'external.html'}" in output
    assert "Shifts found. Prevalence: none +0." in output
    assert "mean brightness +" in output
    assert "; 0.125: " in output
    assert all(file.read_bytes() == content for file, content in before.items())
    assert not (folder / "README.md").exists()
    assert not (folder / "model.safetensors").exists()

    results, table = read_results(folder / "external.json"), PredictionTable.read(
        folder / "predictions" / "test.parquet")  # fmt: skip
    assert len(table) == len(rows)
    assert results.others["internal"] == read_results(run / "results.json").metrics
    assert results.metrics == read_results(folder / "results.json").metrics
    bases = {name.partition("/")[0] for name in results.others["external minus internal"]}
    assert set(METRICS) - UNMEASURED <= bases
    for name, share in rows["label"].value_counts(normalize=True).items():
        assert results.others["prevalence/external"][name].value == pytest.approx(share)
    means = [results.others[f"images/{site}"]["mean brightness"].value
             for site in ("internal", "external")]  # fmt: skip
    assert means[1] - means[0] == pytest.approx(GAIN, abs=8)
    for k in (0, 20):
        assert results.others[f"recalibrated/{k}"]["nll"].value is not None
    assert "needs 120 patients" in results.others["recalibrated/100"]["nll"].reason
    nll = [results.others[f"recalibrated/{k}"]["nll"].value for k in (0, 20)]
    assert nll[1] < nll[0]

    assert main(args) == 2
    assert f"--name hospital_b: {folder} exists" in capsys.readouterr().err


def test_the_pipeline_of_an_ensemble_stays_whatever_the_data_config_says(
    tiny, resnet, larger, hospital_b, tmp_path
):
    ensemble = tmp_path / "ensemble"
    model = {"class_path": "lightning_modules.EnsembleModule",
             "init_args": {"members": [str(resnet), str(larger)]}}  # fmt: skip
    use = {"class_groups": {"fracture": CLASSES[1:]}, "threshold": 0.3}
    changes = {"model": model, "data.init_args.clinical_use": use}
    assert main(["test", *tiny.configs("both", **changes), "--run", str(ensemble)]) == 0
    source = {"class_path": "datamodules.Table", "init_args": {
        "files": str(hospital_b), "patient": "patient", "split": None,
        "fractions": {"val": 0.0, "test": 1.0}}}  # fmt: skip
    settings = {"source": source, "class_names": CLASSES[::-1], "preprocess": {"size": 40},
                "clinical_use": {"threshold": 0.9}}  # fmt: skip
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(
        {"class_path": "datamodules.ImageDataModule", "init_args": settings}))  # fmt: skip
    assert main(["test", str(ensemble), "--data", str(other), "--name", "b"]) == 0
    folder = ensemble / "external" / "b"
    config = yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]
    assert config["class_names"] == CLASSES
    assert config["preprocess"]["size"] == 32
    results = read_results(folder / "external.json")
    assert results.meta["clinical_use"] == use
    assert "net_benefit/fracture" in results.others["recalibrated/20"]
    assert (folder / "predictions/test/resnet.parquet").is_file()


def test_images_of_the_training_are_refused(tiny, run, capsys):
    source = yaml.safe_load(TINY_CONFIG.format(root=tiny.root))["data"]["init_args"]["source"]
    phantoms = Phantoms(**source["init_args"])
    table = Path(phantoms.manifest(CLASSES).table["path"][0]).parents[1] / "manifest.csv"
    assert main(["test", str(run), "--data", str(table), "--name", "own"]) == 2
    assert "are training samples of this checkpoint" in capsys.readouterr().err
    assert not (run / "external" / "own" / "external.json").exists()


def test_internal_images_that_are_gone_are_noted(run, hospital_b, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved", ignore=shutil.ignore_patterns("external"))
    config = yaml.safe_load((moved / "config.yaml").read_text())
    config["data"]["init_args"]["source"] = {
        "class_path": "datamodules.Table", "init_args": {"files": "gone.csv"}}  # fmt: skip
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "folders"  # class folders without splits: all images are tested
    for path, label in pd.read_csv(hospital_b)[["path", "label"]].to_numpy():
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(hospital_b.parent / path, folder / label / Path(path).name)
    assert main(["test", str(moved), "--data", str(folder), "--name", "b"]) == 0
    results = read_results(moved / "external" / "b" / "external.json")
    assert results.metrics["accuracy"].n == len(pd.read_csv(hospital_b))
    assert "images/external" not in results.others
    note = "the images of the internal test were not found, and are not compared"
    assert note in results.meta["notes"]
    assert note in (moved / "external" / "b" / "external.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "b"], "--data: required: a data config, a table or a folder"),
        (["--data", "x.csv"], "--name '': a name of letters, digits"),
        (["--data", "x.csv", "--name", "../b"], "--name '../b': a name of letters"),
        (["--data", "x.csv", "--name", "b", "--net_benefit", "high"], "--net_benefit: invalid"),
        (["--data", "x.csv", "--name", "b"], "no such file or folder"),
    ],
)
def test_wrong_arguments_are_one_line(run, capsys, arguments, message):
    assert main(["test", str(run), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_run_without_a_test_is_refused(tmp_path, capsys):
    args = ["--data", str(ROOT / "configs/data/chest.yaml"), "--name", "b"]
    assert main(["test", str(tmp_path), *args]) == 2
    assert "no prediction table" in capsys.readouterr().err
