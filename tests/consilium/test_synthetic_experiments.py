"""The twins of the five studies, from nothing to a report whose gates are evaluated."""

from pathlib import Path

import pandas as pd
import pytest

from consilium.cli.main import main
from consilium.experiments.config import read_study
from evaluation.results import read_results

STUDIES = Path(__file__).parents[2] / "configs/experiments"
TWINS = sorted(STUDIES.glob("*_synthetic.yaml"))
PAGE = {
    "": ("Gates", "Cost", "Audit", "How this was made"),
    "fracture_synthetic": (
        "Ensembles and members",
        "Weights",
        "Diversity and accuracy",
        "Confusion",
    ),
    "fundus_synthetic": ("ensemble-old_4: every voter of", "ensemble-all_7: every voter of"),
    "mura_synthetic": ("By study", "The ensemble (part_attention) by body_part"),
    "chest_sparse_synthetic": (
        "Sparse against dense",
        "Changed decisions",
        "Sensitivity of each class",
    ),
    "gradcam_synthetic": ("ROC of all",),
}


def test_each_of_the_five_has_a_twin_like_it():
    assert len(TWINS) == 5
    for file in TWINS:
        twin, study = read_study(file), read_study(str(file).replace("_synthetic", ""))
        for name in twin.members.keys() - twin.controls.keys():
            own = study.members[name]
            assert twin.members[name][: len(own)] == own, name
        assert (twin.ensembles, twin.voter, twin.attend) == (
            study.ensembles, study.voter, study.attend)  # fmt: skip


@pytest.mark.parametrize("file", TWINS, ids=lambda file: file.stem)
def test_a_twin_goes_through(file, tmp_path, monkeypatch, capsys):
    """The real command; 0 only if nothing failed and every gate passed."""
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "run", str(file), "--jobs", "2"]) == 0, capsys.readouterr().out
    folder, study = tmp_path / "runs" / file.stem, read_study(file)
    results = read_results(folder / "results.json")
    assert set(results.gates) == set(study.gates)
    assert study.gates
    assert all(results.gates.values())
    assert set(results.others) == {*study.members, *study.ensembles}
    page = (folder / "report.html").read_text()
    for heading in (*PAGE[""], *PAGE[file.stem], *(f"Learning: {name}" for name in study.members)):
        assert heading in page, heading
    members = pd.read_csv(folder / "results/members.csv")
    assert set(members["run"]) == set(study.members)
    if study.maps is not None:
        maps = pd.read_csv(folder / "results/maps.csv")
        ensemble = [name for name in maps["member"] if name.startswith("ensemble: ensemble")]
        assert len(maps) == len(ensemble) * (len(study.members) + 1)
        assert "ensemble: where it looks" in page
    cost = pd.read_csv(folder / "results/cost.csv")
    assert (cost[["parameters", "MACs an image", "seconds"]] > 0).all(axis=None)
