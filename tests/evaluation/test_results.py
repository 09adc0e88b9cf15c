from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.results import (
    ExperimentFolder,
    Results,
    read_results,
    voters_folder,
    write_results,
)
from evaluation.stats.estimate import Estimate


@pytest.fixture
def results() -> Results:
    accuracy = Estimate(0.9, 0.8, 0.95, "Wilson", 50, 50)
    missing = Estimate(None, None, None, "DeLong", 50, 50, "class 'c' has no image")
    return Results(
        "ensemble",
        "test",
        ["a", "b"],
        {"accuracy": accuracy, "auroc": missing},
        others={"soft": {"accuracy": accuracy}},
        measures={"latency_ratio_measured": None},
    )


def test_results_are_the_same_after_writing_and_reading(results: Results, tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results


@pytest.mark.parametrize("value", [float("nan"), None])
def test_nan_and_null_without_a_reason_are_not_written(
    results: Results, value: float | None, tmp_path: Path
) -> None:
    invalid = replace(results, metrics={"accuracy": Estimate(value, None, None, "x", 1, 1)})
    with pytest.raises(ValueError, match="metrics: accuracy"):
        write_results(tmp_path / "r.json", invalid)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 9', "schema and version"),
        ('"split"', '"spilt"', "spilt"),
        ("{", "[", "not JSON"),
    ],
)
def test_other_files_are_errors_with_the_file_name(
    results: Results, tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "results.json"
    write_results(path, results)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=f"results.json.*{message}"):
        read_results(path)


def test_experiment_folder_lists_its_finished_runs(tmp_path: Path) -> None:
    for name in ("members/b", "members/a", "ensemble"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").touch()
    (tmp_path / "ensemble/ensemble.json").touch()
    (tmp_path / "members/unfinished").mkdir()
    folder = ExperimentFolder(tmp_path)
    assert (folder.members, folder.ensembles) == (["a", "b"], ["ensemble"])
    assert folder.first_run == folder.run("ensemble") == tmp_path / "ensemble"
    assert folder.config_file("a") == str(tmp_path / "members/a/config.yaml")
    with pytest.raises(ValueError, match="no run 'c'; there are a, b, ensemble"):
        folder.run("c")
    with pytest.raises(ValueError, match="no finished member"):
        ExperimentFolder(tmp_path / "missing")


@pytest.mark.parametrize(
    ("ensemble", "voters"),
    [
        ("ensemble", "voters"),
        ("ensemble-all_7", "voters-all_7"),
        ("ensemble-seed0-fold1", "voters-seed0-fold1"),
        ("chosen", "voters"),
    ],
)
def test_each_ensemble_has_its_own_folder_of_voters(ensemble: str, voters: str) -> None:
    assert voters_folder(Path("runs/x") / ensemble) == Path("runs/x") / voters
