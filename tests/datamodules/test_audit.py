from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from datamodules.audit.audit import (
    BROKEN,
    CONFLICT,
    CONSTANT,
    NEAR,
    PATIENT,
    SAME,
    audit_manifest,
    find_leaks_without_decoding,
)
from datamodules.audit.audit import NAMES as DERIVED
from datamodules.audit.file_stats import auc, cramers_v, measure_confounds
from datamodules.datamodule import ImageDataModule
from datamodules.manifest import Manifest
from datamodules.sources import Folders
from tests.datamodules.planted_leaks import NAMES, clean_manifest, plant_leaks


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return clean_manifest(tmp_path_factory.mktemp("phantoms"), num_patients=120)


@pytest.fixture(scope="module")
def leaky(manifest, tmp_path_factory):
    """The audit of a dataset with planted leaks, and the ids of the leaks."""
    changed, planted = plant_leaks(manifest, tmp_path_factory.mktemp("planted"))
    return audit_manifest(changed), planted


def issues_of(audit, kind, is_leak=True):
    return [issue for issue in audit.issues if issue.kind == kind and issue.is_leak == is_leak]


def pairs(issues):
    return {(m.first, m.second): m.reason for issue in issues for m in issue.matches}


def test_a_clean_dataset_has_no_issues(manifest):
    audit = audit_manifest(manifest)
    assert audit.issues == []
    assert audit.quarantine().empty
    assert not any(confound.is_suspect for confound in audit.confounds)


@pytest.mark.parametrize(
    "kind", ["re-encoded", "resized", "mirrored", "rotated by 10", "different brightness"]
)
def test_a_changed_copy_is_reported_with_its_change(leaky, kind):
    audit, planted = leaky
    reasons = pairs(issues_of(audit, NEAR))
    assert kind in (reasons.get(planted[kind]) or reasons[planted[kind][::-1]])


def test_no_other_pairs_are_reported_as_near_duplicates(leaky):
    audit, planted = leaky
    planted_pairs = {frozenset(pair) for pair in planted.values()}
    near = pairs([*issues_of(audit, NEAR), *issues_of(audit, NEAR, is_leak=False)])
    assert {frozenset(pair) for pair in near} <= planted_pairs


def test_identical_files_and_their_different_labels_are_reported(leaky):
    audit, planted = leaky
    same = pairs(issues_of(audit, SAME))
    assert set(same) == {planted["same bytes"], planted["different labels"]}
    conflicts = pairs(issues_of(audit, CONFLICT, is_leak=False))
    assert list(conflicts) == [planted["different labels"]]


def test_derived_file_names_and_shared_patients_are_reported(leaky):
    audit, planted = leaky
    assert list(pairs(issues_of(audit, DERIVED))) == [planted["derived name"]]
    (issue,) = issues_of(audit, PATIENT)
    assert planted["patient"][0] in issue.ids
    assert planted["patient"][1] in issue.message


def test_no_leak_remains_after_quarantine(leaky):
    audit, _ = leaky
    excluded = set(audit.quarantine()["id"])
    table = audit.manifest.table
    assert (audit.quarantine()["split"] == "train").sum() >= 8
    remaining = replace(audit.manifest, table=table[~table["id"].isin(excluded)])
    assert audit_manifest(remaining).leaks == []


def test_quarantine_has_every_sample_that_belongs_to_one_of_a_later_split(tmp_path):
    rng = np.random.default_rng(0)
    images = [cv2.resize(rng.integers(0, 255, (9, 9), np.uint8), (96, 96)) for _ in range(14)]
    rows = []

    def add(name, split, image, patient=None, quality=95):
        cv2.imwrite(str(tmp_path / name), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        path = str(tmp_path / name)
        rows.append((name, path, 0, split, patient or name, patient or name))

    for k in range(3):  # one patient with several images in each split
        add(f"train{k}.jpg", "train", images[k], "p")
        add(f"val{k}.jpg", "val", images[3 + k], "p")
    add("test.jpg", "test", images[6], "p")
    for name, split in (("a", "train"), ("b", "train"), ("c", "test")):  # three identical files
        add(f"same-{name}.jpg", split, images[7])
    for name, split, quality in (("a", "train", 95), ("b", "train", 95), ("c", "test", 60)):
        add(f"near-{name}.jpg", split, images[8], quality=quality)  # two identical, one similar
    add("x.jpg", "test", images[9])
    add("x_aug1.jpg", "train", images[10])
    add("x_aug2.jpg", "train", images[11])
    add("y.jpg", "train", images[12])
    columns = ["id", "path", "label", "split", "patient", "study"]
    manifest = Manifest(pd.DataFrame(rows, columns=columns), ["one"])
    excluded = set(audit_manifest(manifest).quarantine()["id"])
    remaining = {"test.jpg", "same-c.jpg", "near-c.jpg", "x.jpg", "y.jpg"}
    assert excluded == set(manifest.table["id"]) - remaining
    assert audit_manifest(manifest.drop(excluded, "excluded")).leaks == []


def test_frames_of_one_file_are_no_duplicates_but_those_of_identical_files_are(tmp_path):
    rng = np.random.default_rng(0)
    images = [cv2.resize(rng.integers(0, 255, (9, 9), np.uint8), (96, 96)) for _ in range(3)]
    cv2.imwritemulti(str(tmp_path / "a.tiff"), images)
    cv2.imwritemulti(str(tmp_path / "b.tiff"), images)
    names = [*(f"a.tiff#{k}" for k in range(3)), "b.tiff#1"]
    table = pd.DataFrame({"id": names, "path": [str(tmp_path / name) for name in names]})
    table["label"], table["split"] = [0, 1, 0, 1], ["train"] * 3 + ["test"]
    table["patient"] = table["study"] = ["p"] * 3 + ["q"]
    manifest = Manifest(table, ["no", "yes"])
    audit = audit_manifest(manifest)
    assert list(pairs(audit.issues)) == [("a.tiff#1", "b.tiff#1")]
    assert issues_of(audit, CONFLICT, is_leak=False) == []
    assert [issue.kind for issue in find_leaks_without_decoding(manifest)] == [SAME]


def test_patients_names_and_identical_files_are_checked_without_decoding(leaky, manifest):
    audit, _ = leaky
    kinds = {issue.kind for issue in find_leaks_without_decoding(audit.manifest)}
    assert kinds == {PATIENT, DERIVED, SAME}
    assert find_leaks_without_decoding(manifest) == []


@pytest.mark.parametrize(
    ("first", "second", "is_derived"),
    [
        ("train/a/p1.png", "test/a/p1_aug3.png", True),
        ("train/a/p1_flip.png", "test/a/p1-rotated1-rotated2.jpg", True),
        ("train/a/p1.png", "test/a/p1 (2).png", True),
        ("train/a/1.png", "test/a/1.png", False),
        ("train/a/sunbright.png", "test/a/sun.png", False),
        ("train/a/p1_aug.png", "test/b/p1.png", False),
    ],
)
def test_derived_names_are_recognized(first, second, is_derived):
    table = pd.DataFrame({"id": [first, second], "path": [first, second], "label": 0})
    table["split"], table["patient"], table["study"] = ["train", "test"], ["p", "q"], "s"
    kinds = [issue.kind for issue in find_leaks_without_decoding(Manifest(table, ["a"]))]
    assert kinds == ([DERIVED] if is_derived else [])


def test_unreadable_and_constant_files_are_reported(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(12):
        path = tmp_path / "train" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (70, 50), dtype=np.uint8))
    (tmp_path / "train/a/bad.png").write_text("<html>")
    (tmp_path / "train/a/empty.png").touch()
    cv2.imwrite(str(tmp_path / "train/b/black.png"), np.zeros((40, 40), np.uint8))
    audit = audit_manifest(Folders(str(tmp_path), None).manifest(["a", "b"]))
    (broken,) = issues_of(audit, BROKEN, is_leak=False)
    assert broken.ids == ["train/a/bad.png", "train/a/empty.png"]
    assert issues_of(audit, CONSTANT, is_leak=False)[0].ids == ["train/b/black.png"]
    assert set(audit.quarantine()["reason"]) == {BROKEN, CONSTANT}


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_fit_refuses_a_leak_by_default_and_every_stage_notes_an_allowed_one(leaky, stage):
    audit, _ = leaky

    class LeakySource(Folders):
        def manifest(self, class_names):
            return audit.manifest

    source = LeakySource("nowhere", None)
    data = ImageDataModule(source, NAMES, num_workers=0)
    with pytest.raises(ValueError, match=r"patients are in more than one split.*allow_leaks"):
        data.setup("fit")
    data.setup("test")
    data = ImageDataModule(source, NAMES, num_workers=0, allow_leaks=True)
    data.setup(stage)
    data.setup(stage)
    notes = [note for note in data.manifest.notes if note.startswith("allowed leak: ")]
    assert len(notes) == 3


def test_auc_and_cramers_v_have_their_known_values():
    assert auc(np.array([1, 2, 3, 4]), np.array([False, False, True, True])) == 1
    assert auc(np.array([1, 1, 1, 1]), np.array([False, True, False, True])) == 0.5
    rng = np.random.default_rng(0)
    values, is_positive = rng.integers(0, 9, 200), rng.random(200) < 0.3
    assert auc(values, is_positive) == pytest.approx(roc_auc_score(is_positive, values))
    sides = np.repeat(["x", "y"], 50)
    assert cramers_v(sides, np.repeat([0, 1], 50)) == pytest.approx(1)
    assert cramers_v(np.tile(["x", "y"], 50), np.repeat([0, 1], 50)) == 0


def test_a_statistic_that_predicts_the_class_is_suspect():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    table = pd.DataFrame({"bytes": labels * 2 + rng.normal(size=400), "mean": rng.normal(size=400)})
    table["source"] = np.where(rng.random(400) < 0.9, labels, 1 - labels).astype(str)
    confounds = measure_confounds(table, ["bytes", "mean"], labels, ["a", "b"])
    by_name = {confound.name: confound for confound in confounds}
    assert by_name["bytes"].is_suspect
    assert by_name["source"].is_suspect
    assert not by_name["mean"].is_suspect
    assert by_name["bytes"].value == pytest.approx(0.92, abs=0.03)
