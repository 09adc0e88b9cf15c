import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

from evaluation import diversity
from evaluation.pooling import stack
from tests.evaluation.tables import make


def test_a_pair_by_hand() -> None:
    labels = np.zeros(10, int)
    first = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    second = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    found = diversity.pair(first, second, labels)
    assert found.disagreement == pytest.approx(0.3)
    assert found.double_fault == pytest.approx(0.3)
    assert found.q == pytest.approx((4 * 3 - 2 * 1) / (4 * 3 + 2 * 1))
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert found.error_correlation == pytest.approx(matthews_corrcoef(first, second))


def test_members_that_never_err_have_no_q() -> None:
    labels = np.array([0, 1, 0, 1])
    found = diversity.pair(labels, labels, labels)
    assert (found.q, found.error_correlation) == (None, None)
    assert found.kappa == 1.0
    zeros = np.zeros(4, int)
    assert diversity.pair(zeros, zeros, zeros).kappa is None


def test_the_geometric_pool_splits_exactly() -> None:
    table = make(200, 4)
    members = stack([make(200, 4, seed=s) for s in range(3)])
    pooled = np.exp(np.log(members).mean(0))
    pooled /= pooled.sum(1, keepdims=True)
    found = diversity.split(members, table.labels)
    truth = -np.log(pooled[np.arange(200), table.labels]).mean()
    apart = np.mean([(pooled * np.log(pooled / m)).sum(1).mean() for m in members])
    assert found.pool == pytest.approx(truth, abs=1e-12)
    assert found.diversity == pytest.approx(apart, abs=1e-12)
    assert found.pool == pytest.approx(found.mean_member - found.diversity, abs=1e-12)


def test_copies_have_no_diversity() -> None:
    table = make(100)
    members = stack([table] * 5)
    assert diversity.agreement(members) == 1.0
    assert diversity.split(members, table.labels).diversity == pytest.approx(0, abs=1e-12)
    assert np.abs(diversity.dispute(members)).max() < 1e-12
    assert all(p.disagreement == 0 for p in diversity.pairs(members, table.labels).values())


def test_agreement_and_dispute() -> None:
    sure = np.array([[1.0, 0.0], [1.0, 0.0]])
    other = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert diversity.agreement(np.stack([sure, other])) == 0.5
    np.testing.assert_allclose(diversity.dispute(np.stack([sure, other])), [0, np.log(2)])
