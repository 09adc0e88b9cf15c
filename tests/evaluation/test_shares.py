import numpy as np
import pytest

from evaluation.voters.attention import PartAttention, Stacked
from evaluation.voters.learned import PerClass, PerPart
from evaluation.voters.shares import shares
from evaluation.voters.simple import Geometric, Majority, Soft, Weighted

RNG = np.random.default_rng(0)
MEMBERS = RNG.dirichlet(np.ones(3), (2, 5))
CLASSES = np.array([0, 1, 2, 0, 1])
PARTS = np.array(["hand", "knee", "hand", "toe", "knee"], dtype=object)


@pytest.mark.parametrize("voter", [Soft(), Geometric(), Majority()], ids=lambda v: v.kind)
def test_voters_without_weights_share_evenly(voter):
    np.testing.assert_array_equal(shares(voter, MEMBERS, CLASSES), np.full((5, 2), 0.5))


def test_shares_rebuild_what_linear_voters_say():
    per_part = PerPart("part", ["hand", "knee"], np.array([[3, 1], [1, 9]]), np.array([1, 1]))
    layer = RNG.normal(size=(1, 2, 4))
    voters = [
        Weighted(np.array([3.0, 1.0])),
        per_part,
        PartAttention(["hand"], np.array([[0.5, -0.5]]), layer, per_part),
    ]
    for voter in voters:
        said = shares(voter, MEMBERS, CLASSES, PARTS)
        np.testing.assert_allclose(said.sum(axis=1), 1)
        pooled = np.einsum("nm,mnk->nk", said, MEMBERS)
        np.testing.assert_allclose(pooled, voter(MEMBERS, PARTS))


def test_per_class_weights_are_those_of_the_class():
    said = shares(PerClass(np.array([[1, 3], [1, 1], [4, 1]])), MEMBERS, CLASSES)
    np.testing.assert_allclose(said[:, 0], [0.25, 0.5, 0.8, 0.25, 0.5])


def test_a_stack_counts_only_what_speaks_for_the_class():
    weights = np.zeros((3, 2, 3))
    weights[0, :, 0] = 1, 3
    weights[1, :, 1] = -1, 2
    weights[2, :, 2] = -1, -1
    voter = Stacked(weights.reshape(3, 6), np.zeros(3))
    said = shares(voter, MEMBERS, CLASSES)
    np.testing.assert_allclose(said[:3], [[0.25, 0.75], [0, 1], [0.5, 0.5]])


def test_a_part_that_is_lacking_is_said():
    voter = PerPart("part", ["hand"], np.ones((1, 2)), np.ones(2))
    with pytest.raises(ValueError, match="needs the attribute 'part'"):
        shares(voter, MEMBERS, CLASSES)
