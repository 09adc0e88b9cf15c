from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from evaluation.metrics import compute, confusion
from evaluation.metrics.ranking import NAMES, average_precision, sensitivity_at
from tests.evaluation.tables import make


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_every_overall_rate_is_scikit_learns(classes: int) -> None:
    table = make(400, classes)
    y, said = table.labels, table.logits.argmax(1)
    found = {name: f.value for name, f in compute.compute_metrics(table, draws=20).items()}
    p = table.probabilities
    true = {
        "accuracy": sk.accuracy_score(y, said),
        "balanced_accuracy": sk.balanced_accuracy_score(y, said),
        "kappa": sk.cohen_kappa_score(y, said),
        "kappa_quadratic": sk.cohen_kappa_score(y, said, weights="quadratic"),
        "mcc": sk.matthews_corrcoef(y, said),
        "nll": sk.log_loss(y, p),
        "brier": np.mean(np.sum((p - np.eye(classes)[y]) ** 2, 1)),
        "auroc": sk.roc_auc_score(y, p[:, 1] if classes == 2 else p, multi_class="ovr"),
    }
    for average in ("macro", "weighted"):
        names = (f"precision_{average}", f"recall_{average}", f"f1_{average}")
        scores = sk.precision_recall_fscore_support(y, said, average=average)[:3]
        true |= dict(zip(names, scores, strict=True))
    for name, value in true.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_every_rate_of_a_class_is_scikit_learns() -> None:
    table = make(300, 3)
    y, said = table.labels, table.logits.argmax(1)
    found = compute.compute_metrics(table, draws=20)
    for c, name in enumerate(table.class_names):
        own, told = y == c, said == c
        assert found[f"recall/{name}"].value == pytest.approx(sk.recall_score(own, told))
        assert found[f"precision/{name}"].value == pytest.approx(sk.precision_score(own, told))
        assert found[f"f1/{name}"].value == pytest.approx(sk.f1_score(own, told))
        assert found[f"specificity/{name}"].value == pytest.approx(sk.recall_score(~own, ~told))
        area = sk.roc_auc_score(own, table.probabilities[:, c])
        assert found[f"auroc/{name}"].value == pytest.approx(area)


def test_the_confusion_matrix_is_scikit_learns() -> None:
    table = make(200, 5)
    expected = sk.confusion_matrix(table.labels, table.logits.argmax(1))
    assert np.array_equal(compute.confusion(table), expected)


def test_a_stack_of_matrices_gives_each_ones_rates() -> None:
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 9, (6, 4, 4)).astype(float)
    whole = confusion.overall(stack) | confusion.per_class(stack)
    for at in range(6):
        one = confusion.overall(stack[at]) | confusion.per_class(stack[at])
        for name, value in one.items():
            np.testing.assert_allclose(whole[name][at], value)


def test_quick_figures_are_the_full_ones() -> None:
    table = make(100)
    full = compute.compute_metrics(table, draws=10)
    for name, value in compute.epoch_metrics(table.probabilities, table.labels).items():
        assert value == pytest.approx(full[name].value), name


def test_an_absent_class_gives_null_with_a_reason() -> None:
    table = make(90)
    table = table.take(np.flatnonzero(table.labels != 2))
    found = compute.compute_metrics(table, draws=50)
    macro = ("balanced_accuracy", "recall_macro", "f1_macro", "precision_macro")
    for name in ("recall/comminuted", "auroc/comminuted", "auroc", *macro, "specificity_macro"):
        assert found[name].value is None, name
        assert found[name].reason, name
    assert found["accuracy"].value is not None
    assert np.isnan(compute.epoch_metrics(table.probabilities, table.labels)["auroc"])


def test_rows_of_unknown_label_are_left_out() -> None:
    table = make(90)
    rows = table.rows.assign(label=np.where(np.arange(90) < 40, table.labels, -1))
    part = compute.compute_metrics(replace(table, rows=rows), draws=20)
    assert part == compute.compute_metrics(table.take(np.arange(40)), draws=20)
    none = compute.compute_metrics(replace(table, rows=table.rows.assign(label=-1)))
    assert none["accuracy"].reason == "no row has a known label"


def test_figures_say_how_many_images_and_patients() -> None:
    found = compute.compute_metrics(make(120, films=4), draws=50)
    rates = ("recall/", "precision/", "specificity/")
    others = {name: f for name, f in found.items() if not name.startswith(rates)}
    assert {(f.n, f.patients) for f in others.values()} == {(120, 30)}
    assert found["accuracy"].method == "patient bootstrap, BCa"
    assert found["auroc"].method == "cluster-robust DeLong"
    assert compute.compute_metrics(make(120), draws=50)["accuracy"].method == "Wilson"


@pytest.mark.parametrize("films", [1, 3])
def test_the_rates_of_a_class_count_what_they_are_a_share_of(films: int) -> None:
    table = make(120, films=films)
    found, said = compute.compute_metrics(table, draws=20), table.logits.argmax(axis=1)
    for c, name in enumerate(table.class_names):
        own, told = table.labels == c, said == c
        for rate, asked in (("recall", own), ("precision", told), ("specificity", ~own)):
            figure = found[f"{rate}/{name}"]
            assert figure.n == asked.sum()
            assert figure.patients == len(set(table.patients[asked]))


def test_rankings_of_a_class_are_scikit_learns_with_ties() -> None:
    table = make(500, 3)
    table = replace(table, logits=np.round(table.logits, 0))
    found = compute.compute_metrics(table, draws=20)
    for c, name in enumerate(table.class_names):
        own, score = table.labels == c, table.probabilities[:, c]
        precision = sk.average_precision_score(own, score)
        assert average_precision(score, own) == pytest.approx(precision)
        assert found[f"average_precision/{name}"].value == pytest.approx(precision)
        fpr, tpr, _ = sk.roc_curve(own, score, drop_intermediate=False)
        assert sensitivity_at(score, own, 0.9) == pytest.approx(tpr[fpr <= 0.1 + 1e-9].max())
    macro = sk.average_precision_score(np.eye(3)[table.labels], table.probabilities)
    assert found["average_precision"].value == pytest.approx(macro)


def test_blocks_of_scores_leave_the_figures_exact() -> None:
    table = make(5000, 2)
    own, score = table.labels == 1, table.probabilities[:, 1]
    found = compute.compute_metrics(table, draws=200)["average_precision/simple"]
    assert found.value == pytest.approx(sk.average_precision_score(own, score))
    assert found.low < found.value < found.high


def test_calibration_error_is_that_of_its_definition() -> None:
    table = make(450)
    p, right = table.probabilities.max(1), table.logits.argmax(1) == table.labels
    order = np.argsort(p)
    parts = np.array_split(order, 15)
    expected = sum(abs(p[i].mean() - right[i].mean()) * len(i) / 450 for i in parts)
    found = compute.compute_metrics(table, draws=200)["ece"]
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("films", [1, 4])
def test_a_perfect_table_has_room_below_one(films: int) -> None:
    table = make(120, films=films)
    perfect = replace(table, logits=10 * np.eye(3)[table.labels])
    found = compute.compute_metrics(perfect, draws=50)
    n = 120 // films
    names = ("accuracy", "balanced_accuracy", "kappa", "mcc", "f1_macro", "recall/none",
             *NAMES, "average_precision/simple")  # fmt: skip
    for name in names:
        figure = found[name]
        assert (figure.value, figure.high) == (1.0, 1.0), name
        assert 1 - 30 / n < figure.low < 1 - 1 / n, name


@pytest.mark.parametrize("films", [1, 4])
def test_a_table_that_is_never_right_has_room_above_zero(films: int) -> None:
    table = make(120, films=films)
    wrong = replace(table, logits=10 * np.eye(3)[(table.labels + 1) % 3])
    found, n = compute.compute_metrics(wrong, draws=50), 120 // films
    for name in ("accuracy", "balanced_accuracy", "f1_macro", "recall/none", "precision_macro"):
        figure = found[name]
        assert (figure.value, figure.low) == (0.0, 0.0), name
        assert 1 / n < figure.high < 30 / n, name


@pytest.mark.parametrize("rare", [1, 4])
def test_a_class_of_few_patients_is_named_where_a_ranking_has_no_interval(rare: int) -> None:
    table = make(300, 2)
    kept = np.r_[np.flatnonzero(table.labels == 0), np.flatnonzero(table.labels == 1)[:rare]]
    found = compute.compute_metrics(table.take(kept), draws=50)
    for name in ("average_precision", "average_precision/simple"):
        assert 0 < found[name].value < 1
        assert (found[name].low, found[name].high) == (None, None)
        assert (
            found[name].reason == f"class 'simple' has {rare} of the 5 patients that redraws need"
        )
    assert found["balanced_accuracy"].low is not None


def test_what_is_missing_has_no_ends() -> None:
    absent = make(90).take(np.flatnonzero(make(90).labels != 2))
    alone = replace(make(90), rows=make(90).rows.assign(patient="one"))
    for found in (
        compute.compute_metrics(absent, draws=50),
        compute.compute_metrics(alone, draws=50),
    ):
        for name, figure in found.items():
            assert (figure.low is None) == (figure.high is None), name
            assert figure.value is not None or figure.low is None, name
            assert figure.low is not None or figure.reason, name


def test_an_attribute_has_its_own_figures() -> None:
    table = make(200, films=2)
    parts = compute.by_attribute(table, "body_part", draws=20)
    wrist = table.take(np.flatnonzero(table.rows["body_part"] == "wrist"))
    assert sorted(parts) == ["elbow", "wrist"]
    assert parts["wrist"] == compute.compute_metrics(wrist, draws=20)
    with pytest.raises(ValueError, match="attribute 'bone' is not among"):
        compute.by_attribute(table, "bone")
