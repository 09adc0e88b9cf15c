import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from callbacks.wandb_logger import WandbLogger, closed, place, show
from consilium.cli.main import main
from evaluation.predictions import PredictionTable
from evaluation.reports.answers import code
from evaluation.results import read_results
from lightning_modules import checkpoints

HERE = Path(__file__).parent
LOGGER = ["--config", str(HERE.parents[1] / "configs/logger/wandb.yaml")]
DRAWN = ["--trainer.callbacks+", "callbacks.SaliencyMaps"]
spec = importlib.util.spec_from_file_location("wandb_file", HERE / "wandb_file.py")
wandb_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wandb_file)


@pytest.fixture(autouse=True)
def _asked_for_nothing(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def member(tiny):
    """Run folder of a study's member, on the board with its checkpoint and heat maps."""
    folder = tiny.root / "boarded" / "members" / "resnet"
    kept = ["--trainer.logger.init_args.checkpoints", "true"]
    return tiny.fit("resnet", folder, *LOGGER, *kept, *DRAWN)


@pytest.fixture(scope="module")
def said(member):
    return wandb_file.records(member)


def test_group_job_type_and_name_come_from_the_study(said):
    run = wandb_file.run(said)
    assert (run.project, run.run_group, run.job_type, run.display_name) == (
        "consilium", "boarded", "member", "resnet")  # fmt: skip


def test_the_config_is_the_resolved_one(said, member):
    kept = yaml.safe_load((member / "config.yaml").read_text())
    sent = wandb_file.config(said)
    assert {key: sent[key] for key in kept} == json.loads(json.dumps(kept))
    assert sent["model"]["init_args"]["backbone"] == "test_resnet"
    assert sent["data"]["init_args"]["class_names"] == ["none", "simple", "comminuted"]


def test_the_history_has_the_rows_of_history_csv(said, member):
    rows, history = wandb_file.rows(said), pd.read_csv(member / "history.csv")
    assert [row["epoch"] for row in rows] == history["epoch"].tolist() == [0, 1]
    for column in ("lr", "seconds", "train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        assert [row[column] for row in rows] == pytest.approx(history[column].tolist()), column
    assert not [row for row in rows if "test/accuracy" in row]


def media(said, member):
    """File and size of each picture of the history by its name."""
    pictures = {}
    (files,) = member.glob("wandb/offline-run-*/files")
    for row in wandb_file.rows(said):
        for key, value in row.items():
            if key.endswith("/filenames"):
                pictures[key.removesuffix("/filenames")] = [files / name for name in value]
    return pictures


def test_pictures_of_the_report_and_heat_maps_are_media(said, member):
    found = media(said, member)
    named = {f"test/{name}" for name in ("Confusion", "ROC", "Confidence", "Learning curves")}
    assert named | {"val/Confusion", "val/heatmaps"} <= set(found)
    for files in found.values():
        assert all(Image.open(file).size[0] > 300 for file in files)
    (drawn,) = found["val/heatmaps"]
    last = sorted((member / "heatmaps").iterdir())[-1]
    assert Image.open(drawn).size == Image.open(last).size
    assert Image.open(drawn).tobytes() != Image.open(last).tobytes()  # the captions


def test_nothing_that_is_sent_names_a_patient(said, member):
    rows = PredictionTable.read(member / "predictions" / "test.parquet").rows
    assert all(patient in name for patient, name in zip(rows["patient"], rows["id"], strict=True))
    (folder,) = member.glob("wandb/offline-run-*")
    files = [path for path in folder.rglob("*") if path.is_file()]
    sent = b"".join(path.read_bytes() for path in files if path.suffix != ".png")
    assert b"p(simple)" in sent
    assert not [name for name in set(rows["patient"]) if name.encode() in sent]


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_prediction_table_is_sent_without_patients(said, member, split):
    (name,) = {row[f"{split}/predictions/path"] for row in wandb_file.rows(said)
               if f"{split}/predictions/path" in row}  # fmt: skip
    (folder,) = member.glob("wandb/offline-run-*/files")
    sent = json.loads((folder / name).read_text())
    table = PredictionTable.read(member / "predictions" / f"{split}.parquet")
    frame = pd.DataFrame(sent["data"], columns=sent["columns"])
    assert frame["id"].tolist() == [code(name) for name in table.rows["id"]]
    assert frame["true"].tolist() == [table.class_names[k] for k in table.labels]
    odds = frame[[f"p({name})" for name in table.class_names]].to_numpy()
    assert odds == pytest.approx(table.probabilities)
    assert set(frame) == {"id", "true", "says", "right", "confidence",
                          *(f"p({name})" for name in table.class_names)}  # fmt: skip


def test_figures_stand_in_the_summary_with_their_intervals(said, member):
    figure = read_results(member / "results.json").metrics["accuracy"]
    kept = wandb_file.summary(said)["test"]
    assert kept["figures"]["accuracy"]["value"] == figure.value
    assert kept["figures"]["accuracy"]["low"] == figure.low
    assert kept["about"]["weights"] == checkpoints.read(member / "best.ckpt")[0].weights


def test_the_best_checkpoint_is_an_artifact(said, member):
    models = [each for each in wandb_file.artifacts(said) if each.type == "model"]
    assert len(models) == 1
    (entry,) = models[0].manifest.contents
    assert entry.path == "best.ckpt"
    assert Path(entry.local_path).resolve() == (member / "best.ckpt").resolve()


def test_the_weights_are_those_of_a_run_that_nobody_watched(resnet, member):
    plain, watched = (checkpoints.read(r / "last.ckpt")[1] for r in (resnet, member))
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


def test_a_ensemble_is_on_the_board_too(tiny, member, larger, tmp_path):
    members = {"class_path": "lightning_modules.EnsembleModule",
               "init_args": {"members": [str(member), str(larger)]}}  # fmt: skip
    folder = tiny.root / "boarded" / "ensemble"
    args = ["test", *tiny.configs("board_ensemble", model=members), *LOGGER]
    folder.mkdir()
    (folder / "config.yaml").write_text("# of a test before\n")
    assert main([*args, "--run", str(folder)]) == 0
    said = wandb_file.records(folder)
    run = wandb_file.run(said)
    assert (run.run_group, run.job_type, run.display_name) == ("boarded", "ensemble", "ensemble")
    assert wandb_file.config(said)["model"]["class_path"].endswith("EnsembleModule")
    assert "test/Confusion" in media(said, folder)
    assert not [each for each in wandb_file.artifacts(said) if each.type == "model"]


def test_a_run_that_goes_on_keeps_its_id_and_counts_on(tiny, tmp_path):
    folder = tmp_path / "run"
    tiny.fit("resnet", folder, *LOGGER, "--trainer.max_epochs", "1")
    first = wandb_file.run(wandb_file.records(folder)).run_id
    (before,) = folder.glob("wandb/offline-run-*")
    before.rename(tmp_path / "before")
    (folder / "results.json").unlink()
    tiny.fit("resnet", folder, *LOGGER, "--ckpt_path", str(folder / "last.ckpt"))
    said = wandb_file.records(folder)
    assert wandb_file.run(said).run_id == first
    assert [(row["_step"], row["epoch"]) for row in wandb_file.rows(said)] == [(1, 1)]


def test_a_run_that_breaks_ends_as_failed(tmp_path):
    board = WandbLogger(folder=str(tmp_path))
    board.log_metrics({"epoch": 0, "loss": 1.0}, step=3)
    with pytest.raises(KeyError), closed([board]):
        raise KeyError
    said = wandb_file.records(tmp_path)
    assert [r.exit.exit_code for r in said if r.WhichOneof("record_type") == "exit"] == [1]
    assert wandb_file.rows(said)[0]["trainer/global_step"] == 3


def test_online_without_an_account_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    board = WandbLogger(folder=str(tmp_path), mode="online")
    with pytest.raises(ValueError, match=r"W&B, mode online: .*offline needs no account"):
        board.log_metrics({"epoch": 0})


@pytest.mark.parametrize(
    ("folder", "group", "name"),
    [
        ("runs/demo/members/a", "demo", "a"),
        ("runs/demo/members/a-seed1", "demo", "a-seed1"),
        ("runs/demo/ensemble", "demo", "ensemble"),
        ("runs/alone", None, "alone"),
        ("runs/demo/members/a/elsewhere", None, "elsewhere"),
    ],
)
def test_a_run_folder_tells_its_place(tmp_path, folder, group, name):
    (tmp_path / "runs/demo/members").mkdir(parents=True)
    assert place(tmp_path / folder) == (group, name)


def test_loggers_without_pictures_are_left_alone():
    show([object()], "a", b"")


def test_one_line_in_a_study_puts_every_member_and_the_ensemble_on_the_board(tmp_path, capsys):
    studies = HERE.parents[1] / "configs/experiments"
    lines = [f"like: {studies}/demo.yaml", f"overrides: [{LOGGER[1]}]"]
    (tmp_path / "watched.yaml").write_text("\n".join(lines))
    assert main(["experiment", "run", str(tmp_path / "watched.yaml"), "--dry-run"]) == 0
    typed = [line.split() for line in capsys.readouterr().out.splitlines()]
    trained = [words for words in typed if words[1] in ("fit", "test")]
    assert len(trained) == 4
    assert all(LOGGER[1] in words for words in trained)


def test_it_composes_with_recipes_and_trainers(capsys):
    configs = HERE.parents[1] / "configs"
    files = ["base.yaml", "demo/resnet10t.yaml", "logger/wandb.yaml", "recipe/ast25.yaml",
             "recipe/focal.yaml"]  # fmt: skip
    args = [word for file in files for word in ("--config", str(configs / file))]
    with pytest.raises(SystemExit):
        main(["fit", *args, "--trainer", str(configs / "trainer/ddp.yaml"), "--print_config"])
    said = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert said["logger"]["class_path"] == "callbacks.WandbLogger"
    assert said["strategy"] == "ddp"
    names = {each["class_path"] for each in said["callbacks"]}
    assert {"callbacks.ResultsWriter", "callbacks.TwoStageSparseTraining"} <= names
