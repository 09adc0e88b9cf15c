import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from consilium.cli.main import main
from consilium.experiments.config import load_experiment
from consilium.inference import data_config

SHORT = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2"]


@pytest.fixture
def films(tiny, resnet, tmp_path):
    """A stranger's folder: the phantoms under another table, whose persons restart at each site."""
    (folder,) = (tiny.root / "phantoms").glob("fracture-64px-30p-*")
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    number = table["patient"].str[1:].astype(int)
    mine = pd.DataFrame({
        "filename": [str(folder / path) for path in table["path"]], "diagnosis": table["label"],
        "set": np.where(number % 3 == 0, "testing", "training"), "site": number % 2,
        "number": number // 2})  # fmt: skip
    mine.to_csv(tmp_path / "films.csv", index=False)
    return tmp_path / "films.csv"


def commands(study, capsys):
    capsys.readouterr()
    assert main(["experiment", "run", str(study), "--dry-run"]) == 0
    return [line.split()[1:] for line in capsys.readouterr().out.splitlines()]


def test_from_a_table_to_a_member_without_writing_a_line(films, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    patient = ["--patient", "site,number"]
    assert main(["audit", str(films), *patient, "--size", "32", "--start", "mine"]) == 0
    assert "study: consilium experiment run mine/mine.yaml" in capsys.readouterr().out
    study = load_experiment("mine/mine.yaml")
    assert list(study.members) == ["resnet10t", "regnety_002", "mobilenetv3_small"]
    fits = [words for words in commands("mine/mine.yaml", capsys) if words[0] == "fit"]
    assert len(fits) == 3
    assert main([*fits[2], *SHORT]) == 0
    said = yaml.safe_load(Path("runs/mine/members/mobilenetv3_small/config.yaml").read_text())
    assert said["data"]["init_args"]["preprocess"]["size"] == 32


def test_the_data_is_what_the_table_says(films, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["audit", str(films), "--patient", "site,number", "--start", "mine"])
    data = data_config.load_datamodule(["mine/data.yaml"])
    manifest, raw = data.load_manifest(), pd.read_csv(films, dtype=str)
    assert data.class_names == ["comminuted", "none", "simple"]
    assert (manifest.table["patient"] == raw["site"] + "/" + raw["number"]).all()
    assert ((manifest.table["split"] == "test") == (raw["set"] == "testing")).all()
    assert set(manifest.table["split"]) == {"train", "val", "test"}
    assert len(yaml.safe_load(Path("mine/data.yaml").read_text())["init_args"]) == 5
    shutil.rmtree("runs")
    assert main(["audit", str(films), "--patient", "site,number", "--start", "mine"]) == 2
    assert "--start mine: holds a study already" in capsys.readouterr().err
    assert not Path("runs").exists()  # nothing was audited


def test_printed_commands_can_be_typed(films, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    films = films.rename("the films.csv")
    words = ["audit", "the films.csv", "--patient", "site,number", "--start", "my own's"]
    assert main(words) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("study: ")]
    data, study = (Path("my own's", f"{name}.yaml") for name in ("data", "my own's"))
    assert shlex.split(said)[1:] == ["consilium", "experiment", "run", str(study)]
    assert shlex.split(study.read_text().splitlines()[0])[1:] == shlex.split(said)[1:]
    assert shlex.split(data.read_text().splitlines()[0])[-2:] == ["--config", str(data)]
    assert f"audit {shlex.quote('the films.csv')} --augmentations" in data.read_text()
    assert len(load_experiment(study).members) == 3


@pytest.mark.parametrize("size", ["0", "-8"])
def test_a_size_of_nothing_is_refused(films, size, capsys, tmp_path):
    with pytest.raises(SystemExit) as left:
        main(["audit", str(films), "--start", str(tmp_path / "mine"), "--size", size])
    assert left.value.code == 2
    assert f"argument --size: {size} is not at least 1" in capsys.readouterr().err


def test_what_the_audit_quarantines_is_left_out(films, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = pd.read_csv(films, dtype=str)
    train, test = (raw[raw["set"] == name].iloc[0] for name in ("training", "testing"))
    copy = tmp_path / "copy.png"
    shutil.copy(train["filename"], copy)
    leak = test.to_frame().T.assign(filename=str(copy), diagnosis=train["diagnosis"])
    pd.concat([raw, leak]).to_csv(films, index=False)
    words = ["audit", str(films), "--patient", "site,number", "-o", "of {A}, 1: '24"]
    assert main([*words, "--start", "mine"]) == 1
    data = data_config.load_datamodule(["mine/data.yaml"])
    assert train["filename"] not in data.load_manifest().table["id"].tolist()
    data.setup("fit")


@pytest.mark.parametrize("splits", [[""], ["train/", "test/"]])
def test_a_folder_of_class_folders_will_do(tmp_path, splits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in splits:
        for at in range(20):
            for name in ("ill", "well"):
                file = tmp_path / f"tree/{split}{name}/p{split[:2]}{at}{name}_1.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(file), rng.integers(0, 255, (24, 24), np.uint8))
    assert main(["audit", "tree", "--patient", r"(p\w+)_", "--start", "mine"]) == 0
    manifest = data_config.load_datamodule(["mine/data.yaml"]).load_manifest()
    assert set(manifest.table["split"]) == {"train", "val", "test"}
    assert len(manifest.table) == 40 * len(splits)


def test_what_cannot_be_started_is_said(films, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "--config", "a.yaml", "--start", "mine"]) == 2
    assert "the data has a config already" in capsys.readouterr().err
    assert main(["audit", str(films), "--augmentations", "--start", "mine"]) == 2
    assert "--start: not with --augmentations" in capsys.readouterr().err
    assert main(["audit", str(films), "--patient", "site,person", "--start", "mine"]) == 2
    assert "no columns ['person']; the table has ['filename'" in capsys.readouterr().err
    pd.read_csv(films).drop(columns="diagnosis").to_csv(films, index=False)
    assert main(["audit", str(films), "--patient", "site,number", "--start", "mine"]) == 2
    assert "--label must name the column of the classes: ['filename'" in capsys.readouterr().err
    pd.read_csv(films).drop(columns="set").to_csv(films, index=False)
    assert main(["audit", str(films), "--patient", "site,number", "--start", "mine"]) == 2
    assert "--label names their column" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
    assert not (tmp_path / "runs").exists()  # nothing was audited
