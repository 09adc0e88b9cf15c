from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evaluation.metrics import compute
from evaluation.predictions import PredictionTable
from evaluation.stats.paired_tests import (
    better_or_worse,
    differences_to_baseline,
    holm,
    holm_corrected,
    mcnemar,
    mean_paired_differences,
    paired_differences,
)
from evaluation.voters.simple import Soft, pool_tables
from tests.evaluation.tables import make_table


def rare_class_tables(rare: int, images: int) -> tuple[PredictionTable, PredictionTable]:
    """60 patients of class 0 and `rare` of class 1, on which only the first model is right.

    Of class 0, the first model is also right on a patient on which the second errs, and reverse.
    """
    labels = np.repeat([0, 1], [60 * images, rare * images])
    patient = np.repeat(np.arange(60 + rare), images).astype(str)
    rows = pd.DataFrame({"id": np.arange(len(labels)).astype(str), "label": labels,
                         "split": "test", "patient": patient, "study": ""})  # fmt: skip
    first, second = np.where(patient == "1", 1, labels), np.where(patient == "0", 1, 0)
    scale = 2 + np.random.default_rng(0).random((len(labels), 1))
    tables = [PredictionTable(rows, scale * np.eye(2)[p], ["a", "b"]) for p in (first, second)]
    return tables[0], tables[1]


def test_mcnemar_is_the_binomial_test_of_discordant_images() -> None:
    first = np.array([True] * 9 + [False] * 2 + [True] * 50)
    second = np.array([False] * 9 + [True] * 2 + [True] * 50)
    tail = sum(stats.binom.pmf(i, 11, 0.5) for i in (0, 1, 2))
    assert mcnemar(first, second) == pytest.approx(2 * tail)
    assert mcnemar(first, first) == 1.0


def test_holm_adjusted_p_values_as_computed_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("images", [1, 4])
def test_differences_are_those_of_the_metrics(images: int) -> None:
    one = make_table(400, seed=1, gain=2, images_per_patient=images)
    other = make_table(400, seed=2, gain=1, images_per_patient=images)
    differences = paired_differences(one, other, draws=400)
    a, b = (compute.compute_metrics(table, draws=20) for table in (one, other))
    for name, difference in differences.items():
        estimate = difference.estimate
        assert estimate.value == pytest.approx(a[name].value - b[name].value), name
        assert estimate.low < estimate.value < estimate.high
    assert better_or_worse("accuracy", differences["accuracy"]) == "better"
    assert better_or_worse("nll", differences["nll"]) == "better"
    reverse = paired_differences(other, one, draws=400)
    assert better_or_worse("accuracy", reverse["accuracy"]) == "worse"


def test_mean_of_three_equal_pairs_is_the_difference_of_one() -> None:
    one, other = (make_table(300, seed=seed, images_per_patient=3) for seed in (1, 2))
    expected = paired_differences(one, other, draws=300)
    for name, mean in mean_paired_differences([(one, other)] * 3, draws=300).items():
        for key in ("value", "low", "high"):
            value = getattr(expected[name].estimate, key)
            assert getattr(mean.estimate, key) == pytest.approx(value, abs=1e-9), (name, key)


def test_mean_over_seeds_has_a_narrower_interval_than_each() -> None:
    control, seeds = make_table(300, seed=9), [make_table(300, seed=s) for s in range(4)]
    pairs = [(table, control) for table in seeds]
    of_seeds = [paired_differences(*pair, draws=300)["accuracy"].estimate for pair in pairs]
    mean = mean_paired_differences(pairs, draws=300)["accuracy"].estimate
    assert mean.value == pytest.approx(np.mean([e.value for e in of_seeds]))
    assert (mean.n, mean.patients) == (of_seeds[0].n, of_seeds[0].patients)
    widths = [e.high - e.low for e in of_seeds]
    # the error of the control is in every pair, so the width is more than a half
    assert 0.55 * np.mean(widths) < mean.high - mean.low < np.mean(widths)


def test_p_value_of_an_auroc_difference_is_delongs() -> None:
    one, other = make_table(200, 2, seed=1), make_table(200, 2, seed=2)
    positive = one.labels == 1
    placements = []
    for table in (one, other):
        score = table.probabilities[:, 1]
        gap = score[positive][:, None] - score[~positive][None, :]
        placements.append(((gap > 0).mean(1), (gap > 0).mean(0)))
    of_positives, of_negatives = (np.cov([p[i] for p in placements]) for i in (0, 1))
    c = of_positives / positive.sum() + of_negatives / (~positive).sum()
    error = np.sqrt(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    difference = paired_differences(one, other, draws=20)["auroc"]
    degrees_of_freedom = min(positive.sum(), (~positive).sum()) - 1
    expected = 2 * stats.t.sf(abs(difference.estimate.value) / error, degrees_of_freedom)
    assert difference.p_value == pytest.approx(expected, rel=1e-6)


def test_pairing_narrows_the_interval_of_similar_models() -> None:
    one = make_table(600, seed=1)
    noise = np.random.default_rng(0).normal(scale=0.1, size=one.logits.shape)
    other = replace(one, logits=one.logits + noise)
    paired = paired_differences(one, other, draws=500)["nll"].estimate
    single = compute.compute_metrics(one, draws=500)["nll"]
    assert paired.high - paired.low < 0.2 * (single.high - single.low)


def test_ensemble_of_five_copies_is_no_gain() -> None:
    table = make_table(300, images_per_patient=3)
    ensemble = pool_tables(Soft(), [table] * 5)
    compared = holm_corrected(
        differences_to_baseline({"a": ensemble, "b": ensemble}, table, draws=200)
    )
    for name, difference in compared["a"].items():
        assert difference.estimate.value == pytest.approx(0, abs=1e-6), name
        assert better_or_worse(name, difference) == "no clear difference", name


def test_equal_predictions_of_different_models_have_an_interval() -> None:
    one = make_table(100)
    other = replace(one, logits=one.logits * 1.5)
    estimate = paired_differences(one, other, draws=100)["accuracy"].estimate
    assert estimate.value == 0
    assert -0.06 < estimate.low < -0.02
    assert 0.02 < estimate.high < 0.06


def test_gain_needs_a_small_corrected_p_value_and_a_visible_difference() -> None:
    one, other = make_table(80, seed=1, gain=1.9), make_table(80, seed=2)
    difference = paired_differences(one, other, draws=300)["accuracy"]
    gain = replace(difference, p_value=0.03, estimate=replace(difference.estimate, low=0.01))
    assert better_or_worse("accuracy", gain) == "better"
    tiny = replace(gain.estimate, value=3e-5, low=2e-5, high=4e-5)
    assert better_or_worse("accuracy", replace(gain, estimate=tiny)) == "no clear difference"
    [corrected, *_] = holm([0.03, 0.5, 0.5, 0.5])
    assert better_or_worse("accuracy", replace(gain, p_value=corrected)) == "no clear difference"


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("rare", [1, 2, 4, 6])
def test_accuracy_is_compared_by_an_exact_test_over_patients(rare: int, images: int) -> None:
    difference = paired_differences(*rare_class_tables(rare, images), draws=500)["accuracy"]
    assert difference.p_value == pytest.approx(stats.binomtest(rare + 1, rare + 2).pvalue)
    test = "McNemar, exact" if images == 1 else "sign test over patients, exact"
    assert difference.test == test
    # with strata the interval would be above this value
    assert difference.estimate.low < 0.025 < difference.estimate.high
    assert better_or_worse("accuracy", difference) == "no clear difference"


@pytest.mark.parametrize("rare", [1, 2, 4])
def test_difference_of_class_means_has_no_interval_with_few_patients(rare: int) -> None:
    differences = paired_differences(*rare_class_tables(rare, 3), draws=500)
    for name in ("balanced_accuracy", "f1_macro", "kappa", "mcc"):
        estimate = differences[name].estimate
        assert differences[name].p_value == 1.0, name
        assert estimate.low is None, name
        assert estimate.reason.startswith(f"class 'b' has {rare} patients"), name


def test_p_value_is_one_without_an_interval() -> None:
    tables = [make_table(60, images_per_patient=60, seed=seed) for seed in (0, 1)]
    for name, difference in paired_differences(*tables, draws=50).items():
        assert difference.p_value == 1.0, name
        assert name == "auroc" or difference.estimate.low is None, name


@pytest.mark.parametrize("rare", [5, 8])
def test_equal_models_of_a_rare_class_are_seldom_called_different(rare: int) -> None:
    """Both models are right on half of the rare patients: 1 in 20 may be called different.

    It is 2.5 and 5 % in 200 rounds; by the bootstrap alone 9 and 12.5 %.
    """
    rng, table, outcomes = np.random.default_rng(0), rare_class_tables(rare, 2)[0], []
    is_correct = rng.random((60, 2, 60 + rare)) < np.repeat([0.98, 0.5], [60, rare])
    for of_models in np.repeat(is_correct, 2, axis=2):
        predictions = np.where(of_models, table.labels, 1 - table.labels)
        pair = [replace(table, logits=3 * np.eye(2)[p]) for p in predictions]
        differences = paired_differences(*pair, draws=200)
        names = ("accuracy", "balanced_accuracy")
        outcomes.append([better_or_worse(name, differences[name]) for name in names])
    assert ((np.array(outcomes) != "no clear difference").mean(axis=0) <= 0.1).all()


@pytest.mark.parametrize("n", [10, 40])
def test_difference_of_two_perfect_areas_has_an_interval(n: int) -> None:
    positive = np.arange(n) % 2
    rows = make_table(n, 2).rows.assign(label=positive)
    one, other = (
        PredictionTable(rows, np.outer(positive - 0.5 + 0.1 * noise, [-1, 1]), ["a", "b"])
        for noise in np.random.default_rng(0).random((2, n))
    )
    difference = paired_differences(one, other, draws=50)["auroc"]
    estimate, low = difference.estimate, compute.compute_metrics(one, draws=50)["auroc"].low
    assert (estimate.value, difference.p_value) == (0.0, 1.0)
    assert (estimate.low, estimate.high) == pytest.approx((low - 1, 1 - low))
    same = paired_differences(one, one, draws=50)["auroc"].estimate
    assert (same.low, same.high) == (0.0, 0.0)
