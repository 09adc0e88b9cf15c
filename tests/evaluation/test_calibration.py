import warnings
from dataclasses import replace

import numpy as np
import pytest

from evaluation.metrics.calibration import Temperature, ece, fit_temperature
from evaluation.predictions import PredictionTable
from tests.evaluation.tables import make


def _drawn_from_itself(n: int, temperature: float, seed: int) -> PredictionTable:
    """Labels drawn from the softmax of the logits; the table then holds logits x temperature."""
    table = make(n, seed=seed, gain=0, split="val")
    logits = 2 * table.logits
    p = replace(table, logits=logits).probabilities
    draw = np.random.default_rng(seed).random((n, 1))
    label = (p.cumsum(1) < draw).sum(1).clip(0, 2)
    return replace(table, logits=logits * temperature, rows=table.rows.assign(label=label))


@pytest.mark.parametrize("planted", [0.5, 1.0, 1.7, 3.0])
def test_a_planted_temperature_is_recovered(planted: float) -> None:
    table = _drawn_from_itself(20000, planted, 3)
    found = fit_temperature(table)
    assert found.value == pytest.approx(planted, abs=0.1)
    assert not found.at_bound
    assert ece(found(table.probabilities), table.labels) < 0.015


def test_the_temperature_is_where_the_nll_is_least() -> None:
    table = _drawn_from_itself(500, 2.0, 5)

    def nll(value: float) -> float:
        p = Temperature(value)(table.probabilities)
        return float(-np.log(p[np.arange(500), table.labels]).mean())

    best = fit_temperature(table).value
    assert nll(best) < min(nll(best * 1.05), nll(best / 1.05))


def test_temperature_one_changes_nothing_and_no_temperature_changes_the_class() -> None:
    p = make().probabilities
    assert np.array_equal(Temperature()(p), p)
    assert np.array_equal(Temperature(3.0)(p).argmax(1), p.argmax(1))


@pytest.mark.parametrize("n", [60, 600])
def test_a_table_that_is_always_right_is_one_error_short_of_sure(n: int) -> None:
    table = make(n, split="val")
    perfect = replace(table, logits=2 * np.eye(3)[table.labels])
    found = fit_temperature(perfect)
    assert not found.at_bound
    assert 1 - found(perfect.probabilities).max(1) == pytest.approx(1 / (n + 1))


def test_a_temperature_outside_the_bounds_is_cut_with_a_warning() -> None:
    table = make(split="val")
    timid = replace(table, logits=0.01 * np.eye(3)[table.labels])
    with pytest.warns(UserWarning, match=r"runs to its bound 0\.05"):
        assert fit_temperature(timid).at_bound


def test_a_temperature_is_not_fitted_on_test() -> None:
    with pytest.raises(ValueError, match="a temperature may not be fitted on split 'test'"):
        fit_temperature(make())


def test_confidence_of_exactly_one_has_no_bin_of_its_own() -> None:
    p = np.tile([1.0, 0.0], (30, 1))
    labels = np.array([0] * 24 + [1] * 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ece(p, labels) == pytest.approx(0.2)
