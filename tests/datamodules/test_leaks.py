from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from datamodules.audit.audit import (
    BROKEN,
    CONFLICT,
    CONSTANT,
    NEAR,
    PATIENT,
    SAME,
    audit,
    cheap_leaks,
)
from datamodules.audit.audit import NAMES as DERIVED
from datamodules.audit.confounds import auc, confounds, cramers_v
from datamodules.datamodule import ImageDataModule
from datamodules.manifest import Manifest
from datamodules.sources import Folders
from tests.datamodules.leaky import NAMES, clean, planted


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return clean(tmp_path_factory.mktemp("phantoms"), patients=120, films=2)


@pytest.fixture(scope="module")
def leaky(manifest, tmp_path_factory):
    changed, truth = planted(manifest, tmp_path_factory.mktemp("planted"))
    return audit(changed), truth


def found(report, kind, leak=True):
    return [f for f in report.findings if f.kind == kind and f.leak == leak]


def pairs(findings):
    return {(m.first, m.second): m.how for f in findings for m in f.matches}


def test_a_clean_set_gives_no_finding(manifest):
    report = audit(manifest)
    assert report.findings == []
    assert report.quarantine().empty
    assert not any(fact.suspect for fact in report.confounds)


@pytest.mark.parametrize(
    "kind", ["re-encoded", "resized", "mirrored", "turned by 10", "other light"]
)
def test_a_changed_copy_is_found_with_what_was_done_to_it(leaky, kind):
    report, truth = leaky
    how = pairs(found(report, NEAR))
    assert kind in (how.get(truth[kind]) or how[truth[kind][::-1]])


def test_there_is_no_alarm_beyond_the_planted_copies(leaky):
    report, truth = leaky
    planted_pairs = {frozenset(pair) for pair in truth.values()}
    near = pairs([*found(report, NEAR), *found(report, NEAR, leak=False)])
    assert {frozenset(pair) for pair in near} <= planted_pairs


def test_equal_bytes_and_their_label_conflict_are_found(leaky):
    report, truth = leaky
    same = pairs(found(report, SAME))
    assert set(same) == {truth["same bytes"], truth["label conflict"]}
    assert list(pairs(found(report, CONFLICT, leak=False))) == [truth["label conflict"]]


def test_names_of_derived_files_and_shared_patients_are_found(leaky):
    report, truth = leaky
    assert list(pairs(found(report, DERIVED))) == [truth["derived name"]]
    (finding,) = found(report, PATIENT)
    assert truth["patient"][0] in finding.ids
    assert truth["patient"][1] in finding.message


def test_what_quarantine_leaves_is_clean(leaky):
    report, _ = leaky
    gone = set(report.quarantine()["id"])
    table = report.manifest.table
    assert (report.quarantine()["split"] == "train").sum() >= 8
    kept = replace(report.manifest, table=table[~table["id"].isin(gone)])
    assert audit(kept).leaks == []


def test_quarantine_takes_every_earlier_sample_that_belongs_to_a_later_one(tmp_path):
    dice = np.random.default_rng(0)
    shown = [cv2.resize(dice.integers(0, 255, (9, 9), np.uint8), (96, 96)) for _ in range(14)]
    rows = []

    def kept(name, split, picture, patient=None, quality=95):
        cv2.imwrite(str(tmp_path / name), picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        path = str(tmp_path / name)
        rows.append((name, path, 0, split, patient or name, patient or name))

    for k in range(3):  # one patient with several films on each side
        kept(f"train{k}.jpg", "train", shown[k], "p")
        kept(f"val{k}.jpg", "val", shown[3 + k], "p")
    kept("test.jpg", "test", shown[6], "p")
    for name, split in (("a", "train"), ("b", "train"), ("c", "test")):  # three equal files
        kept(f"same-{name}.jpg", split, shown[7])
    for name, split, quality in (("a", "train", 95), ("b", "train", 95), ("c", "test", 60)):
        kept(f"near-{name}.jpg", split, shown[8], quality=quality)  # two equal, one like them
    kept("x.jpg", "test", shown[9])
    kept("x_aug1.jpg", "train", shown[10])
    kept("x_aug2.jpg", "train", shown[11])
    kept("y.jpg", "train", shown[12])
    columns = ["id", "path", "label", "split", "patient", "study"]
    manifest = Manifest(pd.DataFrame(rows, columns=columns), ["one"])
    gone = set(audit(manifest).quarantine()["id"])
    last = {"test.jpg", "same-c.jpg", "near-c.jpg", "x.jpg", "y.jpg"}
    assert gone == set(manifest.table["id"]) - last
    assert audit(manifest.without(gone, "left out")).leaks == []


def test_frames_of_one_file_are_no_copies_and_those_of_equal_files_are(tmp_path):
    dice = np.random.default_rng(0)
    shown = [cv2.resize(dice.integers(0, 255, (9, 9), np.uint8), (96, 96)) for _ in range(3)]
    cv2.imwritemulti(str(tmp_path / "a.tiff"), shown)
    cv2.imwritemulti(str(tmp_path / "b.tiff"), shown)
    names = [*(f"a.tiff#{k}" for k in range(3)), "b.tiff#1"]
    table = pd.DataFrame({"id": names, "path": [str(tmp_path / name) for name in names]})
    table["label"], table["split"] = [0, 1, 0, 1], ["train"] * 3 + ["test"]
    table["patient"] = table["study"] = ["p"] * 3 + ["q"]
    manifest = Manifest(table, ["no", "yes"])
    report = audit(manifest)
    assert list(pairs(report.findings)) == [("a.tiff#1", "b.tiff#1")]
    assert found(report, CONFLICT, leak=False) == []
    assert [f.kind for f in cheap_leaks(manifest)] == [SAME]


def test_the_cheap_part_finds_patients_names_and_bytes(leaky, manifest):
    report, _ = leaky
    assert {f.kind for f in cheap_leaks(report.manifest)} == {PATIENT, DERIVED, SAME}
    assert cheap_leaks(manifest) == []


@pytest.mark.parametrize(
    ("first", "second", "derived"),
    [
        ("train/a/p1.png", "test/a/p1_aug3.png", True),
        ("train/a/p1_flip.png", "test/a/p1-rotated1-rotated2.jpg", True),
        ("train/a/p1.png", "test/a/p1 (2).png", True),
        ("train/a/1.png", "test/a/1.png", False),
        ("train/a/sunbright.png", "test/a/sun.png", False),
        ("train/a/p1_aug.png", "test/b/p1.png", False),
    ],
)
def test_names_are_told_apart(first, second, derived):
    table = pd.DataFrame({"id": [first, second], "path": [first, second], "label": 0})
    table["split"], table["patient"], table["study"] = ["train", "test"], ["p", "q"], "s"
    kinds = [f.kind for f in cheap_leaks(Manifest(table, ["a"]))]
    assert kinds == ([DERIVED] if derived else [])


def test_broken_and_constant_files_are_named(tmp_path):
    dice = np.random.default_rng(0)
    for k in range(12):
        path = tmp_path / "train" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), dice.integers(0, 255, (70, 50), dtype=np.uint8))
    (tmp_path / "train/a/bad.png").write_text("<html>")
    (tmp_path / "train/a/empty.png").touch()
    cv2.imwrite(str(tmp_path / "train/b/black.png"), np.zeros((40, 40), np.uint8))
    report = audit(Folders(str(tmp_path), None).manifest(["a", "b"]))
    assert found(report, BROKEN, leak=False)[0].ids == ["train/a/bad.png", "train/a/empty.png"]
    assert found(report, CONSTANT, leak=False)[0].ids == ["train/b/black.png"]
    assert set(report.quarantine()["reason"]) == {BROKEN, CONSTANT}


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_fit_refuses_a_leak_unless_told_and_every_stage_notes_an_allowed_one(leaky, stage):
    report, _ = leaky

    class Given(Folders):
        def manifest(self, class_names):
            return report.manifest

    data = ImageDataModule(Given("nowhere", None), NAMES, workers=0)
    with pytest.raises(ValueError, match=r"patients stand in more than one split.*allow_leaks"):
        data.setup("fit")
    data.setup("test")
    data = ImageDataModule(Given("nowhere", None), NAMES, workers=0, allow_leaks=True)
    data.setup(stage)
    data.setup(stage)
    notes = [note for note in data.manifest.notes if note.startswith("leak that was allowed: ")]
    assert len(notes) == 3


def test_auc_and_v_have_their_known_values():
    assert auc(np.array([1, 2, 3, 4]), np.array([False, False, True, True])) == 1
    assert auc(np.array([1, 1, 1, 1]), np.array([False, True, False, True])) == 0.5
    sides = np.repeat(["x", "y"], 50)
    assert cramers_v(sides, np.repeat([0, 1], 50)) == pytest.approx(1)
    assert cramers_v(np.tile(["x", "y"], 50), np.repeat([0, 1], 50)) == 0


def test_a_fact_that_gives_the_class_away_is_suspect():
    dice = np.random.default_rng(0)
    labels = dice.integers(0, 2, 400)
    facts = pd.DataFrame(
        {"bytes": labels * 2 + dice.normal(size=400), "mean": dice.normal(size=400)}
    )
    facts["source"] = np.where(dice.random(400) < 0.9, labels, 1 - labels).astype(str)
    by_name = {f.name: f for f in confounds(facts, ["bytes", "mean"], labels, ["a", "b"])}
    assert by_name["bytes"].suspect
    assert by_name["source"].suspect
    assert not by_name["mean"].suspect
    assert by_name["bytes"].value == pytest.approx(0.92, abs=0.03)
