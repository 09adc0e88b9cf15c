"""Prediction sets: their limits by counting, and their coverage in repeated samples of patients."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.metrics.conformal import (
    evaluate_sets,
    fit_conformal_sets,
    fit_limit,
    set_scores,
)
from evaluation.predictions import PredictionTable
from evaluation.reports.conformal import conformal_tables
from tests.evaluation.tables import make_table

ALPHA, DRAWS, NUM_VAL, NUM_TEST = 0.1, 300, 60, 40  # patients


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("n", [19, 20, 137])
def test_with_an_image_a_patient_the_limit_is_the_kth_smallest_score(n: int, alpha: float) -> None:
    scores = np.random.default_rng(n).random(n)
    k = int(np.ceil((n + 1) * (1 - alpha) - 1e-9))
    assert fit_limit(scores, np.arange(n), alpha).value == np.sort(scores)[k - 1]


def test_too_few_patients_give_trivial_sets() -> None:
    val = make_table(18, split="val")
    sets = fit_conformal_sets(val, 0.05)
    assert sets.limits[""].value == np.inf  # ceil(19 x 0.95) = 19 > 18
    assert sets.of_table(val).all()
    assert fit_conformal_sets(make_table(19, split="val"), 0.05).limits[""].value < 1


def test_the_limit_is_the_mean_over_all_draws_of_an_image_of_each_patient() -> None:
    """The number of drawn scores up to the limit is k on average, and less below the limit."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    scores = rng.random(len(patients)) + 0.3 * patients / 40
    limit = fit_limit(scores, patients, 0.1)
    of_patient = [scores[patients == patient] for patient in range(40)]
    up_to = sum((of <= limit.value).mean() for of in of_patient)
    below = sum((of < limit.value).mean() for of in of_patient)
    assert below < limit.rank <= up_to + 1e-9


def sample(rng: np.random.Generator, num_patients: int, split: str) -> PredictionTable:
    """Four images a patient, alike within the patient; a rare and difficult class and scanner."""
    labels = (rng.random(num_patients) < 0.3).astype(int)
    scanners = np.where(rng.random(num_patients) < 0.4, "old", "new")
    error = np.where(labels == 1, 1.5, 0.0) + np.where(scanners == "old", 1.0, 0.0)
    margin = 2 - error + 1.5 * rng.normal(size=num_patients)
    margin = np.repeat(margin, 4) + 0.3 * rng.normal(size=4 * num_patients)
    labels = np.repeat(labels, 4)
    table = make_table(4 * num_patients, 2, images_per_patient=4, split=split)
    rows = table.rows.assign(label=labels, scanner=np.repeat(scanners, 4))
    logits = np.stack([np.where(labels == 0, margin, -margin), np.zeros(len(labels))], axis=1)
    return replace(table, rows=rows, logits=logits)


def coverages(by: str, of: str) -> dict[str, np.ndarray]:
    """Coverage of each group in every sample, and the share of samples in the expected band."""
    rng, covered, in_band = np.random.default_rng(0), dict[str, list[float]](), list[bool]()
    for _ in range(DRAWS):
        sets = fit_conformal_sets(sample(rng, NUM_VAL, "val"), ALPHA, by)
        for group in evaluate_sets(sets, sample(rng, NUM_TEST, "test"), of):
            covered.setdefault(group.group, []).append(group.coverage.value)
            if group.band is not None:
                in_band.append(group.band[0] <= group.coverage.value <= group.band[1])
    return {name: np.array(values, float) for name, values in covered.items()} | {
        "in band": np.array(in_band, float)
    }


@pytest.mark.parametrize(("by", "of"), [("", ""), ("class", "class"), ("scanner", "scanner")])
def test_sets_contain_the_label_of_new_patients_as_often_as_stated(by: str, of: str) -> None:
    measured = coverages(by, of)
    assert measured.pop("in band").mean() >= 0.93
    for name, values in measured.items():
        error = np.std(values) / np.sqrt(DRAWS)
        assert np.mean(values) > 1 - ALPHA - 3 * error, name
        assert np.mean(values) < 1 - ALPHA + 0.06, name


def test_one_limit_misses_the_rare_class() -> None:
    assert coverages("", "class")["simple"].mean() < 0.8


def test_one_limit_misses_the_difficult_scanner() -> None:
    assert coverages("", "scanner")["old"].mean() < 0.85


def test_a_value_that_val_does_not_have_gets_all_classes() -> None:
    rng = np.random.default_rng(0)
    sets = fit_conformal_sets(sample(rng, NUM_VAL, "val"), ALPHA, "scanner")
    test = sample(rng, NUM_TEST, "test")
    other = replace(test, rows=test.rows.assign(scanner="mobile"))
    assert sets.of_table(other).all()
    assert not sets.of_table(test).all()


def test_sets_of_grades_have_no_gaps_and_grow_from_the_most_probable() -> None:
    p = np.array([[0.1, 0.4, 0.05, 0.3, 0.15], [0.5, 0.05, 0.05, 0.1, 0.3]])
    scores = set_scores(p, is_graded=True)
    np.testing.assert_allclose(scores[0], [0.4, 0, 0.5, 0.55, 0.85], atol=1e-12)
    np.testing.assert_allclose(scores[1], [0, 0.5, 0.55, 0.6, 0.7], atol=1e-12)
    rng = np.random.default_rng(0)
    scores = set_scores(rng.dirichlet(np.ones(5), 500), is_graded=True)
    for limit in rng.random(20):
        ends = np.diff((scores <= limit).astype(int), axis=1, prepend=0, append=0)
        assert (np.abs(ends).sum(axis=1) == 2).all()  # each set begins once and ends once


def test_sets_are_not_fitted_on_test_and_need_a_rate() -> None:
    with pytest.raises(ValueError, match="a conformal limit may not be fitted on split 'test'"):
        fit_conformal_sets(make_table(), 0.1)
    with pytest.raises(ValueError, match=r"alpha 1\.5 must be between 0 and 1"):
        fit_conformal_sets(make_table(split="val"), 1.5)


def test_the_report_shows_sets_by_class_and_by_attribute() -> None:
    rng = np.random.default_rng(0)
    first, *by_group = conformal_tables(sample(rng, 100, "val"), sample(rng, 100, "test"))
    rules = [row[0] for row in first.rows]
    assert {"90 %, one limit", "90 %, a limit for each class"} < set(rules)
    assert {"95 %, one limit", "95 %, a limit for each scanner"} < set(rules)
    headings = [table.heading for table in by_group]
    assert {"Prediction sets by class", "Prediction sets by scanner"} < set(headings)
    assert "(simple)" in first.rows[0][-1]
