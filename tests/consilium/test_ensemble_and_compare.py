from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from consilium.cli.ensemble import summary_table
from consilium.cli.main import main
from evaluation.ensemble import evaluate_voters, fit_voters
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from evaluation.voters.store import load
from tests.evaluation.tables import expert_tables

MEMBERS = ("first", "second", "third")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Run folders of three members with val and test tables and a history."""
    for seed, split in enumerate(("val", "test")):
        for name, table in zip(MEMBERS, expert_tables(500, split, seed), strict=True):
            folder = tmp_path / "members" / name
            table = replace(table, meta={"weights": f"hash of {name}"})
            table.write(folder / "predictions" / f"{split}.parquet")
            history = pd.DataFrame({"epoch": [0, 1], "train/loss": [1.0, 0.5]})
            history.to_csv(folder / "history.csv", index=False)
    return tmp_path


def _arguments(runs: Path, *arguments: str) -> list[str]:
    tables = {s: [str(runs / f"members/{m}/predictions/{s}.parquet") for m in MEMBERS]
              for s in ("val", "test")}  # fmt: skip
    output = ["-o", str(runs / "ensemble"), "--draws", "100"]
    return ["ensemble", "--val", *tables["val"], "--test", *tables["test"], *output, *arguments]


def test_ensemble_is_fitted_evaluated_saved_and_reported(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--attribute", "body_part", "--attended-values", "elbow", "--voter", "per_group"]
    assert main(_arguments(runs, *options)) == 0
    output = capsys.readouterr().out
    assert "The ensemble (Weights per group) reaches accuracy" in output
    assert "report.html" in output
    folder = runs / "ensemble"
    names = ["none", "simple", "comminuted"]
    ensemble = load(folder, [f"hash of {m}" for m in MEMBERS], names)
    assert ensemble.voter.name == "per_group"
    tables = [PredictionTable.read(runs / f"members/{m}/predictions/test.parquet") for m in MEMBERS]
    body_parts = tables[0].rows["body_part"].to_numpy(dtype=object)
    combined = ensemble(np.stack([t.probabilities for t in tables]), body_parts)
    written = PredictionTable.read(folder / "predictions" / "test.parquet")
    np.testing.assert_allclose(written.probabilities, combined, atol=1e-6)
    results = read_results(folder / "results.json")
    assert results.meta["voter"] == "per_group"
    assert [s.name for s in results.subgroups[1:]] == ["body_part: elbow", "body_part: wrist"]
    assert "No difference between groups was shown (2 groups tested" in output
    assert "Subgroups</h2>" in (folder / "report.html").read_text()


def test_a_metric_of_zero_counts_in_the_mean_member() -> None:
    val, test = (
        dict(zip(MEMBERS, expert_tables(200, split, seed), strict=True))
        for seed, split in enumerate(("val", "test"))
    )
    fitted = fit_voters(val)
    evaluated = evaluate_voters(fitted, test, draws=50)
    for values, mean in (((0.0, 0.6, 0.9), "0.500"), ((None, 0.6, 0.9), "-")):
        members = {
            name: {**metrics, "accuracy": replace(metrics["accuracy"], value=value)}
            for (name, metrics), value in zip(
                evaluated.calibrated_metrics.items(), values, strict=True
            )
        }
        table = summary_table(fitted, replace(evaluated, calibrated_metrics=members))
        assert list(table.columns[1].cells)[-1] == mean


@pytest.mark.exhaustive
def test_disputed_images_are_shown(runs: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(500):
        cv2.imwrite(str(runs / f"test{index}.png"), rng.integers(0, 255, (20, 30), np.uint8))
    for split in ("val", "test"):
        for path in runs.glob(f"members/*/predictions/{split}.parquet"):
            table = PredictionTable.read(path)
            replace(table, rows=table.rows.assign(id=table.rows["id"] + ".png")).write(path)
    assert main(_arguments(runs, "--images", str(runs))) == 0
    assert 'class="thumbnails"' in (runs / "ensemble" / "report.html").read_text()


@pytest.mark.exhaustive
def test_run_folders_stand_for_their_tables(runs: Path) -> None:
    folders = [str(runs / "members" / name) for name in MEMBERS]
    output = ["-o", str(runs / "by_folder"), "--draws", "100"]
    assert main(["ensemble", "--val", *folders, "--test", *folders, *output]) == 0
    assert main(_arguments(runs)) == 0
    first, second = (
        read_results(runs / name / "results.json") for name in ("by_folder", "ensemble")
    )
    assert first.metrics == second.metrics


def test_invalid_tables_are_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = _arguments(runs)
    index = swapped.index("--test")
    swapped[2], swapped[index + 1] = swapped[index + 1], swapped[2]
    assert main(swapped) == 2
    assert "--test first: contains rows of split 'val'" in capsys.readouterr().err
    assert main(_arguments(runs, "--voter", "per_group")) == 2
    assert "--voter per_group: needs --attribute" in capsys.readouterr().err
    table = PredictionTable.read(runs / "members/second/predictions/test.parquet")
    path = runs / "members/second/predictions/test.parquet"
    replace(table, meta={"weights": "x"}).write(path)
    assert main(_arguments(runs)) == 2
    assert "second: --val is of weights hash of second, --test of x" in (capsys.readouterr().err)
    assert not (runs / "ensemble").exists()


def test_voters_are_not_evaluated_on_images_they_were_fitted_on(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In another manifest the same images may be in the test split."""
    for name in MEMBERS:
        folder = runs / "members" / name / "predictions"
        val = PredictionTable.read(folder / "val.parquet")
        rows = val.rows.assign(split="test")
        replace(val, rows=rows).write(folder / "test.parquet")
    assert main(_arguments(runs)) == 2
    error = capsys.readouterr().err
    assert "--test first: 500 of its ids are in --val as well, for example 'val0'" in error


def test_compare_writes_report_results_and_table(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(runs / "members" / name) for name in MEMBERS]
    output = runs / "compare"
    assert main(["compare", *folders, "-o", str(output), "--draws", "100"]) == 0
    printed = capsys.readouterr().out
    assert "reaches the highest accuracy" in printed
    assert "second: Worse than for all other images: body_part: wrist (Accuracy -0." in printed
    groups = pd.read_csv(output / "subgroups.csv")
    assert set(groups["member"]) == set(MEMBERS)
    assert set(groups["group"]) == {"all", "elbow", "wrist"}
    results = read_results(output / "results.json")
    assert {"member/first", "difference/first & second"} <= set(results.others)
    csv = pd.read_csv(output / "metrics.csv")
    accuracy = csv[(csv["member"] == "third") & (csv["metric"] == "accuracy")]["value"].item()
    assert accuracy == pytest.approx(results.others["member/third"]["accuracy"].value)
    page = (output / "report.html").read_text()
    for heading in ("Recall by class", "Paired differences", "Diversity", "Learning curves: first"):
        assert heading in page


def test_run_without_a_prediction_table_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    assert "no prediction table" in capsys.readouterr().err
