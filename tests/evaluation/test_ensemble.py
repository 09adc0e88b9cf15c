from dataclasses import asdict, replace

import numpy as np
import pytest

from evaluation.ensemble import (
    combine_members,
    ensemble_predictions,
    evaluate_referral,
    evaluate_voters,
    fit_voters,
    most_disputed,
)
from evaluation.metrics.calibration import nll
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import aggregate
from evaluation.reports.ensemble import ensemble_results, ensemble_sections, mean_of_members
from evaluation.reports.html import Plot
from evaluation.stats.paired_tests import better_or_worse
from evaluation.voters import VoterOptions
from tests.evaluation.tables import make_table, named_copies, named_experts


def test_an_ensemble_of_experts_is_a_gain_over_the_best_member() -> None:
    val, test = named_experts("val", 0), named_experts("test", 1)
    fitted = fit_voters(val, VoterOptions("body_part", ["elbow"]))
    evaluated = evaluate_voters(fitted, test, draws=300)
    assert fitted.best_member in ("first", "second")
    assert fitted.not_fitted == {}
    assert better_or_worse("accuracy", evaluated.gains["per_group"]["accuracy"]) == "better"
    assert evaluated.member_metrics["first"] == compute_metrics(test["first"], draws=300)


def test_a_weak_member_is_left_out_unless_val_is_small() -> None:
    val = named_experts("val", 0)
    members = {"good": val["first"], "weak": val["third"]}
    fitted = fit_voters(members)
    assert fitted.select("auto") == "learned"
    assert fitted.learned_gain[0] > fitted.learned_gain[1] > 0
    assert f"weights is {fitted.learned_gain[0]:.4f} lower than" in fitted.reason("auto")
    [weights] = fitted.ensembles["learned"].voter.weight_rows(["a"]).values()
    assert weights[0] > 0.9
    few = {name: table.take(np.arange(90)) for name, table in members.items()}
    assert fit_voters(few).select("auto") == "soft"
    assert "90 patients of val are fewer than 50 for each of 2" in fit_voters(few).reason("auto")
    assert fit_voters(few).select("greedy") == "greedy"
    assert fit_voters(few).reason("greedy") == ""


def test_members_that_are_equally_good_get_equal_weights() -> None:
    """Learned weights of such members only fit the noise of val."""
    chosen = []
    for seed in range(10):
        labels = make_table(300, split="val")
        noise = np.random.default_rng(seed).normal(size=(3, 300, 3))
        members = {f"m{i}": replace(labels, logits=labels.logits + noise[i]) for i in range(3)}
        fitted = fit_voters(members)
        assert len(fitted.learned_gain) == 2
        chosen.append(fitted.select("auto"))
    assert chosen.count("soft") >= 8


def in_precision(tables, **precisions):
    return {name: replace(table, meta={**table.meta, "precision": precisions.get(name, "32-true")})
            for name, table in tables.items()}  # fmt: skip


def test_members_voters_and_temperatures_have_one_precision() -> None:
    val, test = named_experts("val", 0), named_experts("test", 1)
    with pytest.raises(ValueError, match=r"different precisions: .*second bf16-mixed"):
        fit_voters(in_precision(val, second="bf16-mixed"))
    fitted = fit_voters(in_precision(val))
    assert {ensemble.precision for ensemble in fitted.ensembles.values()} == {"32-true"}
    evaluated = evaluate_voters(fitted, in_precision(test), draws=20)
    results = ensemble_results("ensemble", fitted, evaluated, in_precision(test), "soft")
    assert results.meta["precision"] == "32-true"
    half = in_precision(test, **dict.fromkeys(test, "bf16-mixed"))
    with pytest.raises(ValueError, match=r"fitted in precision 32-true, the test .* bf16-mixed"):
        evaluate_voters(fitted, half, draws=100)


def test_five_copies_are_no_gain_and_have_no_diversity() -> None:
    evaluated = evaluate_voters(fit_voters(named_copies("val")), named_copies("test"), draws=300)
    for voter, gains in evaluated.gains.items():
        if voter != "stacked":  # it calibrates each class
            assert better_or_worse("accuracy", gains["accuracy"]) == "no clear difference", voter
            assert gains["accuracy"].estimate.value == 0, voter
    for voter in ("soft", "geometric", "learned", "greedy", "per_class"):
        assert better_or_worse("nll", evaluated.gains[voter]["nll"]) == "no clear difference", voter
    assert evaluated.agreement.value == 1.0
    assert all(pair.disagreement.value == 0 for pair in evaluated.diversity.values())


def test_pooling_and_temperature_halve_a_planted_overconfidence() -> None:
    val, test = (
        {n: replace(t, logits=3 * t.logits) for n, t in named_experts(split, seed).items()}
        for seed, split in enumerate(("val", "test"))
    )
    evaluated = evaluate_voters(fit_voters(val), test, draws=50)
    mean = mean_of_members(evaluated.member_metrics, "ece")
    assert mean is not None
    assert evaluated.voter_metrics["soft"]["ece"].value <= mean.value / 2


def test_members_are_evaluated_raw_and_calibrated() -> None:
    val, test = (
        {n: replace(t, logits=3 * t.logits) for n, t in named_experts(split, seed).items()}
        for seed, split in enumerate(("val", "test"))
    )
    fitted = fit_voters(val)
    evaluated = evaluate_voters(fitted, test, draws=50)
    for name, table in test.items():
        raw, calibrated = evaluated.member_metrics[name], evaluated.calibrated_metrics[name]
        calibration = fitted.calibrations[name]
        assert calibration.temperature > 2
        expected = table.with_probabilities(calibration(table.probabilities))
        assert calibrated["nll"].value == pytest.approx(nll(expected).mean(), rel=1e-5)
        assert calibrated["nll"].value < raw["nll"].value
        assert calibrated["accuracy"] == compute_metrics(expected, draws=50)["accuracy"]


def test_a_distortion_of_classes_is_repaired_and_changes_decisions_and_the_report() -> None:
    """The bias of a class, as in a model that was trained on other prevalences."""
    val, test = (
        {
            n: replace(t, logits=t.logits + np.array([0, 0, 3]))
            for n, t in named_experts(split, seed).items()
        }
        for seed, split in enumerate(("val", "test"))
    )
    fitted = fit_voters(val, method="auto")
    evaluated = evaluate_voters(fitted, test, draws=50)
    calibration = fitted.ensembles["geometric"].calibration
    assert calibration.scales
    predictions = ensemble_predictions(fitted.ensembles["geometric"], test)
    plain = compute_metrics(predictions.uncalibrated, draws=50)["accuracy"]
    accuracy = evaluated.voter_metrics["geometric"]["accuracy"]
    assert accuracy == compute_metrics(predictions.calibrated, draws=50)["accuracy"]
    assert accuracy.value > plain.value + 0.05
    results = ensemble_results("ensemble", fitted, evaluated, test, "geometric")
    assert results.meta["calibrations"]["geometric"] == asdict(calibration)
    sections = ensemble_sections(fitted, evaluated, predictions)
    captions = [section.caption for section in sections if isinstance(section, Plot)]
    assert any(caption.startswith(calibration.describe()) for caption in captions)


def test_the_stored_ensemble_calibrates_its_members() -> None:
    fitted, test = fit_voters(named_experts("val", 0)), named_experts("test", 1)
    members = np.stack([table.probabilities for table in test.values()])
    calibrated = fitted.ensembles["soft"].calibrate_members(members)
    for row, (name, table) in enumerate(test.items()):
        expected = fitted.calibrations[name](table.probabilities)
        np.testing.assert_allclose(calibrated[row], expected)


def test_test_tables_are_refused_and_voters_that_cannot_be_fitted_have_a_reason() -> None:
    with pytest.raises(ValueError, match="an ensemble may not be fitted on split 'test'"):
        fit_voters(named_experts("test", 0))
    small = {name: table.take(np.arange(200)) for name, table in named_experts("val", 0).items()}
    assert "stacking needs 50 x 3 members x 3 classes" in fit_voters(small).not_fitted["stacked"]


def test_invalid_fixed_weights_are_an_error() -> None:
    with pytest.raises(ValueError, match="each must be >= 0 and one must be > 0"):
        fit_voters(named_experts("val", 0), VoterOptions(weights=[1, -1, 0]))


def test_tables_of_other_weights_are_refused() -> None:
    fitted, test = fit_voters(named_experts("val", 0)), named_experts("test", 1)
    test["second"] = replace(test["second"], meta={"weights": "another"})
    with pytest.raises(ValueError, match="table 2 comes from weights another"):
        combine_members(fitted.ensembles["soft"], list(test.values()))


def test_the_order_of_rows_does_not_matter() -> None:
    fitted = fit_voters(named_experts("val", 0), VoterOptions("body_part"))
    test = list(named_experts("test", 1).values())
    order = np.random.default_rng(0).permutation(900)
    shuffled = [table.take(order) if i else table for i, table in enumerate(test)]
    for ensemble in fitted.ensembles.values():
        assert np.array_equal(
            combine_members(ensemble, shuffled).logits, combine_members(ensemble, test).logits
        )


def test_predictions_of_an_ensemble_are_those_of_combine_members_by_level() -> None:
    fitted, test = fit_voters(named_experts("val", 0)), named_experts("test", 1)
    ensemble = fitted.ensembles["learned"]
    predictions = ensemble_predictions(ensemble, test, ("patient", "mean"))
    images = combine_members(ensemble, list(test.values()))
    assert predictions.voter == "learned"
    assert np.array_equal(predictions.calibrated.logits, aggregate(images, "patient").logits)
    assert list(predictions.members) == list(test)
    calibrated = ensemble.calibration(predictions.uncalibrated.probabilities)
    np.testing.assert_allclose(calibrated, predictions.calibrated.probabilities, atol=1e-6)


def test_the_image_with_the_largest_disagreement_comes_first() -> None:
    table = named_experts("test", 1)["first"]
    logits = np.full((900, 3), [5.0, 4.9, 4.8])
    logits[17] = [30, 0, 0]
    other = logits.copy()
    other[17] = [0, 0, 30]
    tables = {"a": replace(table, logits=logits), "b": replace(table, logits=other)}
    name, text = most_disputed(tables, 3)[0]
    assert name == table.rows["id"].iloc[17]
    assert text.split("\n")[1:] == ["a: none 1.00", "b: comminuted 1.00"]


def test_referral_has_intervals() -> None:
    val, test = named_experts("val", 0), named_experts("test", 1)
    ensemble = fit_voters(val).ensembles["soft"]
    tables = [combine_members(ensemble, list(tables.values())) for tables in (val, test)]
    rules, aurc = evaluate_referral(*tables)
    assert 0 < aurc < 1
    for rule in rules:
        assert rule.coverage.n == 900
        assert rule.error_rate.n == round(900 * rule.coverage.value)
        assert rule.error_rate.low <= rule.error_rate.value < rule.error_rate.high


def test_the_image_table_is_unchanged_without_a_level() -> None:
    table = make_table(split="val")
    named = {"a": replace(table, meta={"weights": "x"})}
    fitted = fit_voters(named)
    predictions = ensemble_predictions(fitted.ensembles["soft"], named)
    assert predictions.members["a"] is named["a"]
