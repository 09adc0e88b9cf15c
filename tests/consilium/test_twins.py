"""The twins of the five studies, from nothing to a report whose gates are evaluated."""

from pathlib import Path

import pandas as pd
import pytest

from consilium.cli.main import main
from consilium.experiments.config import read_study
from evaluation.results import read_results

STUDIES = Path(__file__).parents[2] / "configs/studies"
TWINS = sorted(STUDIES.glob("*_twin.yaml"))
PAGE = {
    "": ("Gates", "Cost", "Audit", "How this was made"),
    "fracture_twin": ("Councils and members", "Weights", "Diversity and accuracy", "Confusion"),
    "fundus_twin": ("council-old_4: every voter of", "council-all_7: every voter of"),
    "mura_twin": ("By study", "The council (part_attention) by body_part"),
    "chest_sparse_twin": ("Sparse against dense", "Changed decisions", "Sensitivity of each class"),
    "gradcam_twin": ("ROC of all",),
}


def test_each_of_the_five_has_a_twin_like_it():
    assert len(TWINS) == 5
    for file in TWINS:
        twin, study = read_study(file), read_study(str(file).replace("_twin", ""))
        for name in twin.members.keys() - twin.controls.keys():
            own = study.members[name]
            assert twin.members[name][: len(own)] == own, name
        assert (twin.councils, twin.voter, twin.attend) == (
            study.councils, study.voter, study.attend)  # fmt: skip


@pytest.mark.parametrize("file", TWINS, ids=lambda file: file.stem)
def test_a_twin_goes_through(file, tmp_path, monkeypatch, capsys):
    """The real command; 0 only if nothing failed and every gate passed."""
    monkeypatch.chdir(tmp_path)
    assert main(["study", "run", str(file), "--jobs", "2"]) == 0, capsys.readouterr().out
    folder, study = tmp_path / "runs" / file.stem, read_study(file)
    results = read_results(folder / "results.json")
    assert set(results.gates) == set(study.gates)
    assert study.gates
    assert all(results.gates.values())
    assert set(results.others) == {*study.members, *study.councils}
    page = (folder / "report.html").read_text()
    for heading in (*PAGE[""], *PAGE[file.stem], *(f"Learning: {name}" for name in study.members)):
        assert heading in page, heading
    members = pd.read_csv(folder / "results/members.csv")
    assert set(members["run"]) == set(study.members)
    if study.maps is not None:
        maps = pd.read_csv(folder / "results/maps.csv")
        council = [name for name in maps["member"] if name.startswith("council: council")]
        assert len(maps) == len(council) * (len(study.members) + 1)
        assert "council: where it looks" in page
    cost = pd.read_csv(folder / "results/cost.csv")
    assert (cost[["parameters", "MACs an image", "seconds"]] > 0).all(axis=None)
