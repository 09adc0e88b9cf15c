import numpy as np

from evaluation.pooling import Soft, pool, stack
from tests.evaluation.tables import make


def test_soft_voting_is_the_mean() -> None:
    members = stack([make(seed=s) for s in range(3)])
    expected = (members[0] + members[1] + members[2]) / 3
    np.testing.assert_allclose(Soft()(members), expected, rtol=1e-12)


def test_a_councils_table_holds_its_pooled_probabilities() -> None:
    tables = [make(seed=s) for s in range(3)]
    shuffled = tables[1].take(np.random.default_rng(0).permutation(60))
    council = pool(Soft(), [tables[0], shuffled, tables[2]])
    np.testing.assert_allclose(council.probabilities, Soft()(stack(tables)), atol=1e-6)
    assert council.rows.equals(tables[0].rows)
