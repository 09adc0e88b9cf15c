from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from evaluation import metrics, rates
from tests.evaluation.tables import make


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_every_overall_rate_is_scikit_learns(classes: int) -> None:
    table = make(400, classes)
    y, said = table.labels, table.logits.argmax(1)
    found = {name: f.value for name, f in metrics.figures(table, draws=20).items()}
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
    found = metrics.figures(table, draws=20)
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
    assert np.array_equal(metrics.confusion(table), expected)


def test_a_stack_of_matrices_gives_each_ones_rates() -> None:
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 9, (6, 4, 4)).astype(float)
    whole = rates.overall(stack) | rates.per_class(stack)
    for at in range(6):
        one = rates.overall(stack[at]) | rates.per_class(stack[at])
        for name, value in one.items():
            np.testing.assert_allclose(whole[name][at], value)


def test_quick_figures_are_the_full_ones() -> None:
    table = make(100)
    full = metrics.figures(table, draws=10)
    for name, value in metrics.quick(table.probabilities, table.labels).items():
        assert value == pytest.approx(full[name].value), name


def test_an_absent_class_gives_null_with_a_reason() -> None:
    table = make(90)
    table = table.take(np.flatnonzero(table.labels != 2))
    found = metrics.figures(table, draws=50)
    for name in ("recall/comminuted", "auroc/comminuted", "auroc", "balanced_accuracy"):
        assert found[name].value is None, name
        assert found[name].reason, name
    assert found["accuracy"].value is not None
    assert np.isnan(metrics.quick(table.probabilities, table.labels)["auroc"])


def test_rows_of_unknown_label_are_left_out() -> None:
    table = make(90)
    rows = table.rows.assign(label=np.where(np.arange(90) < 40, table.labels, -1))
    part = metrics.figures(replace(table, rows=rows), draws=20)
    assert part == metrics.figures(table.take(np.arange(40)), draws=20)
    none = metrics.figures(replace(table, rows=table.rows.assign(label=-1)))
    assert none["accuracy"].reason == "no row has a known label"


def test_figures_say_how_many_images_and_patients() -> None:
    found = metrics.figures(make(120, films=4), draws=50)
    assert {(f.n, f.patients) for f in found.values()} == {(120, 30)}
    assert found["accuracy"].method == "patient bootstrap, BCa"
    assert found["auroc"].method == "cluster-robust DeLong"
    assert metrics.figures(make(120), draws=50)["accuracy"].method == "Wilson"
