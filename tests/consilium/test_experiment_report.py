"""Report, results.json and CSV files of experiments, from run folders with known metrics."""

import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.sparse import csr_matrix

from consilium.cli.main import main
from consilium.experiments.config import ExperimentConfig, load_experiment
from consilium.experiments.plan import plan, run_names
from consilium.experiments.report import lead_text, sections, summary_lines, summary_metrics_by_row
from consilium.experiments.results import evaluate_gates, find_estimates, load_results
from consilium.experiments.run import Run
from consilium.experiments.sections import appendix, seeds_folds
from consilium.inference import saliency_evaluation
from datamodules.preprocess import Preprocess
from evaluation import ensemble, saliency
from evaluation.files import write_json
from evaluation.metrics import calibration, compute, conformal
from evaluation.metrics.registry import METRICS, MetricSpec, summary_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports.html import format_estimate, format_sample_size
from evaluation.reports.subgroups import subgroup_sentence
from evaluation.results import Results, read_results, write_results
from evaluation.stats import bootstrap
from evaluation.stats.estimate import Estimate
from evaluation.subgroups import compute_subgroups
from lightning_modules import ImageClassifier
from tests.consilium.untrained import save_checkpoint

NAMES = ["none", "simple", "comminuted"]
SOURCE = {"num_patients": 12, "images_per_patient": 1, "image_size": 32}
DATA: dict[str, Any] = {
    "class_path": "datamodules.ImageDataModule",
    "init_args": {
        "source": {"class_path": "datamodules.Phantoms", "init_args": SOURCE},
        "class_names": NAMES,
        "preprocess": {"size": 32},
    },
}
AUDIT = Path("out/audit/same")  # by the manifest digest of the tables
CONFIG = {"data": DATA, "model": {"init_args": {"backbone": "test_resnet"}}}


def random_table(
    rng: np.random.Generator, ids: range, accuracy: float, split: str = "test"
) -> PredictionTable:
    """Predictions of three classes, of which about this fraction is right."""
    label = np.array(ids) % 3
    predicted = np.where(rng.random(len(ids)) < accuracy, label, (label + 1) % 3)
    logits = np.eye(3)[predicted] * 2 + rng.normal(0, 0.1, (len(ids), 3))
    names = [f"{split[0]}{n:05d}" for n in ids]
    rows = pd.DataFrame({"id": names, "label": label, "split": split, "patient": names,
                         "study": names, "site": np.where(label == 0, "x", "y")})  # fmt: skip
    return PredictionTable(rows, logits, NAMES, {"manifest_digest": "same"})


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the audit of the members' data."""
    folder = tmp_path_factory.mktemp("audited")
    data, phantoms = DATA["init_args"], {**SOURCE, "root": str(folder / "phantoms")}
    source = {"class_path": "datamodules.Phantoms", "init_args": phantoms}
    content = {**DATA, "init_args": {**data, "source": source}}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    arguments = ["--config", str(folder / "data.yaml"), "-o", str(folder / "audit")]
    assert main(["audit", *arguments]) == 0
    return folder / "audit"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, audit: Path):
    """Writes an experiment and the folders of its members; returns the arguments of its report."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(audit, AUDIT)
    for name in ("base", "a", "b", "ensemble"):
        Path(f"{name}.yaml").touch()

    def write_experiment(content: dict, unfinished: int = 0) -> tuple[ExperimentConfig, list[str]]:
        content = {"base": "base.yaml", "members": {"a": "a.yaml", "b": "b.yaml"}, **content}
        Path("s.yaml").write_text(yaml.safe_dump(content))
        config, rng = load_experiment("s.yaml"), np.random.default_rng(0)
        members = [run for run in plan(config, Path("out")) if run.arguments[0] == "fit"]
        for at, run in enumerate(members[: len(members) - unfinished]):
            fold = at // len(config.members) % config.folds if config.folds else 0
            ids = range(200 * fold, 200 * fold + 200)
            random_table(rng, ids, 0.6 + 0.02 * at, "val").write(
                run.folder / "predictions/val.parquet"
            )
            write_run(run.folder, random_table(rng, ids, 0.6 + 0.02 * at))
        return config, ["experiment", "report", "s.yaml", "--output", "out"]

    return write_experiment


COMPUTED: dict[tuple[object, ...], dict[str, Estimate]] = {}  # tests share most of their tables


def write_run(folder: Path, table: PredictionTable) -> None:
    """The files of a finished run with these test predictions."""
    table.write(folder / "predictions/test.parquet")
    key = (table.logits.tobytes(), table.labels.tobytes(), *METRICS)
    metrics = COMPUTED.get(key) or compute.compute_metrics(table, 200)
    COMPUTED[key] = metrics
    groups = compute_subgroups(table)
    results = Results(folder.name, "test", NAMES, metrics, subgroups=groups, meta=table.meta)
    write_results(folder / "results.json", results)
    history = pd.DataFrame({"epoch": [0, 1], "seconds": [2.0, 3.0], "train/loss": [1, 0.5]})
    history.to_csv(folder / "history.csv", index=False)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))


def write_ensembles(config: ExperimentConfig) -> None:
    """Runs `consilium ensemble`, and writes the ensembles' run folders from its predictions."""
    for run in plan(config, Path("out")):
        if run.arguments[0] == "ensemble":
            assert main(run.arguments) == 0
        elif run.arguments[0] == "test":
            voters = run.inputs[0].folder / "predictions/test.parquet"
            write_run(run.folder, PredictionTable.read(voters))


@pytest.fixture
def disputed_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated images for the ids of the tables, which have no files."""
    monkeypatch.setattr(
        "consilium.experiments.sections.ensemble._disputed_images", lambda run, tables: []
    )


def accuracy(run: str) -> tuple[int, int]:
    """Number of right test predictions of a member's run, and of all."""
    table = PredictionTable.read(Path("out/members") / run / "predictions/test.parquet")
    return int((table.logits.argmax(1) == table.labels).sum()), len(table)


def test_the_spread_over_seeds_is_reported_apart_from_test_intervals(write):
    _, args = write({"seeds": [3, 4, 5]})
    assert main(args) == 0
    page = Path("out/report.html").read_text()
    assert "a-seed3 &amp; b-seed3" in page  # members are compared in one round
    assert "a-seed4 &amp; b-seed4" not in page
    seeds = pd.read_csv("out/results/seeds.csv")
    row = seeds[(seeds["run"] == "a") & (seeds["metric"] == "accuracy")].iloc[0]
    values = [np.divide(*accuracy(f"a-seed{seed}")) for seed in (3, 4, 5)]
    assert row[["mean", "sd", "min", "max", "seeds"]].tolist() == pytest.approx(
        [np.mean(values), np.std(values, ddof=1), min(values), max(values), 3])  # fmt: skip
    assert "Over seeds" in page
    assert "neither includes the other" in page
    assert "Over folds" not in page


def test_folds_are_pooled_over_images_and_ranking_metrics_are_averaged(write):
    _, args = write({"folds": 3})
    assert main(args) == 0
    folds = pd.read_csv("out/results/folds.csv").set_index(["run", "metric"])
    correct, images = np.sum([accuracy(f"b-fold{fold}") for fold in range(3)], axis=0)
    assert images == 200 + 200 + 200
    pooled = folds.loc[("b", "accuracy")]
    assert pooled["value"] == pytest.approx(correct / images)
    assert pooled["n"] == images
    assert "Over folds" in Path("out/report.html").read_text()
    of_folds = [read_results(f"out/members/b-fold{k}/results.json").metrics for k in range(3)]
    ranked = [
        name for name in of_folds[0]
        if name.startswith(("auroc", "average_precision", "sensitivity_at"))
    ]  # fmt: skip
    assert len(ranked) == 3 * (1 + len(NAMES))
    means = [np.mean([metrics[name].value for metrics in of_folds]) for name in ranked]
    own = folds.loc["b"]
    assert own.loc[ranked, "value"].tolist() == pytest.approx(means)
    assert own.loc[ranked, ["low", "high"]].isna().all(axis=None)
    of_one_class = ["tpr_gap/site"]  # site x has one class, so that there is nothing to compare
    assert own.drop([*ranked, *of_one_class])["low"].notna().all()


def test_a_metric_of_zero_counts_over_seeds_and_a_missing_one_does_not():
    config = ExperimentConfig("s", "s", {"a": []}, seeds=[1, 2])
    known = {name: Estimate(1.0, 1.0, 1.0, "known", 9, 9) for name in summary_metrics()}
    other = {
        "accuracy": Estimate(0.0, 0.0, 0.0, "known", 9, 9),
        "auroc": Estimate(None, None, None, "none", 0, 0, "lost"),
    }
    pooled = {("a", 1): known, ("a", 2): known | other}
    seeds = seeds_folds.spread_over_seeds(config, pooled).set_index("metric")
    assert seeds.loc["accuracy", ["mean", "min"]].tolist() == [0.5, 0.0]
    assert np.isnan(seeds.loc["auroc", "mean"])


def test_a_gate_is_about_the_worst_run_and_fails_if_one_is_missing(write):
    gates = {"members.accuracy": 0.1, "a.recall/*": 0.99, "b.accuracy": 0.0}
    config, args = write({"gates": gates}, unfinished=1)
    runs = load_results(config, Path("out")).runs
    assert run_names(config, "members") == ["a", "b"]
    evaluated = {gate.name: gate for gate in evaluate_gates(config, runs)}
    assert [gate.passed for gate in evaluated.values()] == [False, False, False]
    assert "1 not measured" in evaluated["members.accuracy"].measured
    recalls = find_estimates(config, "a.recall/*", runs)
    assert set(recalls) == {f"a.recall/{name}" for name in NAMES}
    worst = min(recalls, key=lambda name: recalls[name].value)
    assert worst in evaluated["a.recall/*"].measured
    assert main(args) == 1
    assert "Not done yet, and not in this report: b." in Path("out/report.html").read_text()


@pytest.mark.parametrize(("limit", "passed"), [(1e-3, False), (50.0, True)])
def test_the_gate_of_a_metric_that_is_better_when_lower_is_an_upper_limit(write, limit, passed):
    config, _ = write({"gates": {"members.nll": limit}})
    runs = load_results(config, Path("out")).runs
    [gate] = evaluate_gates(config, runs)
    worst = max(("a", "b"), key=lambda name: runs[name].metrics["nll"].value)
    assert (gate.required, gate.passed) == (f"at most {limit:g}", passed)
    assert f"({worst}.nll)" in gate.measured


def test_the_gate_of_a_metric_with_an_ideal_value_limits_the_distance_from_it(write):
    name = f"calibration_slope/{NAMES[0]}"
    config, _ = write({"gates": {f"a.{name}": 0.2, f"b.{name}": 0.2}})
    runs = load_results(config, Path("out")).runs
    for run, slope in (("a", 0.9), ("b", 1.3)):
        known = Estimate(slope, slope, slope, "known", 9, 9)
        runs[run] = replace(runs[run], metrics={**runs[run].metrics, name: known})
    gates = evaluate_gates(config, runs)
    assert [gate.passed for gate in gates] == [True, False]
    assert gates[1].required == "1 within 0.2"
    assert gates[1].measured == "1.3000"


@pytest.mark.exhaustive
@pytest.mark.usefixtures("disputed_ids")
def test_measures_val_metrics_and_voters_can_be_gates_and_claims(write):
    gates = {"a.weights_zero_fraction": 0.7, "a.density": 0.25, "members.training_minutes": 0.1,
             "ensemble.agreement": 0.1, "ensemble.learned/accuracy": 0.1, "a.val/accuracy": 0.5,
             "b.density": 0.3}  # fmt: skip
    claim = {"claimed": [0.7, 0.75], "believable": [0.5, 0.6], "why": "depthwise weights remain"}
    config, args = write({"ensemble": "ensemble.yaml", "gates": gates,
                          "claims": {"a.weights_zero_fraction": claim}})  # fmt: skip
    write_sparsity("a", 0.7, density=0.3)
    for name in ("a", "b"):
        results = read_results(f"out/members/{name}/results.json")
        table = PredictionTable.read(f"out/members/{name}/predictions/val.parquet")
        metrics = compute.compute_metrics(table, 200)
        write_results(f"out/members/{name}/results.val.json", replace(results, metrics=metrics))
    write_ensembles(config)
    assert main(args) == 1
    gated = pd.read_csv("out/results/gates.csv").set_index("name")
    assert gated["passed"].to_dict() == {**dict.fromkeys(gates, True), "a.density": False,
                                         "b.density": False}  # fmt: skip
    assert gated.loc["a.density", ["required", "measured"]].tolist() == ["at most 0.25", "0.3000"]
    assert "not measured" in gated.loc["b.density", "measured"]
    assert gated.loc["members.training_minutes", "measured"].startswith("0.0833")  # 5 seconds
    tables = [PredictionTable.read(f"out/members/{n}/predictions/test.parquet") for n in "ab"]
    agreement = np.mean(tables[0].predictions == tables[1].predictions)
    assert gated.loc["ensemble.agreement", "measured"] == f"{agreement:.4f}"
    claims = pd.read_csv("out/results/claims.csv")
    assert claims[["claimed", "measured", "position"]].values.tolist() == [
        ["0.7 to 0.75", 0.7, "above"]]  # fmt: skip
    assert "0.7 to 0.75" in Path("out/report.html").read_text()
    assert "agreement" not in read_results("out/results.json").others["ensemble"]


def test_a_registered_metric_is_in_report_gate_results_and_csv(write, monkeypatch):
    error_rate = MetricSpec(
        "error_rate", "Error rate", "confusion",
        lambda m: 1 - np.trace(m, axis1=-2, axis2=-1) / m.sum(axis=(-2, -1)),
        higher_is_better=False, in_summary=True, is_paired=True, meaning="Fraction wrong.",
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "error_rate", error_rate)
    _, args = write({"gates": {"members.error_rate": 0.9}, "controls": {"c": ["a"]}})
    assert main(args) == 0
    wrong = 1 - np.divide(*accuracy("a"))
    results = read_results("out/results.json")
    assert results.others["a"]["error_rate"].value == pytest.approx(wrong)
    assert results.gates == {"members.error_rate": True}
    members = pd.read_csv("out/results/members.csv").set_index(["run", "metric"])
    assert members.loc[("a", "error_rate"), "value"] == pytest.approx(wrong)
    assert "error_rate_value" in pd.read_csv("out/results/sparse.csv")
    page = Path("out/report.html").read_text()
    assert "<th class=number>Error rate</th>" in page
    assert "at most 0.9" in page


def test_claims_cost_and_audit_are_in_report_and_csv(write):
    claim = {"claimed": 0.99, "believable": [0.2, 0.3], "why": "it was published"}
    _, args = write({"claims": {"members.accuracy": claim}})
    shutil.rmtree(AUDIT)  # the report makes it
    assert main(args) == 0
    claims = pd.read_csv("out/results/claims.csv")
    assert claims["position"].tolist() == ["above", "above"]
    cost = pd.read_csv("out/results/cost.csv")
    assert cost["seconds"].tolist() == [5.0, 5.0]
    page = Path("out/report.html").read_text()
    for text in ("Claims", "it was published", "0.2 to 0.3", "Cost", "test_resnet", "Audit",
                 "libraries"):  # fmt: skip
        assert text in page, text
    assert len(list(Path("out/audit").glob("*/audit.html"))) == 1
    names = {file.stem for file in Path("out/results").iterdir()}
    assert names == {"members", "claims", "cost", "subgroups"}


def test_suspect_statistics_of_the_data_have_words_as_names():
    confounds = [{"name": name, "is_suspect": name != "mean"} for name in ("std", "mean", "age")]
    audit = {"files": 9, "patients": 9, "leaks": 0, "issues": [], "notes": [], "page": "p.html"}
    [table] = appendix.audit_sections({"a": audit | {"confounds": confounds}})
    assert "by itself: contrast (standard deviation), age" in str(table.rows[0])


def test_cost_is_counted_for_the_network_that_was_trained(write):
    _, args = write({"members": {name: "a.yaml" for name in ("full", "thin", "lost")}})
    sizes = {}
    for name, backbone_args in (("full", {}), ("thin", {"channels": [16, 24, 24, 48]})):
        module = ImageClassifier(NAMES, "test_resnet", image_size=32, backbone_args=backbone_args)
        save_checkpoint(module, Preprocess(size=32), Path(f"out/members/{name}/best.ckpt"))
        sizes[name] = sum(parameter.numel() for parameter in module.net.parameters())
    assert main(args) == 0
    cost = pd.read_csv("out/results/cost.csv").set_index("member")
    assert cost["parameters"].to_dict() == pytest.approx({**sizes, "lost": np.nan}, nan_ok=True)
    assert cost.loc["thin", "MACs per image"] < 0.8 * cost.loc["full", "MACs per image"]
    assert np.isnan(cost.loc["lost", "MACs per image"])
    assert f"{sizes['thin']:,}" in Path("out/report.html").read_text()


def write_sparsity(run: str, zeros: float, density: float = 0.25) -> None:
    content = {"weights_zero_fraction": zeros, "density": density, "macs_theoretical_ratio": 0.4,
               "latency_ratio_measured": None}  # fmt: skip
    write_json(Path(f"out/members/{run}/sparsity.json"), content)


def test_sparse_members_are_compared_with_their_controls(write):
    _, args = write({"controls": {"dense": ["a", "b"]}})
    write_sparsity("a", 0.7)
    assert main(args) == 0
    sparse = pd.read_csv("out/results/sparse.csv")
    assert sparse["sparse"].tolist() == ["a", "b"]
    correct = {name: accuracy(name)[0] for name in ("a", "b", "dense")}
    assert sparse["accuracy_value"].tolist() == pytest.approx(
        [(correct[name] - correct["dense"]) / 200 for name in ("a", "b")])  # fmt: skip
    page = Path("out/report.html").read_text()
    assert "Sparse minus dense" in page
    assert "b compared with dense" in page
    assert ">nan<" not in page  # unknown ratios of b are dashes


def test_every_changed_decision_is_in_a_csv_file(write):
    _, args = write({"controls": {"dense": ["a"]}, "seeds": [3, 4]})
    assert main(args) == 0
    changed = pd.read_csv("out/results/changed.csv", dtype={"id": str})
    predicted = [name for name in changed if name.startswith(("control_", "sparse_"))][:2]
    for seed in (3, 4):
        own = changed[changed["sparse"] == f"a-seed{seed}"].set_index("id")
        tables = {n: PredictionTable.read(f"out/members/{n}-seed{seed}/predictions/test.parquet")
                  for n in ("a", "dense")}  # fmt: skip
        classes = {name: table.logits.argmax(1) for name, table in tables.items()}
        differ = np.flatnonzero(classes["a"] != classes["dense"])
        assert own.index.tolist() == tables["a"].rows["id"].iloc[differ].tolist()
        at, row = differ[0], own.iloc[0]
        assert row[["control", "label", *predicted]].tolist() == [
            f"dense-seed{seed}", NAMES[tables["a"].labels[at]], NAMES[classes["dense"][at]],
            NAMES[classes["a"][at]]]  # fmt: skip
        for column, name in (("sparse", "a"), ("control", "dense")):
            surest = tables[name].probabilities[at].max()
            assert row[f"{column}_probability"] == pytest.approx(surest)
    assert f"{len(changed)} decisions changed" in Path("out/report.html").read_text()


@pytest.mark.usefixtures("drawn_plots")
def test_every_sparse_member_has_a_row_in_the_plot(write):
    config, args = write({"controls": {"dense": ["a", "b"]}, "seeds": [3, 4]})
    for seed, zeros in ((3, 0.7), (4, 0.8)):
        write_sparsity(f"b-seed{seed}", zeros)
    Path("out/members/a-seed4/results.json").unlink()  # a has no mean over one of two seeds
    comparison = load_results(config, Path("out")).sparsity
    first, second = comparison.costs
    assert (first.name, first.zero_fraction, first.overall, len(first.differences)) == (
        "a",
        None,
        None,
        1,
    )
    assert second.zero_fraction == pytest.approx(0.75)
    assert second.differences == [row["accuracy"].value for row in comparison.pairs[1:]]
    assert second.overall == comparison.means[0]["accuracy"]
    assert main(args) == 0
    assert "Cost of sparsity" in Path("out/report.html").read_text()


def test_a_single_pair_has_the_same_interval_in_table_and_plot(write):
    config, _ = write({"controls": {"dense": ["a"]}})
    comparison = load_results(config, Path("out")).sparsity
    [cost] = comparison.costs
    assert cost.overall == comparison.pairs[0]["accuracy"]
    assert comparison.means == []


def test_sparse_members_of_several_seeds_have_one_mean(write):
    config, args = write({"controls": {"dense": ["b"]}, "seeds": [3, 4]})
    assert main(args) == 0
    means = pd.read_csv("out/results/sparse_seeds.csv")
    gaps = [(accuracy(f"b-seed{s}")[0] - accuracy(f"dense-seed{s}")[0]) / 200 for s in (3, 4)]
    assert means[["sparse", "control", "seeds"]].values.tolist() == [["b", "dense", 2]]
    assert means["accuracy_value"].tolist() == pytest.approx([np.mean(gaps)])
    assert means["accuracy_low"][0] < np.mean(gaps) < means["accuracy_high"][0]
    assert "mean over seeds of the paired difference" in Path("out/report.html").read_text()
    Path("out/members/dense-seed4/results.json").unlink()  # no mean over one of two seeds
    assert load_results(config, Path("out")).sparsity.means == []


def test_a_sparse_member_is_compared_on_the_images_of_all_folds(write):
    config, _ = write({"controls": {"dense": ["a"]}, "folds": 3})
    [cost] = load_results(config, Path("out")).sparsity.costs
    assert len(cost.differences) == 3
    assert cost.overall.n == 3 * 200
    assert cost.overall.value == pytest.approx(np.mean(cost.differences))


def test_evaluated_saliency_maps_are_in_report_and_csv(write):
    _, args = write({"saliency": {"methods": ["GradCAM"]}})
    scores = [saliency.SaliencyScores("p1", True, 0.4, 0.1, 0.8),
              saliency.SaliencyScores("p2", False, 0.2, 0.3, 0.7)]  # fmt: skip
    estimates = saliency.saliency_estimates(scores)
    result = saliency_evaluation.SaliencyResult("b", "GradCAM", estimates)
    saliency_evaluation.write_results(Path("out/saliency/b"), [result])
    assert main(args) == 0
    table = pd.read_csv("out/results/saliency.csv").set_index("metric")
    assert set(table["member"]) == {"b"}  # those of a were not evaluated
    assert table["value"].to_dict() == pytest.approx(
        {"pointing": 0.5, "energy_in_box": 0.3, "deletion": 0.2, "insertion": 0.75})  # fmt: skip
    page = Path("out/report.html").read_text()
    assert "Not done yet, and not in this report: saliency-a." in page


def count_calls(
    monkeypatch: pytest.MonkeyPatch, function: Callable, key: Callable
) -> Counter[object]:
    """Counts the calls of a function by key, wherever it was imported to."""
    calls = Counter[object]()

    def counted(*args, **kwargs):
        calls[key(*args, **kwargs)] += 1
        return function(*args, **kwargs)

    for name, module in list(sys.modules.items()):
        is_ours = name.startswith(("evaluation", "consilium"))
        if is_ours and getattr(module, function.__name__, None) is function:
            monkeypatch.setattr(module, function.__name__, counted)
    return calls


def folded(page: str, heading: str) -> str:
    """What folds out under a heading, without the number of the section."""
    _, _, after = page.partition(f"<summary><h2>{heading}</h2></summary>")
    return after.partition("</details>")[0].partition(">")[2]


def is_about_sets() -> bool:
    """Sets by different rules may be equal: their coverage is counted by rule."""
    return any(f.f_code.co_name == "evaluate_sets" for f, _ in traceback.walk_stack(None))


@pytest.mark.usefixtures("disputed_ids")
@pytest.mark.parametrize(
    "content",
    [
        {"ensemble": "ensemble.yaml", "voter": "learned", "attribute": "site", "level": "study"},
        {"controls": {"dense": ["a", "b"]}, "seeds": [3, 4]},
        {"folds": 3},
    ],
    ids=["ensemble", "controls", "folds"],
)
def test_a_report_bootstraps_every_table_once_and_fits_no_voter(write, monkeypatch, content):
    config, args = write(content)
    write_ensembles(config)
    fits = [
        count_calls(monkeypatch, function, lambda *args, **kwargs: "")
        for function in (ensemble.fit_voters, ensemble.evaluate_voters, calibration.fit_calibration)
    ]
    resampled = count_calls(
        monkeypatch, bootstrap.bootstrap,
        lambda sums, statistic, clusters, *args, **kwargs: object() if is_about_sets() else (
            sums.shape, csr_matrix(sums).toarray().tobytes(), clusters.stratum.tobytes(),
        ),
    )  # fmt: skip
    of_sets = count_calls(
        monkeypatch, conformal.evaluate_sets,
        lambda sets, test, by: (sets.alpha, sets.by, by, test.logits.tobytes()),
    )  # fmt: skip
    grouped = count_calls(monkeypatch, compute_subgroups, lambda *args: "")
    computed = count_calls(
        monkeypatch, compute.compute_metrics, lambda table, *args: table.logits.tobytes()
    )
    assert main(args) == 0
    assert [sum(calls.values()) for calls in fits] == [0, 0, 0]
    assert resampled
    assert not grouped  # groups are read
    assert max(resampled.values()) == max(of_sets.values()) == 1
    assert max(computed.values(), default=0) <= 1
    if config.level == "image" and not config.folds:
        assert not computed  # metrics of runs are read


@pytest.mark.usefixtures("disputed_ids")
def test_voters_in_the_report_are_those_that_were_stored(write):
    config, args = write({"ensemble": "ensemble.yaml", "voter": "learned", "attribute": "site"})
    write_ensembles(config)
    assert main(args) == 0
    stored = read_results("out/voters/results.json").others
    voters = pd.read_csv("out/results/voters.csv").set_index(["voter", "metric"])
    for name in (name for name in stored if name.startswith(("voter/", "gain/"))):
        expected = {metric: e.value for metric, e in stored[name].items() if e.value is not None}
        values = voters.loc[name]["value"].dropna().to_dict()
        assert values == pytest.approx(expected), name
    page = Path("out/report.html").read_text()
    own = Path("out/voters/report.html").read_text()
    for heading in ("Referral", "Prediction sets", "Prediction sets by class"):  # the same tables
        assert folded(page, heading) == folded(own, heading) != ""
    assert "ensemble: every voter of a, b" in page
    assert "Subgroups: ensemble" in page
    groups = pd.read_csv("out/results/subgroups.csv").set_index(["run", "group", "metric"])
    [of_x] = [s for s in read_results("out/ensemble/results.json").subgroups if s.group == "x"]
    gap, row = of_x.gaps["accuracy"], groups.loc[("ensemble", "x", "accuracy")]
    expected = (of_x.metrics["accuracy"].value, gap.estimate.low, gap.p_value)
    assert tuple(row[["value", "gap_low", "p"]]) == pytest.approx(expected)
    points = load_results(config, Path("out")).ensembles[0].operating_points
    frame = pd.read_csv("out/results/operating_points.csv").set_index(["outcome", "threshold"])
    [rule, *_] = points[NAMES[0]]
    rows = frame[frame["run"] == "ensemble"].loc[(NAMES[0], rule)].set_index("metric")
    assert rows["value"].to_dict() == pytest.approx(
        {metric: e.value for metric, e in points[NAMES[0]][rule].items()}, nan_ok=True
    )


def best_of(rows: dict[str, Any]) -> str:
    """The calibrated member of highest accuracy."""
    return max(("a, calibrated", "b, calibrated"), key=lambda name: rows[name]["accuracy"].value)


def accuracy_text(rows: dict[str, Any], name: str) -> str:
    estimate = rows[name]["accuracy"]
    shown = f"{format_estimate(estimate)} on {format_sample_size(estimate)}"
    return f"{name}: accuracy {shown}."


@pytest.mark.usefixtures("disputed_ids")
def test_the_summary_shows_members_calibrated_and_raw_next_to_the_ensemble(write):
    config, _ = write({"ensemble": "ensemble.yaml"})
    write_ensembles(config)
    results = load_results(config, Path("out"))
    rows = summary_metrics_by_row(results)
    assert list(rows) == [
        "ensemble, calibrated",
        "a, calibrated",
        "b, calibrated",
        "a, raw",
        "b, raw",
    ]
    stored = read_results("out/voters/results.json").others
    assert rows["b, calibrated"] == stored["calibrated_member/b"]
    assert rows["b, raw"] == results.runs["b"].metrics
    assert rows["b, raw"]["nll"] != rows["b, calibrated"]["nll"]
    sentence = f"ensemble: {subgroup_sentence(results.runs['ensemble'].subgroups)}"
    assert summary_lines(results)[1] == sentence
    text, overview = sections(results)[:2]
    assert text.body == lead_text(results)
    shown = [accuracy_text(rows, name) for name in ("ensemble, calibrated", best_of(rows))]
    assert lead_text(results) == " ".join(shown).replace(
        best_of(rows), f"{best_of(rows)}, the best of 2 members on test"
    )
    [e] = results.ensembles
    changed = {name: {"accuracy": replace(metrics["accuracy"], value=0.125)}
               for name, metrics in e.evaluated.calibrated_metrics.items()}  # fmt: skip
    evaluated = replace(e.evaluated, calibrated_metrics=changed)
    other = replace(results, ensembles=[replace(e, evaluated=evaluated)])
    assert "members on test: accuracy 0.125 (" in lead_text(other)
    alone = replace(evaluated, calibrated_metrics={"a": changed["a"]})
    of_one = replace(results, ensembles=[replace(e, evaluated=alone)])
    assert lead_text(of_one) == accuracy_text(rows, "ensemble, calibrated")
    assert overview.answers["For whom is it worse?"] == [sentence]
    (table,) = (s for s in sections(results) if s.heading == "Ensembles and members")
    assert "an ensemble has no raw row: its calibration is a part of it" in table.note


def test_maps_of_an_ensemble_are_named_after_its_run(tmp_path):
    """Of the run `ensemble-two`: its own maps and those of its member `a`."""
    estimates = saliency.saliency_estimates([saliency.SaliencyScores("p1", True, 0.4, 0.1, 0.8)])
    folder = tmp_path / "ensemble-two"
    names = ("a", "ensemble (Mean probability)")
    results = [saliency_evaluation.SaliencyResult(name, "GradCAM", estimates) for name in names]
    saliency_evaluation.write_results(folder, results)
    run = Run("saliency-ensemble-two", folder, [], result=saliency.FILE)
    [shown] = appendix.read_saliency({"saliency-ensemble-two": run}).values()
    expected = ["ensemble-two: a", "ensemble-two (Mean probability)"]
    assert [result.member for result in shown] == expected


def test_members_without_an_ensemble_are_labeled_as_raw(write):
    config, _ = write({})
    results = load_results(config, Path("out"))
    assert list(summary_metrics_by_row(results)) == ["a, raw", "b, raw"]
    assert ", raw, the best of 2 members on test: accuracy" in lead_text(results)
    headings = [section.heading for section in sections(results)]
    assert {"Referral of a", "Prediction sets of b"} < set(headings)
    alone = replace(results, runs={"a": results.runs["a"]})
    assert lead_text(alone).startswith("a, raw: accuracy")


@pytest.mark.exhaustive
def test_an_empty_table_leaves_no_csv_file_of_an_earlier_report(write):
    _, args = write({"gates": {"a.accuracy": 0.1}})
    assert main(args) == 0
    assert Path("out/results/gates.csv").is_file()
    _, args = write({})
    assert main(args) == 0
    assert not Path("out/results/gates.csv").exists()
    assert Path("out/results/members.csv").is_file()


def test_notes_of_all_runs_are_in_the_report_each_once(write):
    _, args = write({})
    for name, notes in {
        "a": ["note of both", "of a only"],
        "b": ["of b only", "note of both"],
    }.items():
        file = Path(f"out/members/{name}/results.json")
        results = read_results(file)
        write_results(file, replace(results, meta={**results.meta, "notes": notes}))
    assert main(args) == 0
    page = Path("out/report.html").read_text()
    assert [page.count(note) for note in ("note of both", "of a only", "of b only")] == [1, 1, 1]


def test_an_experiment_without_finished_runs_has_no_report(write, capsys):
    _, args = write({}, unfinished=2)
    assert main(args) == 2
    assert "no run of experiment s is done" in capsys.readouterr().err
