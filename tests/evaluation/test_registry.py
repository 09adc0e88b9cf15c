import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics import compute
from evaluation.metrics.registry import (
    METRICS,
    MetricSpec,
    headline_metrics,
    matching_specs,
    metric_label,
    metric_spec,
    summary_metrics,
)
from evaluation.predictions import PredictionTable
from evaluation.results import Results, read_results, write_results
from evaluation.stats.paired_tests import better_or_worse, paired_differences
from tests.evaluation.tables import make_table


def pair_table() -> PredictionTable:
    table = make_table(120, classes=3)
    pair_logits = np.random.default_rng(1).normal(size=(120, 3))
    grades = ["0", "1", "2"]
    return PredictionTable(table.rows, table.logits, grades, table.meta, pair_logits=pair_logits)


def label_distance(table: PredictionTable) -> np.ndarray:
    return np.abs(table.predictions - table.labels).astype(float)


DISTANCE = MetricSpec(
    "distance", "Mean distance", "image_mean", label_distance, higher_is_better=False,
    maximum=2.0, weights_images_equally=True, in_summary=True, is_paired=True,
    meaning="Mean distance of the labels.",
)  # fmt: skip
TOP_HALF = MetricSpec(
    "top_half", "Sensitivity at half of the positives", "ranking",
    lambda tp, fp: (tp * (fp <= fp[:, -1:] / 2)).max(axis=1) / tp[:, -1], scope="overall and class",
    meaning="Sensitivity where half of the positives are found.",
)  # fmt: skip


def test_one_entry_adds_a_metric_to_metrics_differences_and_results_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(METRICS, "distance", DISTANCE)
    table = make_table(90)
    metrics = compute.compute_metrics(table, draws=50)
    assert metrics["distance"].value == pytest.approx(label_distance(table).mean())
    assert metrics["distance"].low < metrics["distance"].value < metrics["distance"].high
    assert "distance" in summary_metrics()
    assert matching_specs("distance")
    difference = paired_differences(make_table(90, gain=0.1), table, draws=50)["distance"]
    assert better_or_worse("distance", difference) == "worse"  # higher, and lower is better
    path = tmp_path / "results.json"
    write_results(path, Results("model", "test", table.class_names, metrics))
    assert json.loads(path.read_text())["metrics"]["distance"]["n"] == 90
    assert read_results(path).metrics == metrics


def test_one_entry_adds_a_ranking_metric_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "top_half", TOP_HALF)
    metrics = compute.compute_metrics(make_table(90, gain=0.3), draws=50)
    of_classes = [metrics[f"top_half/{name}"].value for name in make_table().class_names]
    assert metrics["top_half"].value == pytest.approx(np.mean(of_classes))
    assert metrics["top_half"].low < metrics["top_half"].value < metrics["top_half"].high


def test_all_registered_metrics_are_computed_in_their_order() -> None:
    names = list(compute.compute_metrics(pair_table(), draws=20))
    assert list(dict.fromkeys(name.split("/")[0] for name in names)) == list(METRICS)
    assert all(metric_spec(name).name == name.split("/")[0] for name in names)
    assert all(matching_specs(name) for name in names)
    assert all(matching_specs(f"study/{name}", "study") for name in names)


def test_values_are_within_their_limits() -> None:
    for name, estimate in compute.compute_metrics(pair_table(), draws=50).items():
        spec = metric_spec(name)
        assert spec.minimum <= estimate.value <= spec.maximum, name


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("accuracy", "accuracy"),
        ("recall/simple", "recall"),
        ("auroc/none", "auroc"),
        ("pair/a/b", "pair"),
        ("study/kappa", "kappa"),
        ("patient/recall/simple", "recall"),
    ],
)
def test_full_names_resolve_to_their_entry(name: str, base: str) -> None:
    assert metric_spec(name) is METRICS[base]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("acuracy", "accuracy"),
        ("Accuracy", "accuracy"),
        ("f1_makro", "f1_macro"),
        ("recall", "recall"),  # needs a class
        ("accuracy/simple", "accuracy"),  # has none
        ("study/acuracy", "accuracy"),
    ],
)
def test_unknown_names_are_errors_with_the_nearest_names(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown metric '{name}'; did you mean .*{nearest}"):
        metric_spec(name)


def test_gates_accept_names_and_patterns_of_metrics_only() -> None:
    assert all(map(matching_specs, ("recall/*", "pair/*", "f1_*", "*", "study/auroc")))
    assert not any(map(matching_specs, ("", "Accuracy", "recall_x", "recall", "accuracy/a")))
    assert matching_specs("study/kappa", "study")
    assert not matching_specs("study/kappa", "image")
    assert [spec.name for spec in matching_specs("f1_*")] == ["f1_macro", "f1_weighted"]


def test_labels_name_classes_pairs_and_levels() -> None:
    assert metric_label("auroc") == "AUROC"
    assert metric_label("recall/simple") == "Recall, simple"
    assert metric_label("pair/a/b") == "Accuracy of a pair, a vs. b"
    assert metric_label("study/auroc") == "AUROC by study"


def test_lists_of_names_follow_the_registry() -> None:
    assert set(headline_metrics()) <= set(summary_metrics()) <= set(METRICS)
    names = paired_differences(make_table(), make_table(seed=1), draws=20)
    compared = list(dict.fromkeys(name.partition("/")[0] for name in names))
    assert compared == [name for name, spec in METRICS.items() if spec.is_paired]
    assert not metric_spec("nll").is_improvement(0.1)
    assert metric_spec("accuracy").is_improvement(0.1)


def test_ranking_metric_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="top: paired tests cannot compare a metric of kind"):
        MetricSpec("top", "Top", "ranking", TOP_HALF.compute, is_paired=True, meaning="")
