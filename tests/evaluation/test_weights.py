from collections.abc import Callable

import numpy as np
import pytest

from evaluation.metrics.compute import epoch_metrics
from evaluation.predictions import PredictionTable
from evaluation.voters.attention import attend, features, fit_part_attention, fit_stacked
from evaluation.voters.learned import (
    fit_greedy,
    fit_learned,
    fit_per_class,
    fit_per_part,
    least_nll,
)
from evaluation.voters.simple import Soft, Voter, pool, stack
from tests.evaluation.tables import experts, make

Fit = Callable[[list[PredictionTable]], Voter]


def _attend(tables: list[PredictionTable]) -> Voter:
    return fit_part_attention(tables, ["elbow"])


FITS: list[Fit] = [fit_learned, fit_greedy, fit_per_class, fit_per_part, fit_stacked, _attend]


def _nll(table: PredictionTable) -> float:
    return float(-table.log_probabilities[np.arange(len(table)), table.labels].mean())


@pytest.mark.parametrize("fit", FITS)
def test_nothing_is_fitted_on_test(fit: Fit) -> None:
    with pytest.raises(ValueError, match="may not be fitted on split 'test'"):
        fit(experts(900, "test"))


@pytest.mark.parametrize("fit", FITS)
def test_every_fitted_voter_gives_probabilities_and_helps_on_new_images(fit: Fit) -> None:
    voter, fresh = fit(experts(seed=0)), experts(seed=1, split="test")
    ensemble = pool(voter, fresh)
    np.testing.assert_allclose(ensemble.probabilities.sum(1), 1)
    assert _nll(ensemble) < _nll(pool(Soft(), fresh)) - 0.01


@pytest.mark.parametrize("fit", FITS)
def test_copies_of_one_net_give_no_gain(fit: Fit) -> None:
    table = make(1500, films=3, split="val")
    voter = fit([table] * 5)
    gain = _nll(table) - _nll(pool(voter, [table] * 5))
    # a stack can also calibrate; all others can only give the net back
    assert gain < (0.5 if fit is fit_stacked else 1e-6)


def _calibrated_nll(weights: np.ndarray, members: np.ndarray, labels: np.ndarray) -> float:
    """NLL of the pool at its best temperature, found by trying very many."""
    pooled = np.log(np.einsum("m,mnk->nk", weights, members))
    own = pooled[np.arange(len(labels)), labels]
    grid = np.geomspace(0.1, 10, 1500)
    return min(float((np.log(np.exp(b * pooled).sum(1)) - b * own).mean()) for b in grid)


def test_no_step_from_the_learned_weights_lowers_the_calibrated_nll() -> None:
    gains = (0.5, 1.0, 1.5, 1.5)
    tables = [make(600, seed=s, gain=g, split="val") for s, g in enumerate(gains)]
    members, labels = stack(tables), tables[0].labels
    w = fit_learned(tables).weights
    least = _calibrated_nll(w, members, labels)
    for corner in np.eye(4):
        for step in (-0.02, 0.02):
            moved = np.clip(w + step * (corner - w), 0, None)
            assert _calibrated_nll(moved / moved.sum(), members, labels) > least - 1e-6
    assert least < _calibrated_nll(np.full(4, 0.25), members, labels)


def test_a_planted_mixture_is_recovered() -> None:
    rng = np.random.default_rng(0)
    members = rng.dirichlet(np.ones(4) * 0.5, (3, 20000))
    mixed = np.einsum("m,mnk->nk", [0.6, 0.3, 0.1], members)
    label = (mixed.cumsum(1) < rng.random((20000, 1))).sum(1).clip(0, 3)
    np.testing.assert_allclose(least_nll(members, label), [0.6, 0.3, 0.1], atol=0.03)


def test_weights_are_learned_for_the_pool_as_it_will_be_used() -> None:
    """Members that err apart make a hesitant mixture; calibrated, it beats each of them."""
    tables = [make(3000, 5, seed=s, gain=1.5 + s / 10, split="val") for s in range(4)]
    members, labels = stack(tables), tables[0].labels
    learned = fit_learned(tables).weights
    assert learned.min() > 0.1
    best = min(_calibrated_nll(corner, members, labels) for corner in np.eye(4))
    assert _calibrated_nll(learned, members, labels) < best - 0.2


def test_greedy_selection_finds_the_same_weights_in_steps() -> None:
    tables = [make(2000, seed=s, gain=g, split="val") for s, g in ((1, 1.0), (2, 1.5), (3, 2.0))]
    greedy, learned = fit_greedy(tables), fit_learned(tables)
    members, labels = stack(tables), tables[0].labels
    losses = [_calibrated_nll(w, members, labels) for w in (greedy.weights, learned.weights)]
    assert losses[0] < losses[1] + 1e-3
    assert abs(greedy.optimizm) < 0.05
    again = fit_greedy(tables)
    assert np.array_equal(greedy.weights, again.weights)


def test_planted_body_part_experts_are_recovered() -> None:
    voter = fit_per_part(experts(), "body_part")
    at = dict(zip(voter.values, voter.weights, strict=True))
    assert at["wrist"].argmax() == 0
    assert at["wrist"][0] > 0.85
    assert at["elbow"].argmax() == 1
    assert at["elbow"][1] > 0.85


def test_a_part_shrinks_by_its_number_and_an_unseen_one_takes_the_common_weights() -> None:
    tables = experts(400)
    members, table = stack(tables), tables[0]
    common = least_nll(members, table.labels)
    here = (table.rows["body_part"] == "wrist").to_numpy()
    n = here.sum()
    s = n / (n + 50)
    expected = s * least_nll(members[:, here], table.labels[here]) + (1 - s) * common
    voter = fit_per_part(tables, "body_part", shrinkage=50)
    at = dict(zip(voter.values, voter.weights, strict=True))
    np.testing.assert_allclose(at["wrist"], expected, atol=1e-9)
    np.testing.assert_allclose(voter.of(np.array(["knee"]))[0], common, atol=1e-9)


def test_a_rare_class_takes_the_common_weights() -> None:
    tables = [make(2000, 3, seed=s, gain=g, split="val") for s, g in ((1, 1.0), (2, 1.1))]
    rare = np.flatnonzero(tables[0].labels == 2)[40:]
    kept = np.setdiff1d(np.arange(2000), rare)
    cut = [t.take(kept) for t in tables]
    common = least_nll(stack(cut), cut[0].labels)
    voter = fit_per_class(cut)
    np.testing.assert_allclose(voter.weights[2], common, atol=1e-9)
    assert np.abs(voter.weights[0] - common).max() > 1e-6


def test_a_stack_asks_for_enough_rows() -> None:
    tables = [make(440, 3, seed=s, split="val") for s in range(3)]
    with pytest.raises(ValueError, match="50 x 3 members x 3 classes = 450 labeled rows"):
        fit_stacked(tables)


def test_attention_turns_from_a_member_that_has_lost_the_image() -> None:
    """Of two members one, at random, has lost the image and says class 0, very surely."""
    rng = np.random.default_rng(0)
    base = experts(4000)[0]
    label, knows = rng.integers(1, 3, 4000), rng.random(4000) < 0.5
    rows, tables = base.rows.assign(label=label), []
    for mine in (knows, ~knows):
        sure = np.where(mine[:, None], 3 * np.eye(3)[label], [6.0, 0.0, 0.0])
        logits = sure + 0.3 * rng.normal(size=(4000, 3))
        tables.append(PredictionTable(rows, logits, base.class_names, base.meta))
    voter = fit_part_attention(tables, ["elbow", "wrist"])
    members = stack(tables)
    weights = voter.of(members, rows["body_part"].to_numpy())
    assert weights[knows, 0].mean() > 0.9
    assert weights[~knows, 1].mean() > 0.9
    gain = _nll(pool(Soft(), tables)) - _nll(pool(voter, tables))
    assert gain > 0.2


def test_a_part_that_is_not_named_is_pooled_by_its_weights() -> None:
    tables = experts()
    voter = fit_part_attention(tables, ["elbow"])
    rest = fit_per_part(tables)
    wrist = (tables[0].rows["body_part"] == "wrist").to_numpy()
    parts, members = tables[0].rows["body_part"].to_numpy(), stack(tables)
    both = voter(members, parts), rest(members, parts)
    np.testing.assert_allclose(both[0][wrist], both[1][wrist])
    assert np.abs(both[0][~wrist] - both[1][~wrist]).max() > 1e-3
    with pytest.raises(ValueError, match="body_part 'knee' has no validation image"):
        fit_part_attention(tables, ["knee"])


def test_a_layer_without_keys_is_a_softmax_of_its_bias() -> None:
    seen = features(stack(experts(30)))
    weights = attend(np.log([0.2, 0.3, 0.5]), np.zeros((3, 4)), seen)
    np.testing.assert_allclose(weights, np.tile([0.2, 0.3, 0.5], (30, 1)))


def test_experts_pooled_by_part_are_right_where_each_is() -> None:
    fresh = experts(seed=1, split="test")
    ensemble = pool(fit_per_part(experts()), fresh)
    found = epoch_metrics(ensemble.probabilities, ensemble.labels)
    assert (
        found["accuracy"] > epoch_metrics(fresh[0].probabilities, fresh[0].labels)["accuracy"] + 0.2
    )
