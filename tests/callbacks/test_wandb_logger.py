import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from callbacks import writers
from callbacks.wandb_logger import WandbLogger, close_loggers, group_and_name, log_image
from consilium.cli.main import main
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports.run import anonymized_predictions, hashed_id, run_sections
from evaluation.results import Results, read_results
from evaluation.subgroups import compute_subgroups
from lightning_modules import checkpoints
from tests.conftest import drawing_plots
from tests.evaluation.tables import make_table

FOLDER = Path(__file__).parent
CONFIGS = FOLDER.parents[1] / "configs"
LOGGER = ["--config", str(CONFIGS / "logger/wandb.yaml")]
SALIENCY_MAPS = ["--trainer.callbacks+", "callbacks.SaliencyMaps"]
spec = importlib.util.spec_from_file_location("wandb_file", FOLDER / "wandb_file.py")
wandb_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wandb_file)


@pytest.fixture(autouse=True)
def _no_wandb_environment(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def member(tiny):
    """Run folder of an experiment's member with W&B, its checkpoint and saliency maps."""
    folder = tiny.root / "logged" / "members" / "resnet"
    checkpoints = ["--trainer.logger.init_args.checkpoints", "true"]
    with drawing_plots():
        return tiny.fit("resnet", folder, *LOGGER, *checkpoints, *SALIENCY_MAPS)


@pytest.fixture(scope="module")
def records(member):
    return wandb_file.read_records(member)


def test_group_job_type_and_name_come_from_the_folder(records):
    run = wandb_file.run(records)
    assert (run.project, run.run_group, run.job_type, run.display_name) == (
        "consilium", "logged", "member", "resnet")  # fmt: skip


def test_the_resolved_config_is_logged(records, member):
    config = yaml.safe_load((member / "config.yaml").read_text())
    logged = wandb_file.config(records)
    assert {key: logged[key] for key in config} == json.loads(json.dumps(config))
    assert logged["model"]["init_args"]["backbone"] == "test_resnet"
    assert logged["data"]["init_args"]["class_names"] == ["none", "simple", "comminuted"]


def test_the_logged_rows_are_those_of_history_csv(records, member):
    rows, history = wandb_file.rows(records), pd.read_csv(member / "history.csv")
    assert [row["epoch"] for row in rows] == history["epoch"].tolist() == [0, 1]
    for column in ("lr", "seconds", "train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        assert [row[column] for row in rows] == pytest.approx(history[column].tolist()), column
    assert not [row for row in rows if "test/accuracy" in row]


def logged_images(records, member):
    """The files of the images that were logged, by their name."""
    (folder,) = member.glob("wandb/offline-run-*/files")
    return {
        key.removesuffix("/filenames"): [folder / name for name in value]
        for row in wandb_file.rows(records)
        for key, value in row.items()
        if key.endswith("/filenames")
    }


def test_plots_of_the_report_and_saliency_maps_are_logged(records, member):
    images = logged_images(records, member)
    names = {
        f"test/{name}" for name in ("Confusion matrix", "ROC", "Reliability", "Learning curves")
    }
    assert names | {"val/Confusion matrix", "val/saliency_maps"} <= set(images)
    for files in images.values():
        assert all(Image.open(file).size[0] > 300 for file in files)
    (logged,) = images["val/saliency_maps"]
    last = sorted((member / "saliency_maps").iterdir())[-1]
    assert Image.open(logged).size == Image.open(last).size
    assert Image.open(logged).tobytes() != Image.open(last).tobytes()  # other captions


def test_no_logged_file_names_a_patient(records, member):
    rows = PredictionTable.read(member / "predictions" / "test.parquet").rows
    assert all(patient in name for patient, name in zip(rows["patient"], rows["id"], strict=True))
    (folder,) = member.glob("wandb/offline-run-*")
    files = [path for path in folder.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files if path.suffix != ".png")
    assert b"p(simple)" in content
    assert not [name for name in set(rows["patient"]) if name.encode() in content]


@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_are_logged_without_patients(records, member, split):
    key = f"{split}/predictions/path"
    (name,) = {row[key] for row in wandb_file.rows(records) if key in row}
    (folder,) = member.glob("wandb/offline-run-*/files")
    content = json.loads((folder / name).read_text())
    table = PredictionTable.read(member / "predictions" / f"{split}.parquet")
    logged = pd.DataFrame(content["data"], columns=content["columns"])
    pd.testing.assert_frame_equal(
        logged, anonymized_predictions(table).reset_index(drop=True), check_dtype=False
    )
    assert set(logged).isdisjoint({"patient", "study"})
    assert logged["id"].tolist() == [hashed_id(name) for name in table.rows["id"]]
    probabilities = logged[[f"p({name})" for name in table.class_names]].to_numpy()
    assert probabilities == pytest.approx(table.probabilities)


def test_the_summary_has_metrics_with_intervals(records, member):
    accuracy = read_results(member / "results.json").metrics["accuracy"]
    summary = wandb_file.summary(records)["test"]
    assert summary["metrics"]["accuracy"]["value"] == accuracy.value
    assert summary["metrics"]["accuracy"]["low"] == accuracy.low
    assert summary["about"]["weights"] == checkpoints.read(member / "best.ckpt")[0].weights


def test_the_best_checkpoint_is_an_artifact(records, member):
    (model,) = [each for each in wandb_file.artifacts(records) if each.type == "model"]
    (entry,) = model.manifest.contents
    assert entry.path == "best.ckpt"
    assert Path(entry.local_path).resolve() == (member / "best.ckpt").resolve()


def test_logging_does_not_change_the_weights(resnet, member):
    plain, logged = (checkpoints.read(run / "last.ckpt")[1] for run in (resnet, member))
    assert all(torch.equal(plain[name], logged[name]) for name in plain)


def test_the_test_of_an_ensemble_is_logged(tiny, member, larger, tmp_path):
    ensemble = {"class_path": "lightning_modules.EnsembleModule",
                "init_args": {"members": [str(member), str(larger)]}}  # fmt: skip
    folder = tiny.root / "logged" / "ensemble"
    arguments = ["test", *tiny.configs("logged_ensemble", model=ensemble), *LOGGER]
    folder.mkdir()
    (folder / "config.yaml").write_text("# of an earlier test\n")
    assert main([*arguments, "--run", str(folder)]) == 0
    records = wandb_file.read_records(folder)
    run = wandb_file.run(records)
    assert (run.run_group, run.job_type, run.display_name) == ("logged", "ensemble", "ensemble")
    assert wandb_file.config(records)["model"]["class_path"].endswith("EnsembleModule")
    assert "test/Confusion matrix" in logged_images(records, folder)
    assert not [each for each in wandb_file.artifacts(records) if each.type == "model"]


@pytest.mark.exhaustive
def test_a_resumed_run_keeps_its_id_and_continues_the_rows(tiny, tmp_path):
    folder = tmp_path / "run"
    tiny.fit("resnet", folder, *LOGGER, "--trainer.max_epochs", "1")
    run_id = wandb_file.run(wandb_file.read_records(folder)).run_id
    (before,) = folder.glob("wandb/offline-run-*")
    before.rename(tmp_path / "before")
    (folder / "results.json").unlink()
    tiny.fit("resnet", folder, *LOGGER, "--ckpt_path", str(folder / "last.ckpt"))
    records = wandb_file.read_records(folder)
    assert wandb_file.run(records).run_id == run_id
    assert [(row["_step"], row["epoch"]) for row in wandb_file.rows(records)] == [(1, 1)]


def test_a_run_with_an_error_ends_as_failed(tmp_path):
    logger = WandbLogger(folder=str(tmp_path))
    logger.log_metrics({"epoch": 0, "loss": 1.0}, step=3)
    with pytest.raises(KeyError), close_loggers([logger]):
        raise KeyError
    records = wandb_file.read_records(tmp_path)
    exits = [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"]
    assert exits == [1]
    assert wandb_file.rows(records)[0]["trainer/global_step"] == 3


def test_online_without_an_account_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    logger = WandbLogger(folder=str(tmp_path), mode="online")
    with pytest.raises(ValueError, match=r"W&B, mode online: .*offline needs no account"):
        logger.log_metrics({"epoch": 0})


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
def test_group_and_name_of_a_run_folder(tmp_path, folder, group, name):
    (tmp_path / "runs/demo/members").mkdir(parents=True)
    assert group_and_name(tmp_path / folder) == (group, name)


def test_groups_of_images_are_not_sent(monkeypatch):
    keys: list[str] = []
    monkeypatch.setattr(writers, "log_image", lambda loggers, key, png: keys.append(key))
    table = make_table(100)
    groups = compute_subgroups(table)
    metrics = compute_metrics(table, draws=20)
    results = Results("a", "test", table.class_names, metrics, subgroups=groups)
    page = run_sections(results, table)
    assert "Subgroups" in [section.heading for section in page]
    writers.log_results([DummyLogger()], results, table, page)
    assert "test/ROC" in keys
    assert not [key for key in keys if "Subgroups" in key]


def test_loggers_that_take_no_images_are_skipped():
    log_image([DummyLogger()], "a", b"")


def test_an_override_adds_the_logger_to_all_members_and_the_ensemble(tmp_path, capsys):
    lines = [f"extends: {CONFIGS}/experiments/demo.yaml", f"overrides: [{LOGGER[1]}]"]
    (tmp_path / "logged.yaml").write_text("\n".join(lines))
    assert main(["experiment", "run", str(tmp_path / "logged.yaml"), "--dry-run"]) == 0
    commands = [line.split() for line in capsys.readouterr().out.splitlines()]
    runs = [words for words in commands if words[1] in ("fit", "test")]
    assert len(runs) == 4
    assert all(LOGGER[1] in words for words in runs)


def test_the_logger_config_combines_with_recipes_and_trainers(capsys):
    files = ["base.yaml", "demo/resnet10t.yaml", "logger/wandb.yaml", "recipe/ast25.yaml",
             "recipe/focal.yaml"]  # fmt: skip
    arguments = [word for file in files for word in ("--config", str(CONFIGS / file))]
    with pytest.raises(SystemExit):
        main(["fit", *arguments, "--trainer", str(CONFIGS / "trainer/ddp.yaml"), "--print_config"])
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert trainer["logger"]["class_path"] == "callbacks.WandbLogger"
    assert trainer["strategy"] == "ddp"
    names = {callback["class_path"] for callback in trainer["callbacks"]}
    assert {"callbacks.ResultsWriter", "callbacks.TwoStageSparseTraining"} <= names
