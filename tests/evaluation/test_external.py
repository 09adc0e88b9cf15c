"""Recalibration and shifts against planted values, closed forms and scikit-learn."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from evaluation import external
from evaluation.external import (
    LOCAL_PATIENTS,
    fit_recalibration,
    image_shift,
    independent_difference,
    largest_shifts,
    local_patients_for,
    prevalences,
    recalibrated_metrics,
    validate_externally,
)
from evaluation.metrics.clinical import net_benefit
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports.external import external_sections, net_benefit_sentence, shift_sentence
from evaluation.reports.html import section_html
from evaluation.results import Results, read_results, write_results
from evaluation.stats.estimate import Estimate, wilson_interval
from tests.evaluation.tables import make_table
from tests.evaluation.test_calibration_slope import binary_table


def three_class_table(n: int, slope: float, bias: list[float], seed: int = 0) -> PredictionTable:
    """Labels drawn at logits z; the model states (z - bias) / slope."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (n, 3))
    labels = (z + rng.gumbel(size=z.shape)).argmax(axis=1)
    rows = make_table(n).rows.assign(label=labels)
    return PredictionTable(rows, (z - bias) / slope, ["none", "simple", "comminuted"])


def test_recalibration_of_two_classes_is_logistic_regression_without_a_penalty():
    table, all_rows = binary_table(400, 0.5, 0.8), np.arange(400)
    drawn = [all_rows, all_rows[:150], all_rows[300:]]
    fits = fit_recalibration(table, drawn, precision=1e-7)
    for rows, (slope, first, second) in zip(drawn, fits, strict=True):
        x = (table.logits[:, 1] - table.logits[:, 0])[rows, None]
        oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        oracle.fit(x, table.labels[rows])
        assert slope == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
        assert second - first == pytest.approx(oracle.intercept_[0], abs=1e-4)


def test_recalibration_minimizes_the_penalized_likelihood():
    table = three_class_table(60, 0.4, [0.0, 1.0, -1.0])
    for rows in (np.arange(60), np.arange(7), np.arange(0)):

        def loss(fit, rows=rows):
            logs = log_softmax(fit[0] * table.log_probabilities[rows] + fit[1:], axis=1)
            nll = -logs[np.arange(len(rows)), table.labels[rows]].sum()
            return nll + ((fit[0] - 1) ** 2 + (fit[1:] ** 2).sum()) / 2

        [fit] = fit_recalibration(table, [rows])
        best = minimize(loss, np.array([1.0, 0, 0, 0]), tol=1e-12)
        assert loss(fit) <= best.fun + 1e-9
        assert fit == pytest.approx(best.x, abs=1e-4)


def test_separated_and_extreme_cases_have_a_finite_fit():
    table = binary_table(40, 1.0, 0.0)
    second = np.where(table.labels == 1, 30.0, -30.0)
    right = replace(table, logits=np.stack([np.zeros(40), second], axis=1))
    for logits in (right.logits, -right.logits):  # always right, always wrong
        [fit] = fit_recalibration(replace(table, logits=logits), [np.arange(40)])
        assert np.isfinite(fit).all()
        assert np.abs(fit).max() < 20


@pytest.mark.parametrize(
    ("table", "outcome", "slope"),
    [
        (binary_table(800, 0.5, 0.8, seed=3), "yes", 0.5),
        (binary_table(800, 2.0, -1.0, seed=4), "yes", 2.0),
        (three_class_table(900, 0.5, [0, 1, 0]), "simple", 0.5),
    ],
)
def test_fifty_local_patients_restore_calibration(table, outcome, slope):
    before, after = (recalibrated_metrics(table, k, draws=100) for k in (0, 50))
    slopes = [of[f"calibration_slope/{outcome}"] for of in (before, after)]
    assert slopes[0].value == pytest.approx(slope, rel=0.3)
    assert not slopes[0].low < 1 < slopes[0].high
    assert slopes[1].low < 1 < slopes[1].high
    assert slopes[1].value == pytest.approx(1, abs=0.2)
    large = [of[f"calibration_in_the_large/{outcome}"] for of in (before, after)]
    assert not large[0].low < 0 < large[0].high
    assert large[1].low < 0 < large[1].high
    assert abs(large[1].value) < 0.2
    assert after["nll"].value < before["nll"].value
    assert after["ece"].value < before["ece"].value


def test_without_local_patients_values_are_those_of_the_whole_table():
    table = replace(
        make_table(300, images_per_patient=3), meta={"clinical_use": {"threshold": 0.3}}
    )
    metrics, none = compute_metrics(table, draws=500), recalibrated_metrics(table, 0)
    assert "net_benefit/comminuted" in none
    for name, measured in none.items():
        assert measured.value == pytest.approx(metrics[name].value, abs=1e-9), name
        if name != "ece":
            own, others = measured.high - measured.low, metrics[name].high - metrics[name].low
            assert own == pytest.approx(others, rel=0.35), name


def test_local_patients_leave_with_all_their_images():
    table = make_table(400, 2, gain=0.5, images_per_patient=4)
    seen: list[tuple[set[str], set[str]]] = []
    patients = table.patients
    fit, measure = external.fit_recalibration, external._measure
    with pytest.MonkeyPatch.context() as patch:
        fitted: list[set[str]] = []

        def record_fit(table, rows, *args):
            fitted.extend(set(patients[r]) for r in rows)
            assert all(len(r) == 4 * len(set(patients[r])) for r in rows)
            return fit(table, rows, *args)

        def record(table, logs, rows):
            seen.append((fitted[len(seen) // 2], set(patients[rows])))
            return measure(table, logs, rows)

        patch.setattr(external, "fit_recalibration", record_fit)
        patch.setattr(external, "_measure", record)
        recalibrated = recalibrated_metrics(table, 30, draws=20)
    assert len(seen) == 40
    assert all(len(of_fit) == 30 and not of_fit & rest for of_fit, rest in seen)
    assert {len(rest) for _, rest in seen[::2]} == {70}
    assert recalibrated["nll"].patients == 70
    assert recalibrated["nll"].n == 280


def test_the_interval_accounts_for_images_of_one_patient():
    table = make_table(240, 2, gain=1.0)
    rows = table.rows.loc[np.repeat(np.arange(240), 4)].assign(id=[f"i{k}" for k in range(960)])
    copied = replace(table, rows=rows, logits=np.repeat(table.logits, 4, axis=0))
    once, copies = (recalibrated_metrics(t, 0) for t in (table, copied))
    widths = [of["nll"].high - of["nll"].low for of in (once, copies)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)  # images alone: half


def test_the_same_seed_gives_the_same_numbers_and_too_few_patients_none():
    table = make_table(60)
    assert recalibrated_metrics(table, 20, 30) == recalibrated_metrics(table, 20, 30)
    assert recalibrated_metrics(table, 20, 30) != recalibrated_metrics(table, 20, 30, seed=1)
    for estimate in recalibrated_metrics(table, 50).values():
        assert estimate.value is None
        assert estimate.reason == "needs 70 patients; there are 60"


def test_the_difference_of_two_proportions_is_newcombes():
    """Newcombe 1998, method 10, for 56/70 and 48/80: 0.2 (0.0524 to 0.3339)."""
    first, second = (
        Estimate(hits / n, *wilson_interval(hits, n), "Wilson", n, n)
        for hits, n in ((56, 70), (48, 80))
    )
    difference = independent_difference(first, second)
    assert difference.value == pytest.approx(0.2)
    assert (difference.low, difference.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert (difference.n, difference.patients) == (150, 150)
    missing = Estimate(0.5, None, None, "none", 10, 10, "few patients")
    difference = independent_difference(first, missing)
    assert difference.value == pytest.approx(0.3)
    assert (difference.low, difference.reason) == (None, "few patients")


def stats(n: int, brightness: float, seed: int, images: int = 1, kind: str = "png") -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(brightness, 2.0, n)
    patients = [f"p{k}" for k in np.repeat(np.arange(n), images)]
    return pd.DataFrame({"patient": patients, "mean brightness": np.repeat(values, images),
                         "image width": 64.0, "file format": kind})  # fmt: skip


def test_the_standardized_difference_of_images_is_found_and_clustered_by_patient():
    internal, other = stats(150, 10.0, 0), stats(200, 13.0, 1, kind="jpeg")
    of = image_shift({"internal": internal, "external": other})
    shift = of["images/standardized difference"]
    a, b = internal["mean brightness"], other["mean brightness"]
    expected = (b.mean() - a.mean()) / np.sqrt((a.var(ddof=0) + b.var(ddof=0)) / 2)
    brightness = shift["mean brightness"]
    assert brightness.value == pytest.approx(expected, abs=1e-5)
    error = np.sqrt(1 / 150 + 1 / 200 + expected**2 / (2 * 350))  # Hedges and Olkin 1985
    assert brightness.high - brightness.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert of["images/external"]["mean brightness"].value == pytest.approx(b.mean())
    assert shift["image width"].value is None
    assert of["images/internal"]["file format: png"].value == 1
    assert of["images/external"]["file format: png"].value == 0
    copied = {"internal": stats(150, 10.0, 0, 4), "external": stats(200, 13.0, 1, 4, "jpeg")}
    again = image_shift(copied)["images/standardized difference"]["mean brightness"]
    assert again.high - again.low == pytest.approx(brightness.high - brightness.low, rel=0.1)
    assert again.patients == 350


def test_the_number_of_local_patients_holds_from_there_on():
    def metrics(low: float, high: float) -> dict[str, Estimate]:
        return {"net_benefit/yes": Estimate((low + high) / 2, low, high, "", 100, 100)}

    tried = {0: metrics(0.1, 0.2), 20: metrics(0.1, 0.5), 50: metrics(0.2, 0.29),
             100: metrics(0.25, 0.4)}  # fmt: skip
    cases = {0.15: (0, 50), 0.22: (20, 100), 0.3: (100, None), 0.6: (None, None), 0.05: (0, 0)}
    for target, expected in cases.items():
        needed = local_patients_for("net_benefit/yes", target, tried)
        assert (needed["reached"], needed["exceeded"]) == expected, target
        assert (needed["target"], needed["tried"]) == (target, 100)


@pytest.fixture(scope="module")
def validated() -> tuple[Results, dict[str, PredictionTable]]:
    """A calibrated internal test; a hospital B with more cases, whose logits are too extreme."""
    internal, other = binary_table(500, 1.0, 0.0), binary_table(600, 0.4, 1.0, seed=5, images=2)
    use = {"clinical_use": {"threshold": 0.3}, "notes": ["a note"]}
    tables = {"internal": replace(internal, meta=use), "external": replace(other, meta=use)}
    cases = np.flatnonzero((other.labels == 1) | (np.arange(600) % 3 == 0))
    tables["external"] = tables["external"].take(cases)
    rows = internal.rows.assign(split="val", id=[f"val{k}" for k in range(500)])
    tables["val"] = replace(internal, rows=rows)
    metrics = compute_metrics(tables["internal"], draws=200)
    results = Results("run", "test", internal.class_names, metrics)
    shown = {"internal": stats(200, 10.0, 0), "external": stats(200, 14.0, 1)}
    return validate_externally("hospital_b", results, tables, shown, draws=200), tables


def test_external_json_has_metrics_differences_and_shifts(validated, tmp_path):
    results, tables = validated
    write_results(tmp_path / "external.json", results)
    assert read_results(tmp_path / "external.json") == results
    internal, own = results.others["internal"], results.metrics
    for name, difference in results.others["external minus internal"].items():
        if None not in (internal[name].value, own[name].value):
            expected = own[name].value - internal[name].value
            assert difference.value == pytest.approx(expected), name
    shares = [np.mean(tables[site].labels == 1) for site in ("internal", "external")]
    found = [results.others[f"prevalence/{site}"]["yes"] for site in ("internal", "external")]
    assert [e.value for e in found] == pytest.approx(shares)
    assert found == [prevalences(tables[site])["yes"] for site in ("internal", "external")]
    assert list(largest_shifts(results, "prevalence/external minus internal")) == ["no", "yes"]
    assert set(results.operating_points) == {"yes"}
    benefit = net_benefit(tables["external"])[:, 1].mean()
    assert results.others["recalibrated/0"]["net_benefit/yes"].value == pytest.approx(benefit)
    assert results.meta["net_benefit"]["yes"]["target"] == internal["net_benefit/yes"].value


def test_the_report_shows_both_sets_and_what_was_found(validated):
    results, tables = validated
    sections = external_sections(results, tables)
    page = "\n".join(section_html(section) for section in sections)
    headings = ("Internal and external", "Prevalence", "Images", "Net benefit", "All metrics",
                "Recalibration with local patients", "Decision thresholds for yes")  # fmt: skip
    for heading in headings:
        assert f"<h2>{heading}</h2>" in page
    for text in (shift_sentence(results), "a note", "100 patients", "greatest possible"):
        assert text in page
    sentence = shift_sentence(results)
    assert "Prevalence: " in sentence
    assert "Images, in standard deviations: mean brightness +2." in sentence
    assert "reached" in net_benefit_sentence(results)
    for k in LOCAL_PATIENTS:
        assert f"recalibrated/{k}" in results.others


def test_equal_sets_have_no_shift_and_a_stated_net_benefit_is_the_target():
    table = binary_table(300, 1.0, 0.0)
    tables = {"internal": table, "external": table}
    results = Results("run", "test", table.class_names, compute_metrics(table, draws=100))
    same = {"internal": stats(90, 1.0, 0), "external": stats(90, 1.0, 0)}
    validated = validate_externally("same", results, tables, same, target=0.9, draws=100)
    assert shift_sentence(validated) == "No shift was found."
    assert validated.meta["net_benefit"]["yes"]["target"] == 0.9
    assert net_benefit_sentence(validated).endswith("0.900: not reached with 100 patients")
