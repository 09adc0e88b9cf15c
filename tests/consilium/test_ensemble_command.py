from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from consilium.cli.ensemble import summary
from consilium.cli.main import main
from evaluation.ensemble import evaluate_voters, fit_voters
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from evaluation.voters.store import load
from tests.evaluation.tables import experts

MEMBERS = ("first", "second", "third")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Run folders of three members with val and test tables and a history."""
    for at, split in enumerate(("val", "test")):
        for name, table in zip(MEMBERS, experts(500, split, at), strict=True):
            folder = tmp_path / "members" / name
            known = replace(table, meta={"weights": f"hash of {name}"})
            known.write(folder / "predictions" / f"{split}.parquet")
            history = pd.DataFrame({"epoch": [0, 1], "train/loss": [1.0, 0.5]})
            history.to_csv(folder / "history.csv", index=False)
    return tmp_path


def _arguments(runs: Path, *more: str) -> list[str]:
    tables = {s: [str(runs / f"members/{m}/predictions/{s}.parquet") for m in MEMBERS]
              for s in ("val", "test")}  # fmt: skip
    out = ["-o", str(runs / "ensemble"), "--draws", "100"]
    return ["ensemble", "--val", *tables["val"], "--test", *tables["test"], *out, *more]


def test_a_ensemble_is_fitted_judged_saved_and_reported(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--attribute", "body_part", "--attend", "elbow", "--voter", "per_part"]
    assert main(_arguments(runs, *more)) == 0
    said = capsys.readouterr().out
    assert "The ensemble (per_part) reaches accuracy" in said
    assert "report.html" in said
    folder = runs / "ensemble"
    names = ["none", "simple", "comminuted"]
    ensemble = load(folder, [f"hash of {m}" for m in MEMBERS], names)
    assert ensemble.kind == "per_part"
    tables = [PredictionTable.read(runs / f"members/{m}/predictions/test.parquet") for m in MEMBERS]
    parts = tables[0].rows["body_part"].to_numpy(dtype=object)
    again = ensemble(np.stack([t.probabilities for t in tables]), parts)
    written = PredictionTable.read(folder / "predictions" / "test.parquet")
    np.testing.assert_allclose(written.probabilities, again, atol=1e-6)
    assert read_results(folder / "results.json").meta["voter"] == "per_part"


def test_a_members_figure_of_zero_counts_in_the_mean() -> None:
    val, test = (
        dict(zip(MEMBERS, experts(200, split, at), strict=True))
        for at, split in enumerate(("val", "test"))
    )
    fitted = fit_voters(val)
    judged = evaluate_voters(fitted, test, draws=50)
    for values, mean in (((0.0, 0.6, 0.9), "0.5000"), ((None, 0.6, 0.9), "-")):
        members = {
            name: {**each, "accuracy": replace(each["accuracy"], value=value)}
            for (name, each), value in zip(judged.members.items(), values, strict=True)
        }
        shown = summary(fitted, replace(judged, members=members))
        assert list(shown.columns[1].cells)[-1] == mean


def test_disputed_images_are_shown(runs: Path) -> None:
    rng = np.random.default_rng(0)
    for at in range(500):
        cv2.imwrite(str(runs / f"test{at}.png"), rng.integers(0, 255, (20, 30), np.uint8))
    for split in ("val", "test"):
        for path in runs.glob(f"members/*/predictions/{split}.parquet"):
            table = PredictionTable.read(path)
            replace(table, rows=table.rows.assign(id=table.rows["id"] + ".png")).write(path)
    assert main(_arguments(runs, "--images", str(runs))) == 0
    assert 'class="thumbnails"' in (runs / "ensemble" / "report.html").read_text()


def test_wrong_tables_are_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = _arguments(runs)
    at = swapped.index("--test")
    swapped[2], swapped[at + 1] = swapped[at + 1], swapped[2]
    assert main(swapped) == 2
    assert "--test first: holds split 'val'" in capsys.readouterr().err
    assert main(_arguments(runs, "--voter", "per_part")) == 2
    assert "--voter per_part: it needs --attribute" in capsys.readouterr().err
    table = PredictionTable.read(runs / "members/second/predictions/test.parquet")
    path = runs / "members/second/predictions/test.parquet"
    replace(table, meta={"weights": "x"}).write(path)
    assert main(_arguments(runs)) == 2
    assert "second: --val comes from weights hash of second, --test from x" in (
        capsys.readouterr().err
    )
    assert not (runs / "ensemble").exists()


def test_nobody_is_judged_on_images_that_fitted_the_voters(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under another manifest the same images may be called test."""
    for name in MEMBERS:
        folder = runs / "members" / name / "predictions"
        val = PredictionTable.read(folder / "val.parquet")
        again = val.rows.assign(split="test")
        replace(val, rows=again).write(folder / "test.parquet")
    assert main(_arguments(runs)) == 2
    said = capsys.readouterr().err
    assert "--test first: 500 of its ids are in --val as well, 'val0' for one" in said


def test_members_are_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(runs / "members" / name) for name in MEMBERS]
    out = runs / "compare"
    assert main(["compare", *folders, "-o", str(out), "--draws", "100"]) == 0
    assert "reaches the highest accuracy" in capsys.readouterr().out
    read = read_results(out / "results.json")
    assert {"member/first", "difference/first & second"} <= set(read.others)
    csv = pd.read_csv(out / "figures.csv")
    found = csv[(csv["member"] == "third") & (csv["figure"] == "accuracy")]["value"].item()
    assert found == pytest.approx(read.others["member/third"]["accuracy"].value)
    page = (out / "report.html").read_text()
    for heading in ("Strengths per class", "Paired differences", "Diversity", "Learning: first"):
        assert heading in page


def test_a_run_without_its_table_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    assert "no prediction table" in capsys.readouterr().err
