import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from datamodules.audit.confounds import auc, auc_interval, cramers_v, measure_confounds
from datamodules.audit.file_stats import CATEGORIES, NUMBERS
from datamodules.manifest import Manifest


def make_stats(n, **columns):
    """Statistics of n readable files, all of them noise except for the given columns."""
    rng = np.random.default_rng(0)
    stats = pd.DataFrame({name: rng.normal(size=n) for name in NUMBERS})
    return stats.assign(**dict.fromkeys(CATEGORIES, "x"), error="", **columns)


def make_manifest(labels, class_names=("no", "yes"), patients=None, **attributes):
    ids = [f"{k}.png" for k in range(len(labels))]
    table = pd.DataFrame({"id": ids, "path": ids, "label": labels, "split": "train"})
    table["patient"] = table["study"] = ids if patients is None else patients
    return Manifest(table.assign(**attributes), list(class_names))


def measure(labels, stats=None, **columns):
    stats = make_stats(len(labels)) if stats is None else stats
    return {c.name: c for c in measure_confounds(stats, make_manifest(labels, **columns))}


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 2, 400)


def flip(labels, fraction, seed=2):
    return np.where(np.random.default_rng(seed).random(len(labels)) < fraction, 1 - labels, labels)


def test_auc_and_cramers_v_have_their_known_values():
    assert auc(np.array([1, 2, 3, 4]), np.array([False, False, True, True])) == 1
    assert auc(np.array([1, 1, 1, 1]), np.array([False, True, False, True])) == 0.5
    rng = np.random.default_rng(0)
    values, is_positive = rng.integers(0, 9, 200), rng.random(200) < 0.3
    assert auc(values, is_positive) == pytest.approx(roc_auc_score(is_positive, values))
    sides = np.repeat(["x", "y"], 50)
    assert cramers_v(sides, np.repeat([0, 1], 50)) == pytest.approx(1)
    assert cramers_v(np.tile(["x", "y"], 50), np.repeat([0, 1], 50)) == 0


def test_a_statistic_that_predicts_the_class_is_suspect(labels):
    noise = np.random.default_rng(0).normal(size=400)
    stats = make_stats(400, bytes=labels * 2 + noise)
    confounds = measure(labels, stats, source=flip(labels, 0.1).astype(str))
    assert confounds["bytes"].is_suspect
    assert confounds["source"].is_suspect
    assert not confounds["mean"].is_suspect
    assert confounds["bytes"].value == pytest.approx(0.92, abs=0.03)
    assert confounds["bytes"].n == 400


def test_a_numeric_column_with_many_values_is_screened_where_it_is_known(labels):
    rng = np.random.default_rng(0)
    age = pd.Series(np.round(50 + 20 * labels + rng.normal(0, 10, 400), 1)).astype(str)
    age[::4] = ""
    known = (age != "").to_numpy()
    confound = measure(labels, age=age)["age"]
    assert confound.measure == "AUC"
    assert confound.is_suspect
    assert confound.n == known.sum()
    expected = roc_auc_score(labels[known], age[known].astype(float))
    assert confound.value == pytest.approx(expected)


def test_cells_that_are_empty_for_one_class_are_a_confound(labels):
    rng = np.random.default_rng(0)
    age = np.where(flip(labels, 0.05) == 1, rng.normal(50, 10, 400).round(2).astype(str), "")
    confounds = measure(labels, age=age)
    assert confounds["age is empty"].is_suspect
    assert "age is empty" not in measure(labels, age=rng.normal(50, 10, 400))


def test_columns_with_the_names_of_file_statistics_are_screened(labels):
    width = np.where(labels == 1, "wide", "narrow")
    confounds = measure(labels, width=width, bytes=np.arange(400), height="1", error="none")
    assert confounds["width (column)"].measure == "V"
    assert confounds["width"].measure == confounds["bytes (column)"].measure == "AUC"


def test_columns_that_determine_the_class_are_listed_after_other_suspects(labels):
    grade = np.where(labels == 1, "severe", "mild")
    stats = make_stats(400, bytes=labels * 2 + np.random.default_rng(0).normal(size=400))
    risk = labels + np.random.default_rng(3).random(400) * 0.9
    confounds = measure(labels, stats, grade=grade, risk=risk, site=flip(labels, 0.1).astype(str))
    assert list(confounds)[:4] == ["bytes", "site", "grade", "risk"]
    assert [c.name for c in confounds.values() if c.determines_class] == ["grade", "risk"]


def test_a_coarser_name_of_the_class_determines_it():
    labels = np.random.default_rng(0).integers(0, 4, 400)
    referable = np.where(labels > 1, "yes", "no")
    confounds = measure(labels, class_names="abcd", referable=referable, side=labels % 3 > 0)
    assert confounds["referable"].determines_class


def test_a_file_statistic_never_counts_as_another_name_of_the_class(labels):
    (first, *_) = measure(labels, make_stats(400, width=labels * 100.0)).values()
    assert (first.name, first.value, first.determines_class) == ("width", 1.0, False)


@pytest.mark.parametrize(("patients", "is_measured"), [(2, False), (9, False), (10, True)])
def test_classes_with_few_patients_are_not_compared(patients, is_measured):
    labels = np.repeat([0, 1], 60)
    names = [f"{label}-{k % patients}" for label in (0, 1) for k in range(60)]
    stats = make_stats(120, width=labels * 100.0)
    confounds = measure_confounds(stats, make_manifest(labels, patients=names))
    assert bool(confounds) == is_measured


def test_the_interval_of_an_auc_counts_patients_and_is_no_point_at_1():
    low, high = auc_interval(1.0, 10, 10)
    assert 0.7 < low < 0.9
    assert high == 1
    labels = np.repeat([0, 1], 60)
    wide, narrow = (
        measure_confounds(stats, make_manifest(labels, patients=patients))[0]
        for stats in [make_stats(120, width=labels * 100.0)]
        for patients in ([f"{k % 12}-{label}" for k, label in enumerate(labels)], None)
    )
    assert wide.low < narrow.low < 1


def test_the_interval_of_an_auc_covers_the_true_value():
    rng, true_auc, hits = np.random.default_rng(0), 0.8145, 0  # of normals 1.2656 apart
    for _ in range(400):
        values = np.concatenate([rng.normal(1.2656, 1, 30), rng.normal(0, 1, 40)])
        low, high = auc_interval(auc(values, np.arange(70) < 30), 30, 40)
        hits += low <= true_auc <= high
    assert 0.93 <= hits / 400 <= 0.98


def test_unreadable_files_and_unknown_labels_are_left_out(labels):
    stats = make_stats(400, width=labels * 100.0)
    stats.loc[:99, ["error", *NUMBERS]] = ["cut", *[np.nan] * len(NUMBERS)]
    is_known = np.arange(400) >= 200
    split = np.where(is_known, "train", "predict")
    manifest = make_manifest(np.where(is_known, labels, -1), split=split)
    assert {c.n for c in measure_confounds(stats, manifest)} == {200}
