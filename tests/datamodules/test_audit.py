import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from datamodules.audit import file_stats
from datamodules.audit.audit import audit_manifest, find_leaks_without_decoding
from datamodules.audit.issues import (
    BROKEN,
    CONFLICT,
    CONSTANT,
    DAMAGED,
    NEAR,
    PATIENT,
    SAME,
    SEVERAL_CLASSES,
    SEVERAL_PATIENTS,
)
from datamodules.audit.issues import NAMES as DERIVED
from datamodules.audit.memo import Memo
from datamodules.audit.near_duplicates import NearDuplicateSearch
from datamodules.datamodule import ImageDataModule
from datamodules.images import read_image
from datamodules.manifest import Manifest
from datamodules.sources import Folders
from tests.datamodules.planted_leaks import NAMES, augment, clean_manifest, make_row, plant_leaks


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return clean_manifest(tmp_path_factory.mktemp("phantoms"), num_patients=36)


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


@pytest.mark.exhaustive
def test_nothing_is_found_in_what_the_quarantine_of_many_copies_leaves(tmp_path):
    """Each test image has six augmented copies in train, of which some resemble each other more."""
    source = clean_manifest(tmp_path / "phantoms", num_patients=50)
    rng, rows = np.random.default_rng(1), []
    for k, path in enumerate(source.table.drop_duplicates("patient")["path"][:40]):
        image = read_image(path)
        versions = [image, *(augment(image, rng) for _ in range(6 * (k < 8)))]
        for n, version in enumerate(versions):
            name, split = f"{k}-{n}.png", "test" if n == 0 and k < 16 else "train"
            cv2.imwrite(str(tmp_path / name), version)
            rows.append((name, str(tmp_path / name), 0, split, name, name))
    columns = ["id", "path", "label", "split", "patient", "study"]
    manifest = Manifest(pd.DataFrame(rows, columns=columns), ["one"])
    audit = audit_manifest(manifest)
    excluded = set(audit.quarantine()["id"])
    planted = {f"{k}-{n}.png" for k in range(8) for n in range(1, 7)}
    assert len(excluded & planted) >= 0.95 * len(planted)
    assert len(excluded - planted) <= 0.02 * len(excluded)
    assert audit_manifest(manifest.drop(excluded, "excluded")).leaks == []
    groups = audit.copy_groups()
    assert planted & excluded <= set(groups["id"])
    of_first = groups.loc[groups["id"].str.startswith("0-"), "group"]
    assert of_first.nunique() == 1


def test_copies_are_searched_again_in_what_the_quarantine_leaves(tmp_path, monkeypatch):
    """Until there are none, also if one search misses some: here it finds one pair."""
    source = clean_manifest(tmp_path / "phantoms", num_patients=12)
    table = source.table.drop_duplicates("patient").assign(split="train").reset_index(drop=True)
    image, copies = read_image(table["path"].iloc[0]), []
    table.loc[0, "split"] = "test"
    for name, pixels in (("one.jpg", image), ("second.jpg", 255 - image)):
        cv2.imwrite(str(tmp_path / name), pixels)
        copies.append({"id": name, "path": str(tmp_path / name), "patient": name, "label": 0})
    copies = pd.DataFrame(copies).assign(split="train", study=[row["id"] for row in copies])
    manifest = Manifest(pd.concat([table[copies.columns], copies], ignore_index=True), NAMES)
    find = NearDuplicateSearch.find
    monkeypatch.setattr(
        NearDuplicateSearch, "find",
        lambda *args: [p for p in find(*args) if p.first == 0 and p.second >= len(table)][:1],
    )  # fmt: skip
    audit = audit_manifest(manifest)
    assert audit.quarantine()["id"].tolist() == copies["id"].tolist()
    reasons = pairs(issues_of(audit, NEAR))
    changes = {names[1]: reason.split(", ")[0] for names, reason in reasons.items()}
    assert changes == {"one.jpg": "re-encoded", "second.jpg": "inverted"}


def test_of_identical_files_with_different_labels_none_stays_and_of_near_ones_all(tmp_path):
    rows = [
        (0, "train", 0, "p"), (0, "train", 0, "q"), (0, "train", 1, "r"),  # identical
        (1, "train", 0, "s"), (1, "train", 0, "t"),  # identical, of the same class
        (2, "train", 0, "u"), (3, "train", 1, "v"),
    ]  # fmt: skip
    audit = make_audit(tmp_path, rows)
    quarantine = audit.quarantine()
    assert quarantine["id"].tolist() == ["0.png", "1.png", "2.png"]
    assert set(quarantine["reason"]) == {CONFLICT}


def test_two_exposures_of_a_patient_with_different_labels_both_stay(tmp_path):
    source = clean_manifest(tmp_path / "phantoms", num_patients=40).table.drop_duplicates("patient")
    table, rng = source.assign(split="train"), np.random.default_rng(0)
    image = read_image(table["path"].iloc[0]).astype(float)
    noise = cv2.GaussianBlur(rng.normal(0, 7, image.shape), (0, 0), 0.7)
    cv2.imwrite(str(tmp_path / "next.png"), np.clip(image + noise, 0, 255).astype(np.uint8))
    label = (table["label"].iloc[0] + 1) % 3
    row = make_row(table.iloc[0], tmp_path / "next.png", table["patient"].iloc[0], label)
    both = pd.concat([table, pd.DataFrame([row | {"split": "train"}])], ignore_index=True)
    audit = audit_manifest(Manifest(both, NAMES))
    (issue,) = issues_of(audit, SEVERAL_CLASSES, is_leak=False)
    assert [(m.first, m.second) for m in issue.matches] == [(table["id"].iloc[0], "next.png")]
    assert "1 pair of nearly equal images with different labels" in issue.message
    assert issues_of(audit, CONFLICT, is_leak=False) == []
    assert audit.quarantine().empty


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
        ("train/a/9_12_original.jpg", "test/a/9_12_flip.jpg", True),
        ("train/a/9_12_original.jpg", "test/a/9_12.jpg", True),
        ("train/a/9_12_original.jpg", "test/a/9_13_original.jpg", False),
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


def jpeg_damages(data):
    """Damaged contents of a JPEG file by the kind of damage, all of which OpenCV decodes."""
    middle, size = len(data) // 2, data.index(b"\xff\xc0") + 5  # of the image: height and width
    return {
        "cut": data[:middle] + b"\xff\xd9",
        "zeroed": data[:middle] + bytes(300) + data[middle + 300 :],
        "taller": data[:size] + (512).to_bytes(2, "big") + data[size + 2 :],
        "lower": data[:size] + (64).to_bytes(2, "big") + data[size + 2 :],
    }


def write_jpegs(paths):
    """Different images; returns the content of the first."""
    rng = np.random.default_rng(0)
    for path in paths:
        pixels = cv2.resize(rng.uniform(0, 255, (20, 20)), (256, 256)).astype(np.uint8)
        cv2.imwrite(path, pixels)
    return Path(paths[0]).read_bytes()


def test_damaged_jpeg_files_are_reported(tmp_path, capfd):
    whole = [str(tmp_path / f"whole {k}.jpg") for k in range(3)]
    data = write_jpegs(whole)
    for name, content in jpeg_damages(data).items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    ids = sorted(path.name for path in tmp_path.iterdir())
    table = pd.DataFrame({"id": ids, "path": [str(tmp_path / name) for name in ids], "label": 0})
    audit = audit_manifest(Manifest(table.assign(split="train", patient=ids, study=ids), ["a"]))
    (damaged,) = issues_of(audit, DAMAGED, is_leak=False)
    assert damaged.ids == sorted(f"{name}.jpg" for name in jpeg_damages(data))
    assert damaged.message.startswith("4 damaged JPEG files, such as ")
    assert f"{tmp_path}/cut.jpg: Corrupt JPEG data: premature end" in damaged.reasons[0]
    assert not issues_of(audit, BROKEN, is_leak=False)
    os.write(2, b"after the audit")
    assert capfd.readouterr().err == "after the audit"  # no lines of libjpeg, which name no file


def test_jpeg_files_are_decoded_again_only_if_one_of_them_is_damaged(tmp_path, monkeypatch):
    decoded = []
    jpeg_warnings = file_stats.jpeg_warnings
    monkeypatch.setattr(
        file_stats, "jpeg_warnings", lambda paths: decoded.extend(paths) or jpeg_warnings(paths)
    )
    paths = [str(tmp_path / f"{k}.jpg") for k in range(9)]
    data = write_jpegs(paths)
    stats = file_stats.FileReader(paths, Memo(tmp_path / "memo")).stats()
    assert decoded == []
    assert set(stats["warning"]) == {""}
    Path(paths[3]).write_bytes(jpeg_damages(data)["cut"])
    stats = file_stats.FileReader(paths, Memo(tmp_path / "memo")).stats()
    assert paths[3] in decoded
    assert [k for k in range(9) if stats["warning"][k]] == [3]


def test_every_reason_of_unreadable_files_is_in_the_issue_and_in_the_quarantine(tmp_path):
    contents = ["", "<html>", "BM", "\x00" * 200, "<html>x"]
    for k, content in enumerate(contents):
        (tmp_path / f"{k}.png").write_text(content)
    ids = [f"{k}.png" for k in range(5)]
    table = pd.DataFrame({"id": ids, "path": [str(tmp_path / name) for name in ids], "label": 0})
    table = table.assign(split="train", patient=ids, study=ids)
    audit = audit_manifest(Manifest(table, ["a"]))
    (broken,) = issues_of(audit, BROKEN, is_leak=False)
    assert [reason.partition(": ")[0] for reason in broken.reasons] == table["path"].tolist()
    assert "the file is empty" in broken.reasons[0]
    assert "bmp header" in broken.reasons[2]
    assert audit.quarantine()["detail"].tolist() == list(broken.reasons)
    assert broken.message.startswith(f"5 unreadable files, such as {broken.ids[0]}: ")
    assert "(1)" in broken.message


@pytest.mark.exhaustive
def test_evaluation_images_with_a_copy_or_the_patient_in_train_are_counted(leaky, manifest):
    audit, planted = leaky
    size = audit.manifest.table["split"].value_counts()
    val, test = audit.overlaps()
    assert val == ("val", size["val"], 0, 0)
    assert test == ("test", size["test"], 8, 1)
    assert len(planted) == 9  # eight copies and one patient
    assert all(o.copied == o.same_patient == 0 for o in audit_manifest(manifest).overlaps())


@pytest.mark.parametrize("is_audited", [False, True])
def test_fit_refuses_copies_that_an_audit_of_this_manifest_found(
    leaky, tmp_path, monkeypatch, is_audited
):
    audit, _ = leaky
    near = [issue for issue in audit.issues if issue.kind == NEAR]
    table = audit.manifest.table
    others = {m for i in audit.leaks if i.kind != NEAR for group in i.groups for m in group}
    manifest = Manifest(table[~table["id"].isin(others)], NAMES)
    monkeypatch.chdir(tmp_path)
    digest = manifest.digest() if is_audited else "another"
    record = {"manifest_digest": digest, "issues": [asdict(issue) for issue in near]}
    folder = tmp_path / "runs/audit-mine"
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(json.dumps(record))

    class Source(Folders):
        def manifest(self, class_names):
            return manifest

    data = ImageDataModule(Source("nowhere", None), NAMES, num_workers=0)
    if not is_audited:
        data.setup("fit")
        return
    message = (
        r"pairs? of near duplicates in different splits.*add --data.init_args.exclude runs/aud"
    )
    with pytest.raises(ValueError, match=message):
        data.setup("fit")
    data = ImageDataModule(Source("nowhere", None), NAMES, num_workers=0, allow_leaks=True)
    data.setup("fit")
    assert any("pairs of near duplicates" in note for note in data.manifest.notes)


def make_audit(tmp_path, rows):
    """The audit of (number of the image, split, label, patient)."""
    rng, table = np.random.default_rng(0), []
    images = [cv2.resize(rng.integers(0, 255, (9, 9), np.uint8), (96, 96)) for _ in range(9)]
    for k, (number, split, label, patient) in enumerate(rows):
        path = str(tmp_path / f"{k}.png")
        cv2.imwrite(path, images[number])
        table.append((f"{k}.png", path, label, split, patient or f"{k}.png", "s"))
    columns = ["id", "path", "label", "split", "patient", "study"]
    return audit_manifest(Manifest(pd.DataFrame(table, columns=columns), ["none", "mild"]))


def test_one_image_under_two_patient_ids_is_reported(tmp_path):
    rows = [(0, "train", 0, "p"), (0, "train", 0, "q"), (1, "train", 0, "r"), (1, "train", 0, "r")]
    audit = make_audit(tmp_path, [*rows, (2, "train", 0, None), (2, "train", 0, None)])
    (issue,) = issues_of(audit, SEVERAL_PATIENTS, is_leak=False)
    assert issue.ids == ["0.png", "1.png"]
    assert issue.message == "1 pair of copies with different patient IDs: 0.png (p) = 1.png (q)"


def test_one_patient_in_two_classes_is_reported(tmp_path):
    rows = [(0, "train", 0, "p"), (1, "train", 1, "p"), (2, "train", 0, "q"), (3, "train", 1, "r")]
    audit = make_audit(tmp_path, rows)
    (issue,) = audit.issues
    assert (issue.kind, issue.is_leak) == (SEVERAL_CLASSES, False)
    assert issue.ids == ["0.png", "1.png"]
    assert issue.message == "1 of 3 patients have images of more than one class: p"
    assert audit.quarantine().empty


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
