"""Planted wrong labels are found, and their number is estimated."""

import numpy as np
import pandas as pd
import pytest

from evaluation.label_audit import audit_labels, label_doubt, mean_of_models, surest_of_each_class
from evaluation.predictions import PredictionTable

NAMES = ["a", "b", "c"]


def make_table(p: object, labels: list[int], names: list[str]) -> PredictionTable:
    ids = [f"i{k}" for k in range(len(labels))]
    rows = pd.DataFrame({"id": ids, "label": labels, "split": "test", "patient": ids, "study": ""})
    return PredictionTable(rows, np.log(p), names)


def predictions(
    share: float, n: int = 2000, names: list[str] = NAMES, signal: float = 2.5
) -> tuple[PredictionTable, np.ndarray]:
    """Predictions of a fair model, and which of their labels were changed to another class."""
    rng, k = np.random.default_rng(0), len(names)
    truth = rng.integers(k, size=n)
    logits = rng.normal(size=(n, k)) + signal * (np.arange(k) == truth[:, None])
    is_wrong = rng.permutation(n) < round(share * n)
    labels = np.where(is_wrong, (truth + rng.integers(1, k, size=n)) % k, truth)
    rows = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "label": labels, "split": "test"})
    rows = rows.assign(patient=[f"p{k // 2}" for k in range(n)], study="")
    return PredictionTable(rows, logits, names), is_wrong


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.2])
def test_the_share_of_wrong_labels_is_within_its_interval(share):
    table, _ = predictions(share)
    wrong = audit_labels([table]).wrong
    assert wrong.low <= share <= wrong.high
    assert wrong.n == pytest.approx(400, abs=3)
    assert (
        table.predictions != table.labels
    ).mean() > share + 0.01  # counting errors is no estimate


def test_changed_labels_come_first():
    table, is_wrong = predictions(0.1)
    ranking = audit_labels([table]).ranking
    wrong = set(table.rows["id"][is_wrong])
    found = len(wrong & set(ranking["id"][: len(wrong)])) / len(wrong)
    assert found > 0.8
    at = table.rows.set_index("id").loc[ranking["id"]]
    assert ranking["label"].tolist() == [NAMES[k] for k in at["label"]]
    assert ranking["suggestion"][0] != ranking["label"][0]
    assert ranking["p_suggestion"][0] > ranking["p_label"][0]


def test_a_class_that_is_always_uncertain_is_not_doubtful_for_that():
    sure, unsure = [0.9, 0.06, 0.04], [0.3, 0.4, 0.3]
    p = np.array([sure] * 50 + [[0.5, 0.4, 0.1]] + [unsure] * 50)
    labels = [0] * 51 + [1] * 50
    table = make_table(p, labels, NAMES)
    assert label_doubt(table).argmax() == 50  # although 0.5 is above 0.4


def test_a_grade_is_more_doubtful_the_further_it_is_away():
    p = [[0.0, 0.0, 0.1, 0.9], [0.0, 0.0, 0.1, 0.9], [0.0, 0.5, 0.5, 0.0]]
    table = make_table(np.maximum(p, 1e-9), [0, 2, 2], ["0", "1", "2", "3"])
    assert label_doubt(table) == pytest.approx([2.9, 0.9, 0.5], abs=1e-6)


def test_an_image_of_several_models_has_their_mean():
    first = make_table([[0.8, 0.2], [0.6, 0.4]], [0, 1], ["x", "y"])
    second = make_table([[0.5, 0.5], [0.1, 0.9]], [0, 1], ["x", "y"]).take(np.array([1]))
    table, agreement = mean_of_models([first, second])
    np.testing.assert_allclose(table.probabilities, [[0.8, 0.2], [0.35, 0.65]], atol=1e-6)
    assert agreement.tolist() == [1.0, 0.5]
    second.rows["label"] = 0
    with pytest.raises(ValueError, match="has different labels in two tables"):
        mean_of_models([first, second])


def test_the_surest_are_chosen_within_each_predicted_class():
    p = np.linspace(0.55, 0.95, 10)
    table = np.concatenate([np.stack([p, 1 - p], 1), np.stack([1 - p[:5] / 1.05, p[:5] / 1.05], 1)])
    is_sure = surest_of_each_class(table)
    assert np.flatnonzero(is_sure).tolist() == [8, 9, 14]
