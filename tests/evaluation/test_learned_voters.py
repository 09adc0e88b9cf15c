from collections.abc import Callable

import numpy as np
import pytest

from evaluation.metrics.compute import epoch_metrics
from evaluation.predictions import PredictionTable
from evaluation.voters.grouped import (
    attention_features,
    attention_weights,
    fit_group_attention,
    fit_per_group,
)
from evaluation.voters.learned import (
    fit_greedy,
    fit_learned,
    fit_per_class,
    fit_stacked,
    min_nll_weights,
)
from evaluation.voters.simple import Soft, Voter, pool_tables, stacked_probabilities
from tests.evaluation.tables import expert_tables, make_table

Fit = Callable[[list[PredictionTable]], Voter]


def _fit_attention(tables: list[PredictionTable]) -> Voter:
    return fit_group_attention(tables, ["elbow"])


FITS: list[Fit] = [
    fit_learned,
    fit_greedy,
    fit_per_class,
    fit_per_group,
    fit_stacked,
    _fit_attention,
]


def _nll(table: PredictionTable) -> float:
    return float(-table.log_probabilities[np.arange(len(table)), table.labels].mean())


@pytest.mark.parametrize("fit", FITS)
def test_nothing_is_fitted_on_test(fit: Fit) -> None:
    with pytest.raises(ValueError, match="may not be fitted on split 'test'"):
        fit(expert_tables(900, "test"))


@pytest.mark.parametrize("fit", FITS)
def test_every_fitted_voter_returns_probabilities_and_improves_on_new_images(fit: Fit) -> None:
    voter, test = fit(expert_tables(seed=0)), expert_tables(seed=1, split="test")
    ensemble = pool_tables(voter, test)
    np.testing.assert_allclose(ensemble.probabilities.sum(1), 1)
    assert _nll(ensemble) < _nll(pool_tables(Soft(), test)) - 0.01


@pytest.mark.parametrize("fit", FITS)
def test_copies_of_one_model_give_no_gain(fit: Fit) -> None:
    table = make_table(1500, images_per_patient=3, split="val")
    voter = fit([table] * 5)
    gain = _nll(table) - _nll(pool_tables(voter, [table] * 5))
    # stacking can also calibrate; all others can only reproduce the model
    assert gain < (0.5 if fit is fit_stacked else 1e-6)


def _calibrated_nll(weights: np.ndarray, members: np.ndarray, labels: np.ndarray) -> float:
    """NLL of the pool at its best temperature, by grid search."""
    pooled = np.log(np.einsum("m,mnk->nk", weights, members))
    own = pooled[np.arange(len(labels)), labels]
    grid = np.geomspace(0.1, 10, 1500)
    return min(float((np.log(np.exp(b * pooled).sum(1)) - b * own).mean()) for b in grid)


def test_no_step_away_from_the_learned_weights_lowers_the_calibrated_nll() -> None:
    gains = (0.5, 1.0, 1.5, 1.5)
    tables = [make_table(600, seed=s, gain=g, split="val") for s, g in enumerate(gains)]
    members, labels = stacked_probabilities(tables), tables[0].labels
    w = fit_learned(tables).weights
    least = _calibrated_nll(w, members, labels)
    for corner in np.eye(4):
        for step in (-0.02, 0.02):
            stepped = np.clip(w + step * (corner - w), 0, None)
            assert _calibrated_nll(stepped / stepped.sum(), members, labels) > least - 1e-6
    assert least < _calibrated_nll(np.full(4, 0.25), members, labels)


def test_a_planted_mixture_is_recovered() -> None:
    rng = np.random.default_rng(0)
    members = rng.dirichlet(np.ones(4) * 0.5, (3, 20000))
    mixed = np.einsum("m,mnk->nk", [0.6, 0.3, 0.1], members)
    label = (mixed.cumsum(1) < rng.random((20000, 1))).sum(1).clip(0, 3)
    np.testing.assert_allclose(min_nll_weights(members, label), [0.6, 0.3, 0.1], atol=0.03)


def test_weights_are_optimized_for_the_calibrated_pool() -> None:
    """Members with independent errors make an underconfident mixture; calibrated, it is better."""
    tables = [make_table(3000, 5, seed=s, gain=1.5 + s / 10, split="val") for s in range(4)]
    members, labels = stacked_probabilities(tables), tables[0].labels
    learned = fit_learned(tables).weights
    assert learned.min() > 0.1
    best = min(_calibrated_nll(corner, members, labels) for corner in np.eye(4))
    assert _calibrated_nll(learned, members, labels) < best - 0.2


def test_greedy_selection_reaches_nearly_the_nll_of_learned_weights() -> None:
    tables = [
        make_table(2000, seed=s, gain=g, split="val") for s, g in ((1, 1.0), (2, 1.5), (3, 2.0))
    ]
    greedy, learned = fit_greedy(tables), fit_learned(tables)
    members, labels = stacked_probabilities(tables), tables[0].labels
    losses = [_calibrated_nll(w, members, labels) for w in (greedy.weights, learned.weights)]
    assert losses[0] < losses[1] + 1e-3
    assert abs(greedy.optimism) < 0.05
    assert np.array_equal(greedy.weights, fit_greedy(tables).weights)


def test_planted_body_part_experts_are_recovered() -> None:
    voter = fit_per_group(expert_tables(), "body_part")
    weights = dict(zip(voter.values, voter.weights, strict=True))
    assert weights["wrist"].argmax() == 0
    assert weights["wrist"][0] > 0.85
    assert weights["elbow"].argmax() == 1
    assert weights["elbow"][1] > 0.85


def test_a_group_shrinks_by_its_size_and_an_unknown_group_gets_the_common_weights() -> None:
    tables = expert_tables(400)
    members, table = stacked_probabilities(tables), tables[0]
    common = min_nll_weights(members, table.labels)
    inside = (table.rows["body_part"] == "wrist").to_numpy()
    n = inside.sum()
    ratio = n / (n + 100)
    own = min_nll_weights(members[:, inside], table.labels[inside])
    expected = ratio * own + (1 - ratio) * common
    voter = fit_per_group(tables, "body_part")
    weights = dict(zip(voter.values, voter.weights, strict=True))
    np.testing.assert_allclose(weights["wrist"], expected, atol=1e-9)
    np.testing.assert_allclose(
        voter.image_weights(members, np.array(["knee"]))[0], common, atol=1e-9
    )


def test_a_rare_class_gets_the_common_weights() -> None:
    tables = [make_table(2000, 3, seed=s, gain=g, split="val") for s, g in ((1, 1.0), (2, 1.1))]
    rare = np.flatnonzero(tables[0].labels == 2)[40:]
    remaining = np.setdiff1d(np.arange(2000), rare)
    reduced = [t.take(remaining) for t in tables]
    common = min_nll_weights(stacked_probabilities(reduced), reduced[0].labels)
    voter = fit_per_class(reduced)
    np.testing.assert_allclose(voter.weights[2], common, atol=1e-9)
    assert np.abs(voter.weights[0] - common).max() > 1e-6


def test_stacking_needs_enough_rows() -> None:
    tables = [make_table(440, 3, seed=s, split="val") for s in range(3)]
    with pytest.raises(ValueError, match="50 x 3 members x 3 classes = 450 labeled rows"):
        fit_stacked(tables)


def test_attention_ignores_a_member_that_predicts_without_the_image() -> None:
    """For each image, one of two members predicts class 0 with high confidence, at random."""
    rng = np.random.default_rng(0)
    base = expert_tables(4000)[0]
    label, first_is_right = rng.integers(1, 3, 4000), rng.random(4000) < 0.5
    rows, tables = base.rows.assign(label=label), []
    for is_right in (first_is_right, ~first_is_right):
        confident = np.where(is_right[:, None], 3 * np.eye(3)[label], [6.0, 0.0, 0.0])
        logits = confident + 0.3 * rng.normal(size=(4000, 3))
        tables.append(PredictionTable(rows, logits, base.class_names, base.meta))
    voter = fit_group_attention(tables, ["elbow", "wrist"])
    members = stacked_probabilities(tables)
    weights = voter.image_weights(members, rows["body_part"].to_numpy())
    assert weights[first_is_right, 0].mean() > 0.9
    assert weights[~first_is_right, 1].mean() > 0.9
    gain = _nll(pool_tables(Soft(), tables)) - _nll(pool_tables(voter, tables))
    assert gain > 0.2


def test_a_group_without_attention_is_pooled_by_its_weights() -> None:
    tables = expert_tables()
    voter = fit_group_attention(tables, ["elbow"])
    per_group = fit_per_group(tables)
    wrist = (tables[0].rows["body_part"] == "wrist").to_numpy()
    groups, members = tables[0].rows["body_part"].to_numpy(), stacked_probabilities(tables)
    pooled, expected = voter(members, groups), per_group(members, groups)
    np.testing.assert_allclose(pooled[wrist], expected[wrist])
    assert np.abs(pooled[~wrist] - expected[~wrist]).max() > 1e-3
    with pytest.raises(ValueError, match="body_part 'knee' has no validation image"):
        fit_group_attention(tables, ["knee"])


def test_attention_without_keys_is_a_softmax_of_the_bias() -> None:
    features = attention_features(stacked_probabilities(expert_tables(30)))
    weights = attention_weights(np.log([0.2, 0.3, 0.5]), np.zeros((3, 4)), features)
    np.testing.assert_allclose(weights, np.tile([0.2, 0.3, 0.5], (30, 1)))


def test_experts_pooled_by_group_are_more_accurate_than_one_expert() -> None:
    test = expert_tables(seed=1, split="test")
    ensemble = pool_tables(fit_per_group(expert_tables()), test)
    pooled = epoch_metrics(ensemble.probabilities, ensemble.labels)["accuracy"]
    single = epoch_metrics(test[0].probabilities, test[0].labels)["accuracy"]
    assert pooled > single + 0.2
