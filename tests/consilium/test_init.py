import shlex
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.torch import save_file

from consilium.cli.main import main
from consilium.experiments.config import load_experiment
from consilium.inference import data_config, starter_plan
from datamodules.audit import file_stats
from datamodules.splits import SplitFractions
from evaluation.results import ExperimentFolder
from lightning_modules import backbones, checkpoints

SHORT = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2"]
PATIENT = ["--patient", "site,number"]
NUM_IMAGES = 36  # of 18 patients


@pytest.fixture
def table(tiny, resnet, tmp_path, monkeypatch):
    """A user's table of generated images, whose patient numbers restart at each site."""
    (folder,) = (tiny.root / "phantoms").glob("fracture-64px-30p-*")
    manifest = pd.read_csv(folder / "manifest.csv", dtype=str)[:NUM_IMAGES]
    number = manifest["patient"].str[1:].astype(int)
    pd.DataFrame({
        "filename": [str(folder / path) for path in manifest["path"]],
        "diagnosis": manifest["label"], "set": np.where(number % 3 == 0, "testing", "training"),
        "site": number % 2, "number": number // 2,
    }).to_csv(tmp_path / "images.csv", index=False)  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images.csv"


def planned_commands(experiment, capsys):
    capsys.readouterr()
    assert main(["experiment", "run", str(experiment), "--dry-run"]) == 0
    return [line.split()[1:] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.exhaustive
def test_a_table_becomes_an_experiment_that_trains(table, capsys):
    assert main(["init", str(table), *PATIENT, "--size", "32", "-o", "mine"]) == 0
    assert "experiment: consilium experiment run mine/mine.yaml" in capsys.readouterr().out
    experiment = load_experiment("mine/mine.yaml")
    assert list(experiment.members) == ["resnet10t", "regnety_002", "mobilenetv3_small"]
    commands = planned_commands("mine/mine.yaml", capsys)
    fits = [command for command in commands if command and command[0] == "fit"]
    assert len(fits) == 3
    assert main([*fits[2], *SHORT]) == 0
    config = yaml.safe_load(Path("runs/mine/members/mobilenetv3_small/config.yaml").read_text())
    assert config["data"]["init_args"]["preprocess"]["size"] == 32


def test_missing_weights_are_refused_before_the_audit(table, capsys):
    assert main(["init", str(table), *PATIENT, "--weights", "nowhere.pth", "-o", "mine"]) == 2
    assert "--weights nowhere.pth: no such file" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.exhaustive
def test_pretrained_weights_become_an_experiment_of_a_fine_tuned_network(
    table, monkeypatch, capsys
):
    monkeypatch.setattr(starter_plan, "MIN_FINETUNED_IMAGES", 1)
    net = backbones.build("test_resnet", 10, channels_last=False)
    Path("weights").mkdir()
    save_file(net.state_dict(), "weights/test_resnet.r160_in1k.safetensors")
    options = ["--weights", "weights", "--minutes", "2", "-o", "mine"]
    assert main(["init", str(table), *PATIENT, *options]) == 0
    printed = capsys.readouterr().out
    assert "member: test_resnet.r160_in1k_160: fine-tuned for" in printed
    assert main(["experiment", "run", "mine/mine.yaml"]) == 0
    runs = ExperimentFolder(Path("runs/mine"))
    assert runs.members == ["test_resnet.r160_in1k_160"]
    block, _ = checkpoints.read(runs.run("test_resnet.r160_in1k_160") / "best.ckpt")
    assert block.preprocess["size"] == 160
    assert runs.ensembles == ["ensemble"]


@pytest.mark.parametrize(("patients", "folds"), [(60, 5), (40, 0)])
def test_a_small_dataset_without_splits_is_cross_validated(patients, folds, tmp_path, monkeypatch):
    """A copied image keeps its two patients in one fold."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    rng, pixels = np.random.default_rng(0), []
    for k in range(patients):
        pixels.append(cv2.resize(rng.uniform(0, 255, (8, 8)), (32, 32)).astype(np.uint8))
        cv2.imwrite(f"images/{k}.png", pixels[2 if k == 5 else k])
    paths = [f"{k}.png" for k in range(patients)]
    labels = ["ill" if k in (2, 5) or k % 2 else "well" for k in range(patients)]
    people = [f"p{k}" for k in range(patients)]
    pd.DataFrame({"path": paths, "label": labels, "patient": people}).to_csv(
        "images/labels.csv", index=False
    )
    net = backbones.build("test_resnet", 10, channels_last=False)
    save_file(net.state_dict(), "test_resnet.safetensors")
    options = ["--weights", "test_resnet.safetensors", "-o", "mine"]
    assert main(["init", "images/labels.csv", *options]) == 0
    assert load_experiment("mine/mine.yaml").folds == folds
    if folds:
        data = data_config.load_datamodule(["mine/data.yaml"])
        data.fold = replace(data.fold, num_folds=folds)
        table = data.load_manifest().table.set_index("patient")
        assert set(table["split"]) == {"train", "val", "test"}
        assert table["split"]["p2"] == table["split"]["p5"]


@pytest.mark.parametrize("is_confounded", [True, False])
def test_sharpness_that_tells_the_class_is_hidden_by_blur(is_confounded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, k in product(("train", "test"), range(40)):
        label = ("ill", "well")[k % 2]
        pixels = rng.uniform(0, 255, (64, 64)).astype(np.uint8)
        is_soft = label == "well" if is_confounded else k % 4 < 2
        folder = Path("images", split, label)
        folder.mkdir(parents=True, exist_ok=True)
        soft = cv2.GaussianBlur(pixels, (0, 0), 2.0)
        cv2.imwrite(str(folder / f"p{split}{k}.png"), soft if is_soft else pixels)
    assert main(["init", "images", "--patient", "none", "-o", "mine"]) == 0
    page = Path("runs/audit-images/audit.html").read_text()
    assert "consilium experiment run mine/mine.yaml" in page
    data = data_config.load_datamodule(["mine/data.yaml"])
    assert data.augment.args["soften"] == (3.0 if is_confounded else 0.0)


def test_the_data_config_gives_the_samples_of_the_table(table, capsys):
    main(["init", str(table), *PATIENT, "-o", "mine"])
    data = data_config.load_datamodule(["mine/data.yaml"])
    manifest, raw = data.load_manifest(), pd.read_csv(table, dtype=str)
    assert data.class_names == ["comminuted", "none", "simple"]
    assert (manifest.table["patient"] == raw["site"] + "/" + raw["number"]).all()
    assert ((manifest.table["split"] == "test") == (raw["set"] == "testing")).all()
    assert set(manifest.table["split"]) == {"train", "val", "test"}
    assert len(yaml.safe_load(Path("mine/data.yaml").read_text())["init_args"]) == 5
    shutil.rmtree("runs")
    assert main(["init", str(table), *PATIENT, "-o", "mine"]) == 2
    assert "-o mine: mine.yaml exists already; name another folder" in capsys.readouterr().err
    assert not Path("runs").exists()  # nothing was audited


def test_printed_commands_can_be_pasted_into_a_shell(table, capsys):
    table.rename("the images.csv")
    assert main(["init", "the images.csv", *PATIENT, "-o", "my own's"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (printed,) = [line for line in lines if line.startswith("experiment: ")]
    data, experiment = (Path("my own's", f"{name}.yaml") for name in ("data", "my own's"))
    command = shlex.split(printed)[1:]
    assert command == ["consilium", "experiment", "run", str(experiment)]
    assert shlex.split(experiment.read_text().splitlines()[0])[1:] == command
    assert shlex.split(data.read_text().splitlines()[0])[-2:] == ["--config", str(data)]
    assert f"audit --config {shlex.quote(str(data))} --augmentations" in data.read_text()
    assert len(load_experiment(experiment).members) == 3


@pytest.mark.parametrize("size", ["0", "-8"])
def test_a_size_below_one_is_refused(size, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["init", "images.csv", "-o", "mine", "--size", size])
    assert exit_info.value.code == 2
    assert f"argument --size: {size} is not at least 1" in capsys.readouterr().err


def test_samples_in_quarantine_are_excluded(table, tmp_path, capsys):
    raw = pd.read_csv(table, dtype=str)
    train, test = (raw[raw["set"] == name].iloc[0] for name in ("training", "testing"))
    copy = tmp_path / "copy.png"
    shutil.copy(train["filename"], copy)
    leak = test.to_frame().T.assign(filename=str(copy), diagnosis=train["diagnosis"])
    pd.concat([raw, leak]).to_csv(table, index=False)
    folder = "of {A}, 1: '24"
    assert main(["init", str(table), *PATIENT, "-o", folder]) == 0
    assert "; excluded samples: 1" in capsys.readouterr().out
    data = data_config.load_datamodule([f"{folder}/data.yaml"])
    assert data.exclude == str(Path(folder, "quarantine.csv").resolve())
    assert train["filename"] not in data.load_manifest().table["id"].tolist()
    data.setup("fit")
    quarantine = Path(folder, "quarantine.csv").read_text()
    raw.to_csv(table, index=False)
    assert main(["audit", str(table), *PATIENT]) == 0
    (later,) = Path("runs").glob("audit-*/quarantine.csv")
    assert later.read_text() != quarantine  # the table has no leak any more
    assert Path(folder, "quarantine.csv").read_text() == quarantine


@pytest.mark.exhaustive
def test_copies_stay_together_in_the_splits_that_init_makes(table, tmp_path, capsys):
    raw = pd.read_csv(table, dtype=str).drop(columns="set")
    first = raw.drop_duplicates(["site", "number"]).iloc[:12]
    copies = first.assign(number=[f"new{k}" for k in range(12)])
    copies["filename"] = [str(tmp_path / f"copy{k}.png") for k in range(12)]
    for source, copy in zip(first["filename"], copies["filename"], strict=True):
        cv2.imwrite(copy, cv2.imread(source, cv2.IMREAD_GRAYSCALE)[:, ::-1])
    pd.concat([raw, copies]).to_csv(table, index=False)
    assert main(["init", str(table), *PATIENT, "-o", "mine"]) == 0
    manifest = data_config.load_datamodule(["mine/data.yaml"]).load_manifest()
    split = manifest.table.set_index("id")["split"]
    pairs = list(zip(first["filename"], copies["filename"], strict=True))
    assert [split[a] for a, _ in pairs] == [split[b] for _, b in pairs]
    assert set(split) == {"train", "val", "test"}
    patients = SplitFractions(stratified=True).assign(manifest.table)
    split[:] = patients  # by patient alone, some copies are in another split than their original
    assert [split[a] for a, _ in pairs] != [split[b] for _, b in pairs]
    assert main(["audit", "--config", "mine/data.yaml"]) == 0
    assert "0 kinds of leak" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "count"), [([], 2), (["--keep-conflicts"], 0)])
def test_identical_files_with_different_labels_are_excluded_or_kept(table, tmp_path, option, count):
    raw = pd.read_csv(table, dtype=str)
    row = raw[raw["set"] == "training"].iloc[0]
    shutil.copy(row["filename"], tmp_path / "copy.png")
    label = next(name for name in raw["diagnosis"] if name != row["diagnosis"])
    copy = row.to_frame().T.assign(filename=str(tmp_path / "copy.png"), diagnosis=label)
    pd.concat([raw, copy]).to_csv(table, index=False)
    assert main(["init", str(table), *PATIENT, *option, "-o", "mine"]) == 0
    manifest = data_config.load_datamodule(["mine/data.yaml"]).load_manifest()
    assert len(manifest.table) == len(raw) + 1 - count


@pytest.mark.exhaustive
def test_images_are_not_read_again_after_an_audit_unless_they_change(table, tmp_path, monkeypatch):
    raw, image, decoded = pd.read_csv(table, dtype=str), tmp_path / "changed.png", []
    shutil.copy(raw["filename"][0], image)
    raw.assign(filename=[str(image), *raw["filename"][1:]]).to_csv(table, index=False)
    decode = file_stats.decode
    monkeypatch.setattr(file_stats, "decode", lambda *a: decoded.append(a) or decode(*a))
    assert main(["audit", str(table), *PATIENT]) == 0
    assert len(decoded) == NUM_IMAGES
    assert main(["init", str(table), *PATIENT, "-o", "mine"]) == 0
    assert len(decoded) == NUM_IMAGES
    image.write_text("no image")
    assert main(["init", str(table), *PATIENT, "-o", "yours"]) == 0
    assert len(decoded) > NUM_IMAGES
    assert pd.read_csv("yours/quarantine.csv")["reason"].tolist() == ["unreadable files"]


@pytest.mark.parametrize("splits", [[""], ["train/", "test/"]])
def test_a_folder_of_class_folders_can_be_used(tmp_path, splits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in splits:
        for k in range(20):
            for name in ("ill", "well"):
                file = tmp_path / f"tree/{split}{name}/p{split[:2]}{k}{name}_1.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(file), rng.integers(0, 255, (24, 24), np.uint8))
    assert main(["init", "tree", "--patient", r"(p\w+)_", "-o", "mine"]) == 0
    manifest = data_config.load_datamodule(["mine/data.yaml"]).load_manifest()
    assert set(manifest.table["split"]) == {"train", "val", "test"}
    assert len(manifest.table) == 40 * len(splits)


def test_a_dataset_without_labels_or_with_wrong_columns_is_refused(table, tmp_path, capsys):
    def error(*arguments):
        assert main(["init", str(table), *arguments, "-o", "mine"]) == 2
        return capsys.readouterr().err

    message = f"{table}: no columns ['person']; the table has ['filename'"
    assert message in error("--patient", "site,person")
    pd.read_csv(table).drop(columns="diagnosis").to_csv(table, index=False)
    assert "--label must name the column of classes, one of ['filename'" in error(*PATIENT)
    pd.read_csv(table).drop(columns="set").to_csv(table, index=False)
    assert "--label names their column" in error(*PATIENT)
    assert not (tmp_path / "mine").exists()
    assert not (tmp_path / "runs").exists()  # nothing was audited


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diagnosis": "simple"}, "two classes or more, not only ['simple']; --label names their"),
        ({"filename": [f"{k}.png" for k in range(4)]}, "none of the 4 images exists, such as "),
        ({"set": ["test", "test", "val", "val"]}, "leave the split 'train' without images; add"),
        ({"set": ["train", "test", "val", "val"]}, "'train' has no images of the classes ['"),
        ({}, "the 4 patients leave the split 'val' without images; add images, or name"),
    ],
)
def test_a_dataset_from_which_no_experiment_can_be_made_is_refused(table, changes, message, capsys):
    raw = pd.read_csv(table, dtype=str)
    rows = pd.concat([raw[raw["diagnosis"] == name][:2] for name in ("simple", "none")])
    columns = {"set": ["train", "train", "train", "test"]} | changes
    rows.assign(**columns, site=range(4)).to_csv(table, index=False)
    assert main(["init", str(table), *PATIENT, "-o", "mine"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("mine").exists()


def test_images_without_class_folders_are_refused_with_a_way_to_label_them(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((8, 8), np.uint8))
    assert main(["init", str(tmp_path), "-o", str(tmp_path / "mine")]) == 2
    assert "labels; put the images of each class into a folder, or" in capsys.readouterr().err
