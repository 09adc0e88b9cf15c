from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn import metrics as sk

from evaluation.metrics import compute, confusion
from evaluation.metrics.ranking import average_precision, ranking_value, sensitivity_of_counts
from evaluation.metrics.registry import METRICS
from evaluation.predictions import has_grades
from tests.evaluation.tables import make_table

MACRO = ("balanced_accuracy", "recall_macro", "f1_macro", "precision_macro", "specificity_macro")


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_overall_metrics_equal_scikit_learn(classes: int) -> None:
    table = make_table(400, classes)
    y, predictions, p = table.labels, table.predictions, table.probabilities
    metrics = {name: e.value for name, e in compute.compute_metrics(table, draws=20).items()}
    expected = {
        "accuracy": sk.accuracy_score(y, predictions),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predictions),
        "kappa": sk.cohen_kappa_score(y, predictions),
        "kappa_quadratic": sk.cohen_kappa_score(y, predictions, weights="quadratic"),
        "mcc": sk.matthews_corrcoef(y, predictions),
        "nll": sk.log_loss(y, p),
        "brier": np.mean(np.sum((p - np.eye(classes)[y]) ** 2, 1)),
        "auroc": sk.roc_auc_score(y, p[:, 1] if classes == 2 else p, multi_class="ovr"),
    }
    for average in ("macro", "weighted"):
        names = (f"precision_{average}", f"recall_{average}", f"f1_{average}")
        scores = sk.precision_recall_fscore_support(y, predictions, average=average)[:3]
        expected |= dict(zip(names, scores, strict=True))
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name


def test_metrics_of_a_class_equal_scikit_learn() -> None:
    table = make_table(300, 3)
    metrics = compute.compute_metrics(table, draws=20)
    for c, name in enumerate(table.class_names):
        label, predicted = table.labels == c, table.predictions == c
        expected = {
            "recall": sk.recall_score(label, predicted),
            "precision": sk.precision_score(label, predicted),
            "f1": sk.f1_score(label, predicted),
            "specificity": sk.recall_score(~label, ~predicted),
            "auroc": sk.roc_auc_score(label, table.probabilities[:, c]),
        }
        for metric, value in expected.items():
            assert metrics[f"{metric}/{name}"].value == pytest.approx(value), metric
    rates = compute.recall_and_precision(table)
    assert rates == pytest.approx({name: metrics[name].value for name in rates})
    assert len(rates) == 6


def test_confusion_matrix_equals_scikit_learn() -> None:
    table = make_table(200, 5)
    expected = sk.confusion_matrix(table.labels, table.predictions)
    assert np.array_equal(compute.confusion_matrix(table), expected)


@pytest.mark.parametrize(
    "function",
    [s.compute for s in METRICS.values() if s.kind == "confusion"],
    ids=[s.name for s in METRICS.values() if s.kind == "confusion"],
)
def test_rates_of_a_stack_of_matrices_equal_those_of_each(function: confusion.Rate) -> None:
    stack = np.random.default_rng(0).integers(0, 9, (6, 4, 4)).astype(float)
    for matrix, rate in zip(stack, function(stack), strict=True):
        np.testing.assert_allclose(function(matrix), rate)


def test_epoch_metrics_equal_the_values_of_compute_metrics() -> None:
    table = make_table(100)
    metrics = compute.compute_metrics(table, draws=10)
    for name, value in compute.epoch_metrics(table.probabilities, table.labels).items():
        assert value == pytest.approx(metrics[name].value), name


def test_metrics_of_an_absent_class_are_none_with_a_reason() -> None:
    table = make_table(90)
    table = table.take(np.flatnonzero(table.labels != 2))
    metrics = compute.compute_metrics(table, draws=50)
    for name in ("recall/comminuted", "auroc/comminuted", "auroc", *MACRO):
        assert metrics[name].value is None, name
        assert metrics[name].reason, name
    assert metrics["accuracy"].value is not None
    assert np.isnan(compute.epoch_metrics(table.probabilities, table.labels)["auroc"])


def test_rows_with_unknown_labels_are_ignored() -> None:
    table = make_table(90)
    rows = table.rows.assign(label=np.where(np.arange(90) < 40, table.labels, -1))
    metrics = compute.compute_metrics(replace(table, rows=rows), draws=20)
    assert metrics == compute.compute_metrics(table.take(np.arange(40)), draws=20)
    unlabeled = compute.compute_metrics(replace(table, rows=table.rows.assign(label=-1)))
    assert unlabeled["accuracy"].reason == "no row has a known label"


def test_estimates_have_the_number_of_images_and_patients() -> None:
    metrics = compute.compute_metrics(make_table(120, images_per_patient=4), draws=50)
    of_class = ("recall/", "precision/", "specificity/", "npv/")
    others = {name: e for name, e in metrics.items() if not name.startswith(of_class)}
    assert {(e.n, e.patients) for e in others.values()} == {(120, 30)}
    assert metrics["accuracy"].method == "bootstrap over patients, BCa"
    assert metrics["ece"].method == "bootstrap over patients, centered"
    assert metrics["auroc"].method == "cluster-robust DeLong"
    assert compute.compute_metrics(make_table(120), draws=50)["accuracy"].method == "Wilson"


@pytest.mark.parametrize("images_per_patient", [1, 3])
def test_rates_of_a_class_have_the_size_of_their_denominator(images_per_patient: int) -> None:
    table = make_table(120, images_per_patient=images_per_patient)
    metrics = compute.compute_metrics(table, draws=20)
    for c, name in enumerate(table.class_names):
        label, predicted = table.labels == c, table.predictions == c
        rates = {"recall": label, "precision": predicted, "specificity": ~label, "npv": ~predicted}
        for rate, counted in rates.items():
            estimate = metrics[f"{rate}/{name}"]
            assert estimate.n == counted.sum()
            assert estimate.patients == len(set(table.patients[counted]))


def test_ranking_metrics_equal_scikit_learn_with_ties() -> None:
    table = make_table(500, 3)
    table = replace(table, logits=np.round(table.logits, 0))
    metrics = compute.compute_metrics(table, draws=20)
    for c, name in enumerate(table.class_names):
        label, score = table.labels == c, table.probabilities[:, c]
        precision = sk.average_precision_score(label, score)
        assert average_precision(score, label) == pytest.approx(precision)
        assert metrics[f"average_precision/{name}"].value == pytest.approx(precision)
        fpr, tpr, _ = sk.roc_curve(label, score, drop_intermediate=False)
        at_90 = partial(sensitivity_of_counts, specificity=0.9)
        sensitivity = ranking_value(at_90, score, label)
        assert sensitivity == pytest.approx(tpr[fpr <= 0.1 + 1e-9].max())
        of_class = metrics[f"sensitivity_at_specificity_0.95/{name}"]
        assert of_class.value == pytest.approx(tpr[fpr <= 0.05 + 1e-9].max())
    macro = sk.average_precision_score(np.eye(3)[table.labels], table.probabilities)
    assert metrics["average_precision"].value == pytest.approx(macro)


def test_ranking_metrics_of_many_scores_are_exact() -> None:
    table = make_table(5000, 2)
    label, score = table.labels == 1, table.probabilities[:, 1]
    estimate = compute.compute_metrics(table, draws=200)["average_precision/simple"]
    assert estimate.value == pytest.approx(sk.average_precision_score(label, score))
    assert estimate.low < estimate.value < estimate.high


def test_calibration_error_follows_its_definition() -> None:
    table = make_table(450)
    confidence, is_correct = table.probabilities.max(1), table.predictions == table.labels
    bins = np.array_split(np.argsort(confidence), 15)
    gaps = [abs(confidence[b].mean() - is_correct[b].mean()) * len(b) / 450 for b in bins]
    estimate = compute.compute_metrics(table, draws=200)["ece"]
    assert estimate.value == pytest.approx(sum(gaps))
    assert estimate.low < estimate.value < estimate.high


def direct_smooth_ece(confidence: np.ndarray, gaps: np.ndarray, points: int) -> float:
    """The bandwidth that equals the error at it, from all pairs of images and points."""
    grid, sides = (np.arange(points)[:, None] + 0.5) / points, range(-4, 5, 2)

    def excess(bandwidth: float) -> float:
        kernel = [
            norm.pdf(grid, m + sign * confidence, bandwidth) for m in sides for sign in (1, -1)
        ]
        return float(np.abs(np.sum(kernel, axis=0) @ gaps).mean() / len(gaps) - bandwidth)

    return float(brentq(excess, 1e-3, 1, xtol=1e-12))


@pytest.mark.parametrize(("is_in_cells", "points", "error"), [(1, 200, 1e-6), (0, 1000, 1e-3)])
@pytest.mark.parametrize("gain", [0.0, 1.0, 3.0])
def test_smooth_calibration_error_follows_its_definition(
    gain: float, is_in_cells: int, points: int, error: float
) -> None:
    table = make_table(300, gain=gain)
    confidence = table.probabilities.max(1)
    if is_in_cells:  # at their centers, so that sorting into cells moves nothing
        confidence = (np.floor(confidence * 200) + 0.5) / 200
    others = np.repeat((1 - confidence[:, None]) / 2, 3, axis=1)
    first = np.arange(3) == table.predictions[:, None]
    table = table.with_probabilities(np.where(first, confidence[:, None], others))
    estimate = compute.compute_metrics(table, draws=200)["smooth_ece"]
    is_correct = table.predictions == table.labels
    expected = direct_smooth_ece(confidence, confidence - is_correct, points)
    assert estimate.value == pytest.approx(expected, abs=error)
    assert estimate.method == "bootstrap over patients, centered"
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize("images_per_patient", [1, 4])
def test_intervals_of_perfect_predictions_extend_below_one(images_per_patient: int) -> None:
    table = make_table(120, images_per_patient=images_per_patient)
    perfect = replace(table, logits=10 * np.eye(3)[table.labels])
    metrics = compute.compute_metrics(perfect, draws=50)
    n = 120 // images_per_patient
    ranking = [name for name, spec in METRICS.items() if spec.kind == "ranking"]
    names = ("accuracy", "balanced_accuracy", "kappa", "mcc", "f1_macro", "recall/none",
             *ranking, "average_precision/simple")  # fmt: skip
    for name in names:
        estimate = metrics[name]
        assert (estimate.value, estimate.high) == (1.0, 1.0), name
        assert 1 - 30 / n < estimate.low < 1 - 1 / n, name


@pytest.mark.parametrize("images_per_patient", [1, 4])
def test_intervals_of_wrong_predictions_extend_above_zero(images_per_patient: int) -> None:
    table = make_table(120, images_per_patient=images_per_patient)
    wrong = replace(table, logits=10 * np.eye(3)[(table.labels + 1) % 3])
    metrics, n = compute.compute_metrics(wrong, draws=50), 120 // images_per_patient
    for name in ("accuracy", "balanced_accuracy", "f1_macro", "recall/none", "precision_macro"):
        estimate = metrics[name]
        assert (estimate.value, estimate.low) == (0.0, 0.0), name
        assert 1 / n < estimate.high < 30 / n, name


@pytest.mark.parametrize("rare", [1, 4])
def test_ranking_metric_has_no_interval_if_a_class_has_few_patients(rare: int) -> None:
    table = make_table(300, 2)
    first, second = (np.flatnonzero(table.labels == c) for c in (0, 1))
    metrics = compute.compute_metrics(table.take(np.r_[first, second[:rare]]), draws=50)
    for name in ("average_precision", "average_precision/simple"):
        estimate = metrics[name]
        assert 0 < estimate.value < 1
        assert (estimate.low, estimate.high) == (None, None)
        assert estimate.reason == f"class 'simple' has {rare} patients; an interval needs 5"
    assert metrics["balanced_accuracy"].low is not None


def test_missing_values_and_intervals_have_reasons() -> None:
    absent = make_table(90).take(np.flatnonzero(make_table(90).labels != 2))
    alone = replace(make_table(90), rows=make_table(90).rows.assign(patient="one"))
    for table in (absent, alone):
        for name, estimate in compute.compute_metrics(table, draws=50).items():
            assert (estimate.low is None) == (estimate.high is None), name
            assert estimate.value is not None or estimate.low is None, name
            assert estimate.low is not None or estimate.reason, name


def test_distances_of_grades_are_measured_for_grades_only() -> None:
    table, names = make_table(200, 4, images_per_patient=2), ["KL0", "KL1", "KL2", "KL4"]
    graded = replace(table, class_names=names)
    metrics = compute.compute_metrics(graded, draws=200)
    distance = np.abs(table.predictions - table.labels)
    assert metrics["grade_error"].value == sk.mean_absolute_error(table.labels, table.predictions)
    assert metrics["within_one_grade"].value == np.mean(distance <= 1)
    for name in ("grade_error", "within_one_grade"):
        low, high = metrics[name].low, metrics[name].high
        assert low is not None
        assert high is not None
        assert low < metrics[name].value < high
    assert not {"grade_error", "within_one_grade"} & set(compute.compute_metrics(table, draws=20))


@pytest.mark.parametrize(
    ("names", "is_graded"),
    [
        ("0 1 2 3 4", True), ("KL0 KL1 KL3", True), ("grade2 grade10 grade11", True),
        ("0 1", False), ("1 0 2", False), ("0 0 1", False), ("a b c", False), ("0 1 c", False),
        ("a0 b1 c2", False), ("0 1 1+", False),
    ],
)  # fmt: skip
def test_classes_with_rising_numbers_are_grades(names: str, is_graded: bool) -> None:
    assert has_grades(names.split()) == is_graded
