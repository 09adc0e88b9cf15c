"""Several findings per image: a run from its config to its report, and what commands say."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from consilium.cli.main import main
from consilium.inference.audit_report import SEVERAL_FINDINGS, audit_notes, counts_table
from datamodules.audit.audit import Audit
from datamodules.manifest import Manifest
from datamodules.phantoms.generate import PhantomSpec, write_dataset
from evaluation.findings import MultiLabelTable
from evaluation.metrics.compute import compute_metrics
from evaluation.results import read_results
from lightning_modules import checkpoints
from tests.conftest import ROOT, Tiny

NAMES = ["fracture", "comminuted"]


def write_findings(root: Path) -> Path:
    """A table of phantoms with two findings, of which 30 % of the labels are unknown."""
    folder = write_dataset(PhantomSpec("fracture", 40, 2, 64, seed=0), root / "findings")
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    present = [table["label"] != "none", table["label"] == "comminuted"]
    blank = np.random.default_rng(0).random((2, len(table))) < 0.3
    for name, values, is_blank in zip(NAMES, present, blank, strict=True):
        table[name] = values.astype(int).astype(str).mask(is_blank, "")
    file = folder / "findings.csv"
    table.drop(columns="label").to_csv(file, index=False)
    return file


def changes(file: Path) -> dict[str, object]:
    """The changes of a tiny member for the table."""
    fractions = {"val": 0.25, "test": 0.3, "stratified": True}
    arguments = {"files": str(file), "patient": "patient", "split": None, "study": "study",
                 "attributes": [], "fractions": fractions, "findings": {}}  # fmt: skip
    return {
        "data.init_args.source": {"class_path": "datamodules.Table", "init_args": arguments},
        "data.init_args.class_names": NAMES,
        "data.init_args.balance": {"class_weights": "sqrt"},
        "model.init_args.head": "multi_label",
    }


@pytest.fixture(scope="module")
def run(tiny: Tiny) -> Path:
    """Run folder of a tiny network that is trained on two findings."""
    file = write_findings(tiny.root)
    flags = ["--early_stopping.monitor", "val/auroc"]
    return tiny.fit("findings", tiny.root / "runs" / "findings", *flags, **changes(file))


def test_a_run_evaluates_every_finding_like_two_classes(run: Path) -> None:
    results = read_results(run / "results.json")
    table = MultiLabelTable.read(run / "predictions/test.parquet")
    assert (table.labels == -1).any()
    assert list(results.findings) == NAMES
    for name, part in results.findings.items():
        of_finding = table.finding(name)
        assert part.metrics == compute_metrics(of_finding)
        assert part.metrics["accuracy"].n == int((table.labels[:, NAMES.index(name)] >= 0).sum())
        assert part.operating_points
    values = [results.findings[name].metrics[f"auroc/{name}"].value or 0 for name in NAMES]
    assert results.metrics["auroc/macro"].value == pytest.approx(np.mean(values))
    frame = pd.read_csv(run / "findings.csv", index_col="finding")
    assert frame.index.tolist() == [*NAMES, "macro mean", "micro mean"]
    assert frame.loc["fracture", "auroc"] == pytest.approx(values[0])
    report = (run / "report.html").read_text()
    assert "mean AUROC of" in report
    assert all(f"<summary><h2>{name}</h2>" in report for name in NAMES)


def test_a_checkpoint_describes_itself(run: Path) -> None:
    module, block = checkpoints.load(run / "best.ckpt")
    assert block.class_names == NAMES
    history = pd.read_csv(run / "history.csv")
    assert np.isclose(history["val/auroc"], block.metrics["auroc"]).any()
    assert {f"auroc/{name}" for name in NAMES} < set(block.metrics)
    image = torch.rand(2, 3, 32, 32)
    assert module(image).shape == (2, 2)
    readme = (run / "README.md").read_text()
    assert "module(image[None]).sigmoid()[0]" in readme


def test_the_head_and_the_data_have_to_fit(
    run: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next((tiny.root / "findings").glob("*/findings.csv"))
    softmax = tiny.configs("softmax", **{**changes(file), "model.init_args.head": "softmax"})
    assert main(["fit", *softmax, "--run", str(tmp_path / "a")]) != 0
    message = "head: softmax is for one label per image, the data has several findings per image"
    assert message in capsys.readouterr().err
    one_label = tiny.configs("one_label", **{"model.init_args.head": "multi_label"})
    assert main(["fit", *one_label, "--run", str(tmp_path / "b")]) != 0
    assert "multi_label is for several findings per image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [["export", "CKPT", "-o", "OUT"], ["ensemble", "--val", "RUN", "--test", "RUN", "-o", "OUT"],
     ["explain", "CKPT", "IMAGE", "-o", "OUT"], ["compare", "RUN", "COPY", "-o", "OUT"],
     ["card", "COPY"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_commands_that_need_one_label_say_so(
    command: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((run.parents[1] / "findings").rglob("*.png"))
    copy = shutil.copytree(run, tmp_path / "copy")
    names = {"CKPT": run / "best.ckpt", "RUN": run, "COPY": copy, "OUT": tmp_path / "out",
             "IMAGE": image}  # fmt: skip
    assert main([str(names.get(part, part)) for part in command]) != 0
    error = capsys.readouterr().err
    assert "several findings" in error
    assert "one label" in error
    assert "Traceback" not in error


def test_an_experiment_is_refused_before_it_trains(
    run: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny.root / "several.yaml"
    base, member = ROOT / "configs/base.yaml", tiny.root / "findings.yaml"
    experiment.write_text(f"base: {base}\nmembers: {{one: {member}}}\n")
    output = str(tiny.root / "several")
    assert main(["experiment", "run", str(experiment), "--output", output, "--dry-run"]) == 2
    message = "one: an experiment needs one label per image, not several findings"
    assert message in capsys.readouterr().err


def test_predictions_have_the_labels_and_logits_of_all_findings(run: Path, tmp_path: Path) -> None:
    arguments = ["--ckpt_path", str(run / "best.ckpt"), "--run", str(tmp_path / "again")]
    assert main(["predict", "--config", str(run / "config.yaml"), *arguments]) == 0
    again = MultiLabelTable.read(tmp_path / "again" / "predictions" / "test.parquet")
    table = MultiLabelTable.read(run / "predictions" / "test.parquet")
    np.testing.assert_array_equal(again.logits, table.logits)
    np.testing.assert_array_equal(again.labels, table.labels)


def test_an_audit_counts_findings_and_says_what_it_does_not_measure() -> None:
    table = pd.DataFrame({
        "id": list("abc"), "path": "x", "label": -1, "split": ["train", "train", "test"],
        "patient": list("abc"), "study": "",
        "finding/Effusion": [1, 1, 0], "finding/Mass": [1, -1, 1],
    })  # fmt: skip
    manifest = Manifest(table, ["Effusion", "Mass"])
    assert counts_table(manifest).rows == [("train", 2, 1, 2), ("test", 0, 1, 1)]
    assert audit_notes(Audit(manifest, [], [])) == [SEVERAL_FINDINGS]


def test_the_shipped_config_of_generated_findings_runs(tmp_path: Path) -> None:
    configs = [ROOT / "configs" / name for name in ("base.yaml", "demo/chest_findings.yaml")]
    source = "--data.init_args.source.init_args"
    arguments = [text for file in configs for text in ("--config", str(file))]
    arguments += [f"{source}.num_patients", "60", f"{source}.root", str(tmp_path / "phantoms")]
    arguments += ["--trainer.fast_dev_run", "true", "--run", str(tmp_path / "run")]
    assert main(["fit", *arguments]) == 0
