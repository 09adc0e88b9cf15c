from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

from evaluation import diversity
from evaluation.stats.estimate import wilson_interval
from evaluation.voters.simple import stacked_probabilities
from tests.evaluation.tables import make_table


def _patients(count: int, images: int = 1) -> np.ndarray:
    return np.repeat([f"p{k}" for k in range(count)], images)


def test_pair_diversity_equals_closed_forms_and_scikit_learn() -> None:
    labels = np.zeros(10, int)
    first = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    second = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    pair = diversity.pair_diversity(first, second, labels, _patients(10))
    assert pair.disagreement.value == pytest.approx(0.3)
    assert (pair.disagreement.low, pair.disagreement.high) == wilson_interval(3, 10)
    assert pair.double_fault.value == pytest.approx(0.3)
    assert pair.q.value == pytest.approx((4 * 3 - 2 * 1) / (4 * 3 + 2 * 1))
    assert pair.kappa.value == pytest.approx(cohen_kappa_score(first, second))
    assert pair.error_correlation.value == pytest.approx(matthews_corrcoef(first, second))


def test_intervals_of_a_pair_are_over_patients() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = np.zeros(60, int), (rng.random((2, 60)) < 0.4).astype(int)
    single = diversity.pair_diversity(*predictions, labels, _patients(60), draws=500)
    repeated = diversity.pair_diversity(
        *np.repeat(predictions, 4, axis=1), np.repeat(labels, 4), _patients(60, 4), 500
    )
    for name in ("disagreement", "double_fault", "q", "kappa", "error_correlation"):
        one, four = getattr(single, name), getattr(repeated, name)
        assert (one.n, one.patients, four.n, four.patients) == (60, 60, 240, 60)
        assert one.low < one.value < one.high, name
        assert four.high - four.low == pytest.approx(one.high - one.low, rel=0.15), name


def test_members_without_errors_have_no_q() -> None:
    labels = np.array([0, 1, 0, 1])
    pair = diversity.pair_diversity(labels, labels, labels, _patients(4))
    assert (pair.q.value, pair.error_correlation.value) == (None, None)
    assert pair.q.reason == "a member is right on all images, or on none"
    assert (pair.kappa.value, pair.kappa.low) == (1.0, None)
    zeros = np.zeros(4, int)
    assert diversity.pair_diversity(zeros, zeros, zeros, _patients(4)).kappa.value is None


def test_the_nll_of_the_geometric_mean_is_mean_member_minus_diversity() -> None:
    table = make_table(200, 4)
    members = stacked_probabilities([make_table(200, 4, seed=s) for s in range(3)])
    pooled = np.exp(np.log(members).mean(0))
    pooled /= pooled.sum(1, keepdims=True)
    nll = diversity.decompose_nll(members, table.labels)
    expected = -np.log(pooled[np.arange(200), table.labels]).mean()
    divergence = np.mean([(pooled * np.log(pooled / m)).sum(1).mean() for m in members])
    assert nll.pool == pytest.approx(expected, abs=1e-12)
    assert nll.diversity == pytest.approx(divergence, abs=1e-12)
    assert nll.pool == pytest.approx(nll.mean_member - nll.diversity, abs=1e-12)


def test_copies_have_no_diversity() -> None:
    table = make_table(100)
    members = stacked_probabilities([table] * 5)
    pairs, agreement = diversity.member_diversity({f"m{i}": table for i in range(5)}, draws=20)
    assert (agreement.value, agreement.low) == (1.0, wilson_interval(100, 100)[0])
    assert diversity.decompose_nll(members, table.labels).diversity == pytest.approx(0, abs=1e-12)
    assert np.abs(diversity.js_divergence(members)).max() < 1e-12
    assert len(pairs) == 10
    assert all(pair.disagreement.value == 0 for pair in pairs.values())


def test_pairs_are_named_and_unlabeled_rows_do_not_count() -> None:
    tables = {name: make_table(40, seed=seed) for seed, name in enumerate("abc")}
    rows = tables["a"].rows.assign(label=[-1] * 10 + tables["a"].rows["label"].tolist()[10:])
    unlabeled = {name: replace(table, rows=rows) for name, table in tables.items()}
    pairs, agreement = diversity.member_diversity(unlabeled, draws=20)
    assert list(pairs) == ["a & b", "a & c", "b & c"]
    assert {agreement.n, pairs["a & c"].disagreement.n} == {30}


def test_agreement_and_js_divergence_of_two_images() -> None:
    first = np.array([[1.0, 0.0], [1.0, 0.0]])
    second = np.array([[1.0, 0.0], [0.0, 1.0]])
    members = np.stack([first, second])
    table = make_table(2, 2)
    tables = {name: replace(table, logits=p) for name, p in zip("ab", members, strict=True)}
    assert diversity.member_diversity(tables, draws=20)[1].value == 0.5
    np.testing.assert_allclose(diversity.js_divergence(members), [0, np.log(2)])
