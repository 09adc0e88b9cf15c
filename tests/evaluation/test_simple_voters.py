from dataclasses import replace

import numpy as np
import pytest

from evaluation.voters.grouped import PerGroup
from evaluation.voters.simple import (
    Geometric,
    Majority,
    Soft,
    Weighted,
    pool_tables,
    stacked_probabilities,
)
from tests.evaluation.tables import make_table


def _members(count: int = 3) -> np.ndarray:
    return stacked_probabilities([make_table(seed=s) for s in range(count)])


def test_soft_is_the_mean() -> None:
    members = _members()
    expected = (members[0] + members[1] + members[2]) / 3
    np.testing.assert_allclose(Soft()(members), expected, rtol=1e-12)


def test_geometric_is_the_normalized_cube_root_of_the_product() -> None:
    members = _members()
    product = (members[0] * members[1] * members[2]) ** (1 / 3)
    expected = product / product.sum(1, keepdims=True)
    np.testing.assert_allclose(Geometric()(members), expected, rtol=1e-10)


def test_majority_counts_predictions_and_breaks_ties_by_the_mean() -> None:
    members = np.array([[[0.9, 0.1, 0.0]], [[0.4, 0.6, 0.0]], [[0.45, 0.55, 0.0]]])
    assert Majority()(members)[0].argmax() == 1
    assert Soft()(members)[0].argmax() == 0
    tied = np.array([[[0.6, 0.4, 0.0]], [[0.1, 0.9, 0.0]]])
    assert Majority()(tied)[0].argmax() == 1


def test_weights_are_normalized_and_equal_weights_are_soft() -> None:
    members = _members()
    np.testing.assert_allclose(Weighted(np.array([2, 2, 2]))(members), Soft()(members))
    np.testing.assert_allclose(Weighted(np.array([0, 5, 0]))(members), members[1])


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [0.0, 0.0], [np.nan, 1.0]])
def test_invalid_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="each must be >= 0 and one must be > 0"):
        Weighted(np.array(weights))


def test_another_number_of_members_is_refused() -> None:
    with pytest.raises(ValueError, match="this voter has 2 members"):
        Weighted(np.array([1, 1]))(_members(3))


def test_every_voter_returns_probabilities_and_copies_change_nothing() -> None:
    single = make_table().probabilities
    copies = np.stack([single] * 5)
    for voter in (Soft(), Geometric(), Weighted(np.arange(1, 6))):
        np.testing.assert_allclose(voter(copies), single, atol=1e-12)
    np.testing.assert_allclose(Majority()(copies).sum(1), 1)
    assert np.array_equal(Majority()(copies).argmax(1), single.argmax(1))


def test_a_pooled_table_has_the_pooled_probabilities_in_the_order_of_the_first() -> None:
    tables = [make_table(seed=s) for s in range(3)]
    shuffled = tables[1].take(np.random.default_rng(0).permutation(60))
    ensemble = pool_tables(Soft(), [tables[0], shuffled, tables[2]])
    expected = Soft()(stacked_probabilities(tables))
    np.testing.assert_allclose(ensemble.probabilities, expected, atol=1e-6)
    assert ensemble.rows.equals(tables[0].rows)


def test_an_image_without_its_group_is_named_in_the_error() -> None:
    voter = PerGroup("body_part", ["wrist"], np.ones((1, 3)), np.ones(3))
    table = make_table()
    rows = table.rows.assign(body_part=["wrist"] * 58 + ["", "wrist"])
    with pytest.raises(ValueError, match="1 images lack 'body_part', first 'image58'"):
        pool_tables(voter, [replace(table, rows=rows)] * 3)
    with pytest.raises(ValueError, match="needs attribute 'body_part'"):
        pool_tables(voter, [replace(table, rows=rows.drop(columns="body_part"))] * 3)
    with pytest.raises(ValueError, match=r"1 images lack 'body_part', at rows \[1\]"):
        voter(_members()[:, :2], np.array(["wrist", ""]))
    with pytest.raises(ValueError, match="needs the attribute 'body_part' of each image"):
        voter(_members())
