from dataclasses import replace

import numpy as np
import pytest

from evaluation.voters.learned import PerPart
from evaluation.voters.simple import Geometric, Majority, Soft, Weighted, parts_of, pool, stack
from tests.evaluation.tables import make


def _members(count: int = 3) -> np.ndarray:
    return stack([make(seed=s) for s in range(count)])


def test_soft_voting_is_the_mean() -> None:
    members = _members()
    expected = (members[0] + members[1] + members[2]) / 3
    np.testing.assert_allclose(Soft()(members), expected, rtol=1e-12)


def test_geometric_voting_is_the_normalized_root_of_the_product() -> None:
    members = _members()
    product = (members[0] * members[1] * members[2]) ** (1 / 3)
    expected = product / product.sum(1, keepdims=True)
    np.testing.assert_allclose(Geometric()(members), expected, rtol=1e-10)


def test_majority_counts_votes_and_breaks_ties_by_the_mean() -> None:
    votes = np.array([[[0.9, 0.1, 0.0]], [[0.4, 0.6, 0.0]], [[0.45, 0.55, 0.0]]])
    assert Majority()(votes)[0].argmax() == 1
    assert Soft()(votes)[0].argmax() == 0
    tied = np.array([[[0.6, 0.4, 0.0]], [[0.1, 0.9, 0.0]]])
    assert Majority()(tied)[0].argmax() == 1


def test_weights_are_scaled_and_equal_ones_are_soft() -> None:
    members = _members()
    np.testing.assert_allclose(Weighted(np.array([2, 2, 2]))(members), Soft()(members))
    np.testing.assert_allclose(Weighted(np.array([0, 5, 0]))(members), members[1])


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [0.0, 0.0], [np.nan, 1.0]])
def test_weights_that_are_not_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="each must be >= 0 and one must be > 0"):
        Weighted(np.array(weights))


def test_another_number_of_members_is_refused() -> None:
    with pytest.raises(ValueError, match="this voter has 2 members"):
        Weighted(np.array([1, 1]))(_members(3))


def test_every_voter_gives_probabilities_and_copies_change_nothing() -> None:
    one = make().probabilities
    copies = np.stack([one] * 5)
    for voter in (Soft(), Geometric(), Weighted(np.arange(1, 6))):
        np.testing.assert_allclose(voter(copies), one, atol=1e-12)
    np.testing.assert_allclose(Majority()(copies).sum(1), 1)
    assert np.array_equal(Majority()(copies).argmax(1), one.argmax(1))


def test_a_ensembles_table_holds_its_pooled_probabilities() -> None:
    tables = [make(seed=s) for s in range(3)]
    shuffled = tables[1].take(np.random.default_rng(0).permutation(60))
    ensemble = pool(Soft(), [tables[0], shuffled, tables[2]])
    np.testing.assert_allclose(ensemble.probabilities, Soft()(stack(tables)), atol=1e-6)
    assert ensemble.rows.equals(tables[0].rows)


def test_an_image_without_its_part_is_named() -> None:
    voter = PerPart("body_part", ["wrist"], np.ones((1, 3)), np.ones(3))
    table = make()
    rows = table.rows.assign(body_part=["wrist"] * 58 + ["", "wrist"])
    with pytest.raises(ValueError, match="1 images lack 'body_part', first 'image58'"):
        parts_of(voter, replace(table, rows=rows))
    with pytest.raises(ValueError, match="needs attribute 'body_part'"):
        parts_of(voter, replace(table, rows=rows.drop(columns="body_part")))
    with pytest.raises(ValueError, match=r"1 images lack 'body_part', at rows \[1\]"):
        voter(_members()[:, :2], np.array(["wrist", ""]))
    with pytest.raises(ValueError, match="needs the attribute 'body_part' of each image"):
        voter(_members())
