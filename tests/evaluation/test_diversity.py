import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

from evaluation import diversity
from evaluation.stats.estimate import wilson_interval
from evaluation.voters.simple import stacked_probabilities
from tests.evaluation.tables import make_table


def people(count: int, films: int = 1) -> np.ndarray:
    return np.repeat([f"p{k}" for k in range(count)], films)


def test_a_pair_by_hand() -> None:
    labels = np.zeros(10, int)
    first = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    second = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    found = diversity.pair_diversity(first, second, labels, people(10))
    assert found.disagreement.value == pytest.approx(0.3)
    assert (found.disagreement.low, found.disagreement.high) == wilson_interval(3, 10)
    assert found.double_fault.value == pytest.approx(0.3)
    assert found.q.value == pytest.approx((4 * 3 - 2 * 1) / (4 * 3 + 2 * 1))
    assert found.kappa.value == pytest.approx(cohen_kappa_score(first, second))
    assert found.error_correlation.value == pytest.approx(matthews_corrcoef(first, second))


def test_a_pairs_intervals_are_over_patients() -> None:
    rng = np.random.default_rng(0)
    labels, said = np.zeros(60, int), (rng.random((2, 60)) < 0.4).astype(int)
    one = diversity.pair_diversity(*said, labels, people(60), draws=500)
    many = diversity.pair_diversity(
        *np.repeat(said, 4, axis=1), np.repeat(labels, 4), people(60, 4), 500
    )
    for name in ("disagreement", "double_fault", "q", "kappa", "error_correlation"):
        few, films = getattr(one, name), getattr(many, name)
        assert (few.n, few.patients, films.n, films.patients) == (60, 60, 240, 60)
        assert few.low < few.value < few.high, name
        assert films.high - films.low == pytest.approx(few.high - few.low, rel=0.15), name


def test_members_that_never_err_have_no_q() -> None:
    labels = np.array([0, 1, 0, 1])
    found = diversity.pair_diversity(labels, labels, labels, people(4))
    assert (found.q.value, found.error_correlation.value) == (None, None)
    assert found.q.reason == "a member is right on all images, or on none"
    assert (found.kappa.value, found.kappa.low) == (1.0, None)
    zeros = np.zeros(4, int)
    assert diversity.pair_diversity(zeros, zeros, zeros, people(4)).kappa.value is None


def test_the_geometric_pool_splits_exactly() -> None:
    table = make_table(200, 4)
    members = stacked_probabilities([make_table(200, 4, seed=s) for s in range(3)])
    pooled = np.exp(np.log(members).mean(0))
    pooled /= pooled.sum(1, keepdims=True)
    found = diversity.decompose_nll(members, table.labels)
    truth = -np.log(pooled[np.arange(200), table.labels]).mean()
    apart = np.mean([(pooled * np.log(pooled / m)).sum(1).mean() for m in members])
    assert found.pool == pytest.approx(truth, abs=1e-12)
    assert found.diversity == pytest.approx(apart, abs=1e-12)
    assert found.pool == pytest.approx(found.mean_member - found.diversity, abs=1e-12)


def test_copies_have_no_diversity() -> None:
    table = make_table(100)
    members = stacked_probabilities([table] * 5)
    agreement = diversity.agreement(members, table.patients)
    assert (agreement.value, agreement.low) == (1.0, wilson_interval(100, 100)[0])
    assert diversity.decompose_nll(members, table.labels).diversity == pytest.approx(0, abs=1e-12)
    assert np.abs(diversity.js_divergence(members)).max() < 1e-12
    found = diversity.pairwise_diversity(members, table.labels, table.patients, draws=20)
    assert all(pair.disagreement.value == 0 for pair in found.values())


def test_agreement_and_dispute() -> None:
    sure = np.array([[1.0, 0.0], [1.0, 0.0]])
    other = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert diversity.agreement(np.stack([sure, other]), people(2)).value == 0.5
    np.testing.assert_allclose(diversity.js_divergence(np.stack([sure, other])), [0, np.log(2)])
