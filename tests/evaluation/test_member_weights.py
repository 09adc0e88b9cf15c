import numpy as np
import pytest

from evaluation.voters.grouped import GroupAttention, PerGroup
from evaluation.voters.learned import PerClass, Stacked
from evaluation.voters.simple import Geometric, Majority, Soft, Weighted

RNG = np.random.default_rng(0)
MEMBERS = RNG.dirichlet(np.ones(3), (2, 5))
CLASSES = np.array([0, 1, 2, 0, 1])
GROUPS = np.array(["hand", "knee", "hand", "toe", "knee"], dtype=object)
CLASS_NAMES = ["a", "b", "c"]
GROUP_WEIGHTS = ("part", ["hand", "knee"], np.array([[3, 1], [1, 9]]), np.array([1, 1]))


@pytest.mark.parametrize("voter", [Soft(), Geometric(), Majority()], ids=lambda v: v.name)
def test_voters_without_weights_weigh_members_equally(voter):
    np.testing.assert_array_equal(voter.member_weights(MEMBERS, CLASSES), np.full((5, 2), 0.5))
    assert voter.weight_rows(CLASS_NAMES) == {}


def test_member_weights_reproduce_the_probabilities_of_linear_voters():
    keys = RNG.normal(size=(1, 2, 4))
    voters = [
        Weighted(np.array([3.0, 1.0])),
        PerGroup(*GROUP_WEIGHTS),
        GroupAttention(*GROUP_WEIGHTS, ["hand"], np.array([[0.5, -0.5]]), keys),
    ]
    for voter in voters:
        weights = voter.member_weights(MEMBERS, CLASSES, GROUPS)
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        pooled = np.einsum("nm,mnk->nk", weights, MEMBERS)
        np.testing.assert_allclose(pooled, voter(MEMBERS, GROUPS))


def test_weight_rows_are_named_by_class_or_group():
    per_group = PerGroup(*GROUP_WEIGHTS)
    attention = GroupAttention(*GROUP_WEIGHTS, ["hand"], np.zeros((1, 2)), np.zeros((1, 2, 4)))
    per_class = PerClass(np.array([[1, 3], [1, 1], [4, 1]]))
    assert Weighted(np.array([3, 1])).weight_rows(CLASS_NAMES)[""].tolist() == [0.75, 0.25]
    rows = [voter.weight_rows(CLASS_NAMES) for voter in (per_group, attention, per_class)]
    assert [list(row) for row in rows] == [["hand", "knee"], ["hand", "knee"], CLASS_NAMES]
    assert rows[0]["knee"].tolist() == [0.1, 0.9]
    assert rows[2]["c"].tolist() == [0.8, 0.2]


def test_per_class_weights_are_those_of_the_given_class():
    weights = PerClass(np.array([[1, 3], [1, 1], [4, 1]])).member_weights(MEMBERS, CLASSES)
    np.testing.assert_allclose(weights[:, 0], [0.25, 0.5, 0.8, 0.25, 0.5])


def test_stacking_weighs_members_by_positive_weights_of_the_class():
    weights = np.zeros((3, 2, 3))
    weights[0, :, 0] = 1, 3
    weights[1, :, 1] = -1, 2
    weights[2, :, 2] = -1, -1
    voter = Stacked(weights.reshape(3, 6), np.zeros(3))
    member_weights = voter.member_weights(MEMBERS, CLASSES)
    np.testing.assert_allclose(member_weights[:3], [[0.25, 0.75], [0, 1], [0.5, 0.5]])


def test_missing_groups_are_an_error():
    voter = PerGroup("part", ["hand"], np.ones((1, 2)), np.ones(2))
    with pytest.raises(ValueError, match="needs the attribute 'part'"):
        voter.member_weights(MEMBERS, CLASSES)
