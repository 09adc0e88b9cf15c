"""The page and the tables of a study, from run folders whose figures are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from consilium.cli.main import main
from consilium.experiments.config import ExperimentConfig, read_study
from consilium.experiments.plan import plan
from consilium.experiments.results import figures_of, gates, read_runs, subjects
from consilium.experiments.sections import seeds_folds, sparsity
from consilium.inference import saliency_evaluation
from datamodules.preprocess import Preprocess
from evaluation import saliency
from evaluation.files import write_json
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports.run import MAIN
from evaluation.results import Results, read_results, write_results
from evaluation.saliency import Measured
from evaluation.stats.estimate import Estimate
from lightning_modules import ImageClassifier
from tests.consilium.saved import saved

NAMES = ["none", "simple", "comminuted"]


def told(rng: np.random.Generator, ids: range, right: float) -> PredictionTable:
    """Three classes, of which a share is named rightly."""
    label = np.array(ids) % 3
    said = np.where(rng.random(len(ids)) < right, label, (label + 1) % 3)
    logits = np.eye(3)[said] * 2 + rng.normal(0, 0.1, (len(ids), 3))
    names = [f"p{n:05d}" for n in ids]
    rows = pd.DataFrame({"id": names, "label": label, "split": "test", "patient": names,
                         "study": names})  # fmt: skip
    return PredictionTable(rows, logits, NAMES, {"manifest_digest": "same"})


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a study and the folders of all its members, and returns its command's arguments."""
    monkeypatch.chdir(tmp_path)
    data = {"class_path": "datamodules.ImageDataModule", "init_args": {
        "source": {"class_path": "datamodules.Phantoms", "init_args": {
            "patients": 12, "films": 1, "size": 32}},
        "class_names": NAMES, "preprocess": {"size": 32}}}  # fmt: skip
    config = {"data": data, "model": {"init_args": {"backbone": "test_resnet"}}}
    for name in ("base", "a", "b"):
        Path(f"{name}.yaml").touch()

    def written(said: dict, leave: int = 0) -> tuple[ExperimentConfig, list[str]]:
        said = {"base": "base.yaml", "members": {"a": "a.yaml", "b": "b.yaml"}, **said}
        Path("s.yaml").write_text(yaml.safe_dump(said))
        study, rng = read_study("s.yaml"), np.random.default_rng(0)
        runs = plan(study, Path("out"))
        for at, run in enumerate(runs[: len(runs) - leave]):
            fold = at // len(study.members) % study.folds if study.folds else 0
            table = told(rng, range(200 * fold, 200 * fold + 200), 0.6 + 0.02 * at)
            table.write(run.folder / "predictions/test.parquet")
            found = Results(run.name, "test", NAMES, compute_metrics(table, 200), meta=table.meta)
            write_results(run.folder / "results.json", found)
            history = pd.DataFrame({"epoch": [0, 1], "seconds": [2.0, 3.0], "train/loss": [1, 0.5]})
            history.to_csv(run.folder / "history.csv", index=False)
            (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
        return study, ["experiment", "report", "s.yaml", "--output", "out"]

    return written


def accuracy(run: str) -> tuple[int, int]:
    table = PredictionTable.read(Path("out/members") / run / "predictions/test.parquet")
    return int((table.logits.argmax(1) == table.labels).sum()), len(table)


def test_seeds_are_told_apart_from_test_intervals(write):
    _, args = write({"seeds": [3, 4, 5]})
    assert main(args) == 0
    page = Path("out/report.html").read_text()
    assert "a-seed3 &amp; b-seed3" in page  # members are set side by side in one round
    assert "a-seed4 &amp; b-seed4" not in page
    seeds = pd.read_csv("out/results/seeds.csv")
    one = seeds[(seeds["run"] == "a") & (seeds["figure"] == "accuracy")].iloc[0]
    values = [np.divide(*accuracy(f"a-seed{seed}")) for seed in (3, 4, 5)]
    assert one[["mean", "sd", "least", "greatest", "seeds"]].tolist() == pytest.approx(
        [np.mean(values), np.std(values, ddof=1), min(values), max(values), 3])  # fmt: skip
    page = Path("out/report.html").read_text()
    assert "Over seeds" in page
    assert "neither holds the other" in page
    assert "Over folds" not in page


def test_folds_are_pooled_over_images_and_not_averaged(write):
    _, args = write({"folds": 3})
    assert main(args) == 0
    folds = pd.read_csv("out/results/folds.csv").set_index(["run", "figure"])
    hits, images = np.sum([accuracy(f"b-fold{fold}") for fold in range(3)], axis=0)
    assert images == 200 + 200 + 200
    found = folds.loc[("b", "accuracy")]
    assert found["value"] == pytest.approx(hits / images)
    assert found["n"] == images
    areas = [read_results(f"out/members/b-fold{k}/results.json").metrics["auroc"] for k in range(3)]
    assert folds.loc[("b", "auroc"), "value"] == pytest.approx(np.mean([a.value for a in areas]))
    assert np.isnan(folds.loc[("b", "auroc"), "low"])
    assert "Over folds" in Path("out/report.html").read_text()


def test_what_goes_by_the_order_of_scores_is_never_pooled_over_folds(write):
    _, args = write({"folds": 3})
    assert main(args) == 0
    folds = pd.read_csv("out/results/folds.csv").set_index(["run", "figure"]).loc["a"]
    each = [read_results(f"out/members/a-fold{k}/results.json").metrics for k in range(3)]
    ordered = [n for n in each[0] if n.startswith(("auroc", "average_precision", "sensitivity_at"))]
    assert len(ordered) == 3 * (1 + len(NAMES))
    means = [np.mean([found[name].value for found in each]) for name in ordered]
    assert folds.loc[ordered, "value"].tolist() == pytest.approx(means)
    assert folds.loc[ordered, ["low", "high"]].isna().all(axis=None)
    assert folds.drop(ordered)["low"].notna().all()


def test_a_figure_of_zero_counts_over_seeds_and_one_that_is_missing_does_not():
    study = ExperimentConfig("s", "s", Path(), {"a": ()}, seeds=[1, 2])
    found = {name: Estimate(1.0, 1.0, 1.0, "known", 9, 9) for name in MAIN}
    changed = (
        Estimate(0.0, 0.0, 0.0, "known", 9, 9),
        Estimate(None, None, None, "none", 0, 0, "lost"),
    )
    other = dict(zip(("accuracy", "auroc"), changed, strict=True))
    seeds = seeds_folds.over_seeds(study, {("a", 1): found, ("a", 2): found | other})
    seeds = seeds.set_index("figure")
    assert seeds.loc["accuracy", ["mean", "least"]].tolist() == [0.5, 0.0]
    assert np.isnan(seeds.loc["auroc", "mean"])


def test_a_gate_asks_the_weakest_and_a_missing_run_does_not_pass(write):
    asked = {"members.accuracy": 0.1, "a.recall/*": 0.99, "b.accuracy": 0.0}
    study, args = write({"gates": asked}, leave=1)
    runs = read_runs(study, Path("out"))
    assert subjects(study, "members") == ["a", "b"]
    found = {gate.name: gate for gate in gates(study, runs)}
    assert [gate.passed for gate in found.values()] == [False, False, False]
    assert "1 not measured" in found["members.accuracy"].found
    recalls = figures_of(study, "a.recall/*", runs)
    assert set(recalls) == {f"a.recall/{name}" for name in NAMES}
    weakest = min(recalls, key=lambda at: recalls[at].value)
    assert weakest in found["a.recall/*"].found
    assert main(args) == 1
    assert "Not done yet, and not in this report: b." in Path("out/report.html").read_text()


def test_claims_cost_and_audit_stand_in_page_and_tables(write):
    claim = {"claimed": 0.99, "believable": [0.2, 0.3], "why": "it has been seen"}
    _, args = write({"claims": {"members.accuracy": claim}})
    assert main(args) == 0
    claims = pd.read_csv("out/results/claims.csv")
    assert claims["verdict"].tolist() == ["above", "above"]
    cost = pd.read_csv("out/results/cost.csv")
    assert cost["seconds"].tolist() == [5.0, 5.0]
    page = Path("out/report.html").read_text()
    for words in ("Claims", "it has been seen", "0.2 to 0.3", "Cost", "test_resnet", "Audit",
                  "libraries"):  # fmt: skip
        assert words in page, words
    assert len(list(Path("out/audit").glob("*/audit.html"))) == 1
    tables = yaml.safe_load(Path("out/results/tables.json").read_text())
    assert set(tables) == {"members", "claims", "cost"}


def test_the_cost_is_that_of_the_network_that_was_trained(write):
    _, args = write({"members": {name: "a.yaml" for name in ("whole", "thin", "gone")}})
    sizes = {}
    for name, more in (("whole", {}), ("thin", {"channels": [16, 24, 24, 48]})):
        module = ImageClassifier(NAMES, "test_resnet", image_size=32, backbone_args=more)
        saved(module, Preprocess(size=32), Path(f"out/members/{name}/best.ckpt"))
        sizes[name] = sum(parameter.numel() for parameter in module.net.parameters())
    assert main(args) == 0
    cost = pd.read_csv("out/results/cost.csv").set_index("member")
    assert cost["parameters"].to_dict() == pytest.approx({**sizes, "gone": np.nan}, nan_ok=True)
    assert cost.loc["thin", "MACs an image"] < 0.8 * cost.loc["whole", "MACs an image"]
    assert np.isnan(cost.loc["gone", "MACs an image"])
    assert f"{sizes['thin']:,}" in Path("out/report.html").read_text()


def test_sparse_members_are_held_against_their_controls(write):
    _, args = write({"control": {"whole": ["a", "b"]}})
    rows = PredictionTable.read(Path("out/members/a/predictions/test.parquet"))
    for name in ("b", "whole"):
        path = Path("out/members") / name / "predictions/test.parquet"
        PredictionTable(rows.rows, PredictionTable.read(path).logits, NAMES, rows.meta).write(path)
    known = {"weights_zero_fraction": 0.7, "macs_theoretical_ratio": 0.4,
             "latency_ratio_measured": None}  # fmt: skip
    write_json(Path("out/members/a/sparsity.json"), known)
    assert main(args) == 0
    found = pd.read_csv("out/results/sparse.csv")
    assert found["sparse"].tolist() == ["a", "b"]
    hits = {name: accuracy(name)[0] for name in ("a", "b", "whole")}
    assert found["accuracy_value"].tolist() == pytest.approx(
        [(hits[name] - hits["whole"]) / 200 for name in ("a", "b")])  # fmt: skip
    page = Path("out/report.html").read_text()
    assert "Sparse against dense" in page
    assert "b against whole" in page
    assert ">nan<" not in page  # what is not known of b is a dash


def test_every_changed_decision_stands_in_a_file(write):
    _, args = write({"control": {"whole": ["a"]}, "seeds": [3, 4]})
    assert main(args) == 0
    found = pd.read_csv("out/results/changed.csv", dtype={"id": str})
    assert list(found) == ["sparse", "control", "id", "label", "control_said", "sparse_said",
                           "control_probability", "sparse_probability"]  # fmt: skip
    for seed in (3, 4):
        own = found[found["sparse"] == f"a-seed{seed}"].set_index("id")
        tables = {n: PredictionTable.read(f"out/members/{n}-seed{seed}/predictions/test.parquet")
                  for n in ("a", "whole")}  # fmt: skip
        said = {name: table.logits.argmax(1) for name, table in tables.items()}
        differ = np.flatnonzero(said["a"] != said["whole"])
        assert own.index.tolist() == tables["a"].rows["id"].iloc[differ].tolist()
        at, one = differ[0], own.iloc[0]
        assert one[["control", "label", "control_said", "sparse_said"]].tolist() == [
            f"whole-seed{seed}", NAMES[tables["a"].labels[at]], NAMES[said["whole"][at]],
            NAMES[said["a"][at]]]  # fmt: skip
        assert one["sparse_probability"] == pytest.approx(tables["a"].probabilities[at].max())
        assert one["control_probability"] == pytest.approx(tables["whole"].probabilities[at].max())
    tables = yaml.safe_load(Path("out/results/tables.json").read_text())
    assert len(tables["changed"]) == len(found)
    assert f"{len(found)} decisions changed" in Path("out/report.html").read_text()


def test_every_sparse_arm_has_a_row_in_the_picture(write):
    study, args = write({"control": {"whole": ["a", "b"]}, "seeds": [3, 4]})
    for seed, zeros in ((3, 0.7), (4, 0.8)):
        known = {"weights_zero_fraction": zeros, "macs_theoretical_ratio": 0.4,
                 "latency_ratio_measured": None}  # fmt: skip
        write_json(Path(f"out/members/b-seed{seed}/sparsity.json"), known)
    (Path("out/members/a-seed4/results.json")).unlink()  # a's mean is over one of two: not drawn
    found = sparsity.pairs(study, read_runs(study, Path("out")))
    each, whole = sparsity.gaps(found, Path("out")), sparsity.means(study, found, Path("out"))
    first, second = sparsity.arms(study, each, whole)
    assert (first.name, first.zeros, first.whole, len(first.runs)) == ("a", None, None, 1)
    assert second.label == "b, 75.0 % zeros\nminus whole"
    assert second.runs == [figure.value for figure in each["accuracy"][1:]]
    assert second.whole == whole["accuracy"][0]
    assert main(args) == 0
    assert "Every sparse arm" in Path("out/report.html").read_text()


def test_an_arm_of_one_run_has_the_interval_of_its_pair(write):
    study, _ = write({"control": {"whole": ["a"]}})
    found = sparsity.pairs(study, read_runs(study, Path("out")))
    each, whole = sparsity.gaps(found, Path("out")), sparsity.means(study, found, Path("out"))
    [arm] = sparsity.arms(study, each, whole)
    assert (arm.whole.value, arm.whole.low, arm.whole.high) == pytest.approx(
        [getattr(each["accuracy"][0], end) for end in ("value", "low", "high")])  # fmt: skip
    assert sparsity.over_seeds(study, whole).empty


def test_sparse_members_of_several_seeds_have_one_mean(write):
    study, args = write({"control": {"whole": ["b"]}, "seeds": [3, 4]})
    assert main(args) == 0
    found = pd.read_csv("out/results/sparse_seeds.csv")
    gaps = [(accuracy(f"b-seed{s}")[0] - accuracy(f"whole-seed{s}")[0]) / 200 for s in (3, 4)]
    assert found[["sparse", "control", "seeds"]].values.tolist() == [["b", "whole", 2]]
    assert found["accuracy_value"].tolist() == pytest.approx([np.mean(gaps)])
    assert found["accuracy_low"][0] < np.mean(gaps) < found["accuracy_high"][0]
    assert "the mean over seeds of the paired difference" in Path("out/report.html").read_text()
    (Path("out/members/whole-seed4/results.json")).unlink()  # a seed is missing: no mean of one
    assert main(args) == 0
    assert sparsity.beside(study, read_runs(study, Path("out")), Path("out")).means.empty


def test_an_arm_of_folds_is_judged_on_the_images_of_all(write):
    study, _ = write({"control": {"whole": ["a"]}, "folds": 3})
    found = sparsity.pairs(study, read_runs(study, Path("out")))
    each, whole = sparsity.gaps(found, Path("out")), sparsity.means(study, found, Path("out"))
    [arm] = sparsity.arms(study, each, whole)
    assert len(arm.runs) == 3
    assert arm.whole.n == 3 * 200
    assert arm.whole.value == pytest.approx(np.mean(arm.runs))


def test_measured_maps_stand_in_page_and_tables(write):
    _, args = write({"maps": {"methods": ["GradCAM"]}})
    found = [Measured("p1", True, 0.4, 0.1, 0.8), Measured("p2", False, 0.2, 0.3, 0.7)]
    saliency_evaluation.write(Path("out/maps/b"), [("b", "GradCAM", saliency.figures(found))])
    assert main(args) == 0
    maps = pd.read_csv("out/results/maps.csv").set_index("figure")
    assert set(maps["member"]) == {"b"}  # those of a have not been measured
    assert maps["value"].to_dict() == pytest.approx(
        {"pointing": 0.5, "energy_in_box": 0.3, "deletion": 0.2, "insertion": 0.75})  # fmt: skip
    page = Path("out/report.html").read_text()
    assert "Faithfulness" in page
    assert "Not done yet, and not in this report: maps-a." in page


def test_a_table_that_has_become_empty_leaves_no_file_of_an_earlier_report(write):
    _, args = write({"gates": {"a.accuracy": 0.1}})
    assert main(args) == 0
    assert Path("out/results/gates.csv").is_file()
    _, args = write({})
    assert main(args) == 0
    assert not Path("out/results/gates.csv").exists()
    assert Path("out/results/members.csv").is_file()


def test_the_notes_of_all_runs_stand_in_the_page_each_once(write):
    _, args = write({})
    for name, notes in {"a": ["every one", "of a alone"], "b": ["of b alone", "every one"]}.items():
        file = Path(f"out/members/{name}/results.json")
        found = read_results(file)
        write_results(file, replace(found, meta={**found.meta, "notes": notes}))
    assert main(args) == 0
    page = Path("out/report.html").read_text()
    assert [page.count(note) for note in ("every one", "of a alone", "of b alone")] == [1, 1, 1]


def test_a_study_of_which_nothing_is_done_says_so(write, capsys):
    _, args = write({}, leave=2)
    assert main(args) == 2
    assert "no run of the study s is done" in capsys.readouterr().err
