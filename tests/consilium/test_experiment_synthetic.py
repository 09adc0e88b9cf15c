"""The `*_synthetic.yaml` experiments, from nothing to a report whose gates are evaluated."""

from pathlib import Path

import pandas as pd
import pytest

from consilium.cli.main import main
from consilium.experiments.config import load_experiment
from evaluation.results import read_results
from tests.conftest import ROOT

SYNTHETIC = sorted((ROOT / "configs/experiments").glob("*_synthetic.yaml"))
LONGEST = ROOT / "configs/experiments/gradcam_synthetic.yaml"  # has a file of its own
HEADINGS = {
    "": ("Gates", "Cost", "Audit", "How this report was made"),
    "fracture_synthetic": ("Ensembles and members", "Member weights", "Diversity and accuracy",
                           "Confusion"),
    "fundus_synthetic": ("ensemble-old_4: every voter of", "ensemble-all_7: every voter of"),
    "mura_synthetic": ("By study", "Subgroups: ensemble", "Metrics of groups: ensemble"),
    "chest_sparse_synthetic": ("Sparse minus dense", "Changed decisions"),
    "gradcam_synthetic": ("ROC of all",),
}  # fmt: skip


def test_each_of_the_five_systems_has_a_synthetic_experiment_with_its_members():
    assert len(SYNTHETIC) == 5
    for file in SYNTHETIC:
        synthetic = load_experiment(file)
        original = load_experiment(str(file).replace("_synthetic", ""))
        for name in synthetic.members.keys() - synthetic.controls.keys():
            layers = original.members[name]
            assert synthetic.members[name][: len(layers)] == layers, name
        for key in ("ensembles", "voter", "attended_values"):
            assert getattr(synthetic, key) == getattr(original, key)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("drawn_plots")
@pytest.mark.parametrize(
    "file", [file for file in SYNTHETIC if file != LONGEST], ids=lambda file: file.stem
)
def test_a_synthetic_experiment_passes_every_gate(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    require_gates(file, tmp_path, capsys)


def require_gates(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs the command of a user, which is 0 only if nothing failed and every gate passed."""
    assert main(["experiment", "run", str(file), "--jobs", "2"]) == 0, capsys.readouterr().out
    folder, config = tmp_path / "runs" / file.stem, load_experiment(file)
    results = read_results(folder / "results.json")
    assert config.gates
    assert set(results.gates) == set(config.gates)
    assert all(results.gates.values())
    assert set(results.others) == {*config.members, *config.ensembles}
    page = (folder / "report.html").read_text()
    curves = (f"Learning: {name}" for name in config.members)
    for heading in (*HEADINGS[""], *HEADINGS[file.stem], *curves):
        assert heading in page, heading
    members = pd.read_csv(folder / "results/members.csv")
    assert set(members["run"]) == set(config.members)
    if config.saliency is not None:
        saliency = pd.read_csv(folder / "results/saliency.csv")
        ensemble = [name for name in saliency["member"] if name.startswith("ensemble (")]
        assert len(saliency) == len(ensemble) * (len(config.members) + 1)
        assert "Saliency maps of ensemble" in page
    cost = pd.read_csv(folder / "results/cost.csv")
    assert (cost[["parameters", "MACs per image", "seconds"]] > 0).all(axis=None)
