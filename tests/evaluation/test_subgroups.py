"""Groups of images against closed forms; planted biases, minimum sizes, missing values."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from benchmarks.coverage import simulate_groups
from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.subgroups import ONE_CLASS, attribute_groups, group_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.reports.overview import about_data, overview
from evaluation.reports.subgroups import subgroup_sections, subgroup_sentence
from evaluation.results import Results, read_results, write_results
from evaluation.stats.auc import auc, delong
from evaluation.stats.bootstrap import Clusters
from evaluation.stats.estimate import wilson_interval
from evaluation.stats.groups import GroupMetric
from evaluation.stats.paired_tests import holm
from evaluation.subgroups import (
    Subgroup,
    compute_subgroups,
    flagged_gaps,
    subgroups_frame,
    worst_group,
)
from tests.evaluation.tables import make_table, two_class_table

RNG = np.random.default_rng(0)  # of values without a structure


def with_attributes(table: PredictionTable, **attributes: object) -> PredictionTable:
    """The table with these columns as its only attributes."""
    return replace(table, rows=table.rows.drop(columns=table.attributes).assign(**attributes))


def by_name(subgroups: list[Subgroup]) -> dict[str, Subgroup]:
    return {s.name: s for s in subgroups}


def table_of(n: int = 400, images: int = 1) -> PredictionTable:
    """Two classes and two attributes of patients."""
    table, patient = two_class_table("test", n=n), np.arange(n) // images
    table = with_attributes(table, sex=np.array(["f", "m"])[patient % 2],
                            site=np.array(["a", "b", "c"])[patient % 3])  # fmt: skip
    return replace(table, rows=table.rows.assign(patient=patient.astype(str)))


def test_a_proportion_and_its_difference_equal_the_closed_form() -> None:
    values, rows = RNG.random(300) < 0.8, np.arange(300) < 90
    metric = GroupMetric.mean(values, np.arange(300))
    estimate, gap = metric.estimate(rows), metric.difference(rows, ~rows)
    assert (estimate.low, estimate.high) == pytest.approx(wilson_interval(values[rows].sum(), 90))
    (p, q), all_rows = (values[rows].mean(), values[~rows].mean()), values.mean()
    observed = (p * (1 - p) / 90 + q * (1 - q) / 210) * 90 / 89
    if_equal = all_rows * (1 - all_rows) * (1 / 90 + 1 / 210)
    assert gap.value == pytest.approx(p - q)
    assert gap.standard_error == pytest.approx(np.sqrt(max(observed, if_equal)))
    assert gap.p_value == pytest.approx(2 * student.sf(abs(gap.value) / gap.standard_error, 89))
    assert gap.half_width(3) == pytest.approx(student.ppf(1 - 0.025 / 3, 89) * gap.standard_error)


def test_a_mean_has_students_interval_and_that_of_patients() -> None:
    values, patient, rows = RNG.normal(size=200), np.arange(200), np.arange(200) < 60
    estimate, own = GroupMetric.mean(values, patient).estimate(rows), values[rows]
    expected = student.interval(0.95, 59, own.mean(), own.std(ddof=1) / np.sqrt(60))
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    pairs = own.reshape(30, 2).mean(axis=1)  # of two images of each patient
    estimate = GroupMetric.mean(values, patient // 2).estimate(rows)
    expected = student.interval(0.95, 29, own.mean(), pairs.std(ddof=1) / np.sqrt(30))
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    assert (estimate.n, estimate.patients) == (60, 30)


def test_an_auroc_of_a_group_is_delongs_of_its_images() -> None:
    table = table_of(600, 3)
    positive, clusters = table.labels == 1, Clusters.from_patients(table.patients, table.labels)
    scores, rows = np.round(table.probabilities[:, 1], 2), (table.rows["sex"] == "f").to_numpy()
    metric = GroupMetric.auroc(scores, clusters.patient_of_row, positive)
    of_group = Clusters.from_patients(table.patients[rows], table.labels[rows])
    areas = delong(scores[rows, None], positive[rows, None], of_group)
    value, low, high = areas.mean(np.array([0]))
    estimate, gap = metric.estimate(rows), metric.difference(rows, ~rows)
    assert estimate.value == pytest.approx(value)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.001)
    assert gap.value == pytest.approx(value - auc(scores[~rows], positive[~rows]))
    others = Clusters.from_patients(table.patients[~rows], table.labels[~rows])
    rest = delong(scores[~rows, None], positive[~rows, None], others)
    independent = np.sqrt(areas.covariance[0, 0] + rest.covariance[0, 0])
    assert gap.standard_error == pytest.approx(independent, rel=0.03)


def copies_of(table: PredictionTable, count: int) -> PredictionTable:
    rows = [table.rows.assign(id=table.rows["id"] + f"copy{at}") for at in range(count)]
    logits = np.tile(table.logits, (count, 1))
    return PredictionTable(pd.concat(rows), logits, table.class_names, table.meta)


def test_copies_of_images_of_a_patient_change_no_interval_and_no_p_value() -> None:
    table = table_of()
    once, four = (by_name(compute_subgroups(t)) for t in (table, copies_of(table, 4)))
    assert len(once) == len(four) > 6
    for name, s in once.items():
        assert s.metrics.keys() == four[name].metrics.keys()
        for metric, e in s.metrics.items():
            other = four[name].metrics[metric]
            assert (other.low, other.high) == pytest.approx((e.low, e.high), abs=0.015), metric
        for metric, gap in s.gaps.items():
            other = four[name].gaps[metric]
            assert other.estimate.low == pytest.approx(gap.estimate.low, abs=1e-6)
            assert other.p_value == pytest.approx(gap.p_value, abs=1e-6)


def test_two_views_of_each_patient_are_compared_within_patients() -> None:
    """Equal values of both images of a patient: the difference is 0 without any error."""
    values, patient = np.repeat(RNG.random(100) < 0.7, 2), np.repeat(np.arange(100), 2)
    is_first = np.arange(200) % 2 == 0
    gap = GroupMetric.mean(values, patient).difference(is_first, ~is_first)
    assert gap.value == 0
    assert gap.standard_error == pytest.approx(0, abs=1e-8)
    independent = GroupMetric.mean(values, np.arange(200)).difference(is_first, ~is_first)
    assert independent.standard_error > 0.05


def test_a_group_without_any_error_is_not_certain() -> None:
    values, rows = np.ones(1000, dtype=bool), np.arange(1000) < 25
    values[25:1000:10] = False
    gap = GroupMetric.mean(values, np.arange(1000)).difference(rows, ~rows)
    assert gap.value == pytest.approx(0.1, abs=0.01)
    assert gap.p_value > 0.05  # 0.9 ** 25 is 0.07


def test_groups_that_are_all_right_are_not_certainly_equal() -> None:
    rows, patient = np.arange(120) < 40, np.arange(120)
    share = 2 / 124  # of Agresti and Coull: 2 of 4 more images are wrong
    deviation = np.sqrt(share * (1 - share) * (1 / 40 + 1 / 80))
    for values in (np.ones(120, dtype=bool), np.zeros(120, dtype=bool)):
        gap = GroupMetric.mean(values, patient).difference(rows, ~rows)
        assert (gap.value, gap.p_value) == (0.0, 1.0)
        assert gap.standard_error == pytest.approx(deviation)


@pytest.mark.parametrize("seed", [3, 4])
def test_a_planted_bias_is_found_and_without_one_nothing(seed: int) -> None:
    biased = compute_subgroups(simulate_groups(800, 4, seed, 1.55))
    flagged = [(s, m) for s, m in flagged_gaps(biased) if not s.is_intersection]
    worse = [(s.name, metric) for s, metric in flagged if s.is_worse(metric)]
    assert ("scanner: C", "accuracy") in worse
    assert {name for name, _ in worse} == {"scanner: C"}
    assert worst_group(biased).name == "scanner: C"
    assert by_name(biased)["scanner: C"].is_worse("accuracy")
    assert subgroup_sentence(biased).startswith("Worse than for all other images: scanner: C (Acc")
    fair = compute_subgroups(simulate_groups(800, 4, seed))
    assert not flagged_gaps(fair)
    assert subgroup_sentence(fair).startswith("No difference between groups was shown (15 groups")


def test_miscalibration_is_worse_in_either_direction() -> None:
    table = table_of(2000)
    is_f = (table.rows["sex"] == "f").to_numpy()
    for shift in (-2.0, 2.0):
        logits = table.logits + np.array([0.0, 1.0]) * (shift * is_f[:, None] - 1.0)
        groups = by_name(compute_subgroups(replace(table, logits=logits)))
        name = "observed_minus_expected/yes"
        assert groups["sex: f"].gaps[name].p_value < 0.001
        assert groups["sex: f"].is_worse(name)
        assert not groups["sex: m"].is_worse(name)
        assert np.sign(groups["sex: f"].metrics[name].value) == -np.sign(shift)


def test_p_values_are_holms_over_the_groups_and_a_family_of_metrics() -> None:
    table = table_of(600)
    noise = np.random.default_rng(1).normal(size=(600, 2))
    noise *= 1 + 0.5 * (table.rows["sex"] == "f").to_numpy()[:, None]
    noise *= 1 + 0.7 * (table.rows["site"] == "a").to_numpy()[:, None]
    table = replace(table, logits=table.logits + noise)
    subgroups = by_name(compute_subgroups(table))
    clusters = Clusters.from_patients(table.patients, table.labels)
    metrics = group_metrics(table, clusters)
    family = metrics["auroc/yes"], metrics["accuracy"]
    masks = [(table.rows["sex"] == "f").to_numpy()]
    masks += [(table.rows["site"] == site).to_numpy() for site in "abc"]
    gaps = [metric.difference(mask, ~mask) for metric in family for mask in masks]
    raw = [gap.p_value for gap in gaps]
    shown, gap = subgroups["sex: f"].gaps["auroc/yes"].estimate, gaps[0]
    expected = gap.value - gap.half_width(), gap.value + gap.half_width()
    assert (shown.low, shown.high) == pytest.approx(expected)
    names = ["sex: f", "site: a", "site: b", "site: c"]
    p = [subgroups[name].gaps["auroc/yes"].p_value for name in names]
    assert max(p) < 1
    assert p == pytest.approx([min(1, 2 * adjusted) for adjusted in holm(raw)[:4]])
    assert subgroups["sex: m"].gaps["auroc/yes"].p_value == p[0]  # the same comparison
    alone = by_name(compute_subgroups(table, "site"))  # without intersections
    p = [alone[name].gaps["auroc/yes"].p_value for name in names[1:]]
    assert p == pytest.approx(holm(raw[1:4] + raw[5:])[:3])


def test_a_group_needs_20_patients_and_5_with_each_outcome() -> None:
    table = table_of(400)
    labels = np.r_[np.zeros(15), np.ones(4), np.zeros(381)].astype(int)
    labels[100:200] = 1
    for size, is_large in ((19, False), (20, True)):
        site = np.where(np.arange(400) < size, "small", "large")
        rows = table.rows.drop(columns="sex").assign(site=site, label=labels)
        groups = by_name(compute_subgroups(replace(table, rows=rows)))
        small, large = groups["site: small"], groups["site: large"]
        assert (small.n, small.patients, small.prevalence["yes"]) == (size, size, 4 / size)
        assert (small.metrics["accuracy"].value is not None) == is_large
        assert ("accuracy" in small.gaps) == ("accuracy" in large.gaps) == is_large
        assert large.metrics["accuracy"].value is not None
        for name in ("auroc/yes", "recall/yes"):
            reason = "fewer than 5 patients with" if is_large else "fewer than 20 patients"
            assert small.metrics[name].value is None
            assert small.metrics[name].reason.startswith(reason)
            assert name not in small.gaps
    assert small.metrics["specificity/yes"].value is not None


def test_the_size_of_a_group_is_its_number_of_patients() -> None:
    site = np.where(np.arange(600) < 57, "small", "large")
    groups = by_name(compute_subgroups(with_attributes(table_of(600, 3), site=site)))
    assert (groups["site: small"].n, groups["site: small"].patients) == (57, 19)
    assert groups["site: small"].metrics["accuracy"].value is None


def test_images_without_a_value_are_a_group_that_is_not_compared() -> None:
    table = table_of(600)
    sex = table.rows["sex"].mask(np.arange(600) < 60, "")
    sex = sex.mask(np.arange(600) > 560, None).mask(np.arange(600) == 100, "Unknown")
    groups = by_name(compute_subgroups(with_attributes(table, sex=sex)))
    missing = groups["sex: not recorded"]
    assert list(groups) == ["all", "sex: f", "sex: m", "sex: not recorded"]
    assert (missing.n, missing.gaps) == (100, {})
    assert missing.metrics["accuracy"].value is not None
    parts = [groups[name].metrics["accuracy"].value for name in ("sex: f", "sex: m")]
    gap = groups["sex: f"].gaps["accuracy"].estimate.value
    assert gap == pytest.approx(parts[0] - parts[1])  # not with those without a value


def test_another_name_of_the_class_is_left_out_of_all_tests_and_the_first_screen_says_so() -> None:
    table = table_of(600)
    subtype = np.where(table.labels == 1, "spiral", "intact").astype(object)
    subtype[:10] = "rare"  # of both classes: too small to be compared
    named = replace(table, rows=table.rows.assign(subtype=subtype))
    assert compute_subgroups(named) == compute_subgroups(table)  # the same corrected p-values
    metrics = compute_metrics(named, draws=20)
    assert {"tpr_gap/sex", "tpr_gap/site"} == {name for name in metrics if "tpr_gap" in name}
    answers = overview("A network", metrics, named, {}, ["Worse for x."]).answers
    left_out = f"Not compared by subtype: {ONE_CLASS}."
    assert answers["For whom is it worse?"] == ["Worse for x.", left_out]
    with pytest.raises(ValueError, match="attribute 'subtype': each of its groups"):
        compute_subgroups(named, "subtype")
    alone = with_attributes(table, subtype=subtype)
    assert about_data(alone, [], [])["For whom is it worse?"] == [left_out]
    mixed = replace(
        table, rows=table.rows.assign(subtype=np.where(table.labels, subtype, "spiral"))
    )
    assert "subtype" in attribute_groups(mixed)


def test_attributes_become_groups_by_a_stated_rule() -> None:
    table, n = table_of(400), 400
    numbers = np.arange(n)
    table = with_attributes(
        table, age=numbers % 90, PatientAge=[f"{k % 70:03d}Y" for k in numbers],
        weight=numbers / 4, grade=numbers % 3, constant="x", box=[f"{k},1" for k in numbers],
        stage=numbers % 4, missing=None, image=numbers % 20 + 0.5,
    )  # fmt: skip
    groups = attribute_groups(table)
    assert list(groups) == ["age", "PatientAge", "weight", "grade", "stage", "image"]
    bands = ["under 18", "18 to under 40", "40 to under 65", "65 or more"]
    assert groups["age"].names == groups["PatientAge"].names == bands
    expected = np.searchsorted([18, 40, 65], numbers % 90, side="right")
    assert (groups["age"].of_row == expected).all()
    assert np.bincount(groups["weight"].of_row).tolist() == [100] * 4
    assert groups["grade"].names == ["0", "1", "2"]
    with pytest.raises(ValueError, match="attribute 'bone' is not among"):
        attribute_groups(table, "bone")
    assert not compute_subgroups(with_attributes(table, constant="x"))


def test_intersections_have_enough_patients_and_are_not_groups_already() -> None:
    table = table_of(400)
    site = np.where(np.arange(400) < 30, "rare", table.rows["site"])
    table = with_attributes(table, sex=table.rows["sex"], site=site, copy=table.rows["sex"])
    crossed = [s for s in compute_subgroups(table) if s.is_intersection]
    names = {s.name for s in crossed}
    assert "sex and site: f, a" in names
    assert not any("rare" in name or "sex and copy" in name for name in names)
    [group] = [s for s in crossed if s.name == "sex and site: f, a"]
    rows = ((table.rows["sex"] == "f") & (site == "a")).to_numpy()
    correct = table.predictions == table.labels
    assert group.metrics["accuracy"].value == pytest.approx(correct[rows].mean())
    gap = group.gaps["accuracy"].estimate.value
    assert gap == pytest.approx(correct[rows].mean() - correct[~rows].mean())


def test_equalized_odds_are_the_largest_difference_of_rates() -> None:
    table, of_site = table_of(900), {}
    correct, labels = table.predictions == table.labels, table.labels
    metrics = compute_metrics(table, draws=20)
    for name, of_label in (("tpr_gap", 1), ("fpr_gap", 0)):
        rates = [correct[(table.rows["site"] == s) & (labels == of_label)] for s in "abc"]
        means = [rate.mean() for rate in rates]
        of_site[name] = rates
        estimate = metrics[f"{name}/site"]
        assert estimate.value == pytest.approx(max(means) - min(means))
        assert 0 <= estimate.low <= estimate.value < estimate.high < 1
    bounds = []
    for first, second in combinations(of_site["fpr_gap"], 2):
        p, q, n, m = first.mean(), second.mean(), len(first), len(second)
        observed = (p * (1 - p) / n + q * (1 - q) / m) * min(n, m) / (min(n, m) - 1)
        pooled = correct[labels == 0].mean()
        if_equal = pooled * (1 - pooled) * (1 / n + 1 / m)
        quantile = student.ppf(1 - 0.025 / 3, min(n, m) - 1)  # of three pairs
        bounds.append(abs(p - q) + quantile * np.sqrt(max(observed, if_equal)))
    assert metrics["fpr_gap/site"].high == pytest.approx(max(bounds))
    two = compute_metrics(with_attributes(table, sex=table.rows["sex"]), draws=20)["tpr_gap/sex"]
    gap = by_name(compute_subgroups(table))["sex: f"].gaps["recall/yes"].estimate
    assert two.value == pytest.approx(abs(gap.value))
    assert two.high == pytest.approx(abs(gap.value) + (gap.high - gap.value))
    small = with_attributes(table, site=np.where(np.arange(900) < 10, "a", "b"))
    estimate = compute_metrics(small, draws=20)["tpr_gap/site"]
    assert estimate.value is None
    assert "fewer than two groups have 20 patients" in estimate.reason


def test_the_stated_threshold_decides_sensitivity_and_specificity() -> None:
    table = table_of()
    use = {"clinical_use": {"threshold": 0.9}}
    groups = by_name(compute_subgroups(replace(table, meta=use)))
    rows = (table.rows["sex"] == "f").to_numpy() & (table.labels == 1)
    found = table.probabilities[rows, 1] >= 0.9
    assert groups["sex: f"].metrics["recall/yes"].value == pytest.approx(found.mean())
    page = subgroup_sections(list(groups.values()), {}, replace(table, meta=use))
    assert "decisions by the probability 0.9" in page[0].caption


def test_groups_of_several_classes_are_compared_by_the_named_group_of_classes() -> None:
    table = with_attributes(make_table(400, 4), site=np.where(np.arange(400) % 2, "a", "b"))
    use = {"clinical_use": {"class_groups": {"severe": ["comminuted", "other"]}}}
    groups = by_name(compute_subgroups(replace(table, meta=use)))
    severe = np.isin(table.labels, [2, 3])
    decided, rows = np.isin(table.predictions, [2, 3]), (table.rows["site"] == "a").to_numpy()
    assert len(groups["site: a"].metrics) == 5
    recall = groups["site: a"].metrics["recall/severe"].value
    assert recall == pytest.approx(decided[rows & severe].mean())
    each = compute_subgroups(table)
    assert len(each[0].metrics) == 1 + 4 * 4


def test_results_csv_and_sections_have_every_group(tmp_path) -> None:
    table = table_of()
    metrics, groups = compute_metrics(table, draws=20), compute_subgroups(table)
    results = Results("resnet", "test", table.class_names, metrics, subgroups=groups)
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    frame = subgroups_frame({"resnet": groups}, "run")
    assert len(frame) == sum(len(s.metrics) for s in groups)
    [row] = frame[(frame["group"] == "f, a") & (frame["metric"] == "accuracy")].to_dict("records")
    s = by_name(groups)["sex and site: f, a"]
    assert (row["run"], row["n"], row["p"]) == ("resnet", s.n, s.gaps["accuracy"].p_value)
    plot, text, odds, gaps, single, crossed = subgroup_sections(groups, metrics, table)
    assert plot.heading == "Subgroups"
    assert "Lowest accuracy: " in text.body
    assert len(plot.image.axes) == 5
    [line] = [x for x in plot.image.axes[0].lines if len(set(x.get_xdata())) == 1 and
              list(x.get_ydata()) == [0, 1]]  # fmt: skip
    assert line.get_xdata()[0] == groups[0].metrics["accuracy"].value
    assert [row[0] for row in odds.rows] == ["sex", "site"]
    assert odds.rows[1][1] == metrics["tpr_gap/site"]
    assert [row[1] for row in single.rows] == ["all", "f", "m", "a", "b", "c"]
    assert len(crossed.rows) == 6
    p_values = [float(row[5]) for row in gaps.rows]
    assert p_values == sorted(p_values)
    assert html.section_html(single).count("<tr") == 7
    assert subgroup_sections([], metrics, table) == []
