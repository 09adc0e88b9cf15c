import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from datamodules.sources import Folders, Mura, Table
from datamodules.sources.files import scan_folder
from datamodules.splits import SplitFractions
from tests.datamodules.test_dicom import write_dicom


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 8), 7, np.uint8))


@pytest.fixture
def split_folders(tmp_path):
    for name in ("train/no/p1_a", "train/yes/p2_a", "valid/no/p3_a", "test/yes/p4_a"):
        write_image(tmp_path / f"{name}.png")
    return tmp_path


def test_class_split_and_patient_are_read_from_folders(split_folders):
    manifest = Folders(str(split_folders), patient=r"(p\d+)_").manifest(["no", "yes"])
    assert manifest.table["id"].tolist() == [
        "test/yes/p4_a.png",
        "train/no/p1_a.png",
        "train/yes/p2_a.png",
        "valid/no/p3_a.png",
    ]
    assert manifest.table["split"].tolist() == ["test", "train", "train", "val"]
    assert manifest.table["label"].tolist() == [1, 0, 1, 0]
    assert manifest.table["patient"].tolist() == ["p4", "p1", "p2", "p3"]
    assert manifest.notes == ()


def test_unknown_patients_are_noted(split_folders):
    manifest = Folders(str(split_folders), patient=None).manifest(["no", "yes"])
    assert manifest.table["patient"].is_unique
    assert "patients are unknown" in manifest.notes[0]
    with pytest.raises(ValueError, match=r"'x\(y\)', which does not match \['test/yes/p4_a.png'"):
        Folders(str(split_folders), patient="x(y)").manifest(["no", "yes"])


def test_folders_without_splits_need_fractions(tmp_path):
    for n in range(40):
        write_image(tmp_path / "no" / f"p{n % 20}_{n}.png")
    with pytest.raises(ValueError, match="give fractions"):
        Folders(str(tmp_path), r"(p\d+)_").manifest(["no"])
    table = Folders(str(tmp_path), r"(p\d+)_", SplitFractions(0.3, 0.3)).manifest(["no"]).table
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert table["split"].nunique() == 3


def test_class_names_that_differ_from_the_files_are_an_error_with_both(split_folders):
    with pytest.raises(
        ValueError, match=r"in the files are \['no', 'yes'\], not \['no', 'maybe'\]"
    ):
        Folders(str(split_folders), None).manifest(["no", "maybe"])
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        Folders(str(split_folders / "nowhere"), None).manifest(["no"])


@pytest.fixture
def rows():
    return pd.DataFrame(
        {
            "file": ["a.png", "b.png", "c.png"],
            "grade": ["mild", "none", "mild"],
            "fold": ["train", "valid", "test"],
            "person": ["1", "2", "3"],
            "site": ["x", "y", "x"],
        }
    )


def test_a_table_is_read_by_column_names(tmp_path, rows):
    rows[:2].to_csv(tmp_path / "one.csv", index=False)
    rows[2:].to_parquet(tmp_path / "two.parquet")
    files = [str(tmp_path / "one.csv"), str(tmp_path / "two.parquet")]
    source = Table(files, "person", path="file", label="grade", split="fold")
    table = source.manifest(["none", "mild"]).table
    assert table["label"].tolist() == [1, 0, 1]
    assert table["split"].tolist() == ["train", "val", "test"]
    assert table["path"].tolist() == [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    assert table["site"].tolist() == ["x", "y", "x"]


def test_labels_may_be_numbers_or_unknown(tmp_path, rows):
    rows["grade"] = [1, 0, 1]
    rows.to_csv(tmp_path / "t.csv", index=False)
    source = Table(str(tmp_path / "t.csv"), None, path="file", label="grade", split="fold")
    assert source.manifest(["none", "mild"]).table["label"].tolist() == [1, 0, 1]
    source = Table(str(tmp_path / "t.csv"), None, path="file", label=None, split=None)
    table = source.manifest(["none", "mild"]).table
    assert set(table["split"]) == {"predict"}
    assert set(table["label"]) == {-1}


def test_missing_columns_of_a_table_are_named(tmp_path, rows):
    rows.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=r"t.csv: no columns \['path', 'label', 'split', 'who'\]"):
        Table(str(tmp_path / "t.csv"), "who").manifest(["none", "mild"])
    with pytest.raises(ValueError, match="no such file"):
        Table(str(tmp_path / "u.csv"), None).manifest(["none"])


def test_white_space_around_labels_is_removed_and_rows_without_label_are_left_out(tmp_path, rows):
    rows["grade"] = [" mild", "none", " "]
    rows.to_csv(tmp_path / "t.csv", index=False)
    source = Table(str(tmp_path / "t.csv"), "person", path="file", label="grade", split="fold")
    manifest = source.manifest(["none", "mild"])
    assert manifest.table["label"].tolist() == [1, 0]
    assert manifest.table["patient"].tolist() == ["1", "2"]
    assert manifest.table["site"].tolist() == ["x", "y"]
    assert manifest.notes == (
        "2 labels have stray white space or variant characters, which are removed",
        "1 images have no label and are left out",
    )
    rows.assign(grade=["", "0", "1"], fold=["predict", "train", "test"]).to_csv(
        tmp_path / "t.csv", index=False
    )
    source = Table(str(tmp_path / "t.csv"), "person", path="file", label="grade", split="fold")
    assert source.manifest(["none", "mild"]).table["label"].tolist() == [-1, 0, 1]
    rows.assign(grade="").to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=r"t\.csv: no row has a label in the column 'grade'"):
        source.manifest(["none", "mild"])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_empty_split_column_is_as_none_and_a_partly_empty_one_is_refused(tmp_path, rows, suffix):
    file = tmp_path / f"t.{suffix}"

    def load(splits, fractions=None):
        table = rows.assign(fold=splits)
        table.to_csv(file, index=False) if suffix == "csv" else table.to_parquet(file)
        source = Table(str(file), "person", None, "file", "grade", "fold", fractions=fractions)
        return source.manifest(["none", "mild"]).table["split"].tolist()

    assert load([None, " ", ""], SplitFractions(0.0, 0.0)) == ["train"] * 3
    with pytest.raises(ValueError, match="no split column; give fractions"):
        load([None, " ", ""])
    with pytest.raises(ValueError, match=r"t\.\w+: 2 rows have no 'fold', such as \['b.png', 'c"):
        load(["train", " ", None])


def test_white_space_around_paths_splits_and_patients_is_removed(tmp_path, rows):
    """Rows without a path are left out."""
    rows.loc[3] = [" ", "mild", "train", "4", "x"]
    expected = Table(*write_rows(tmp_path / "plain.csv", rows[:3])).manifest(["none", "mild"])
    spaced = rows.assign(
        file=rows["file"] + " ", fold=" " + rows["fold"], person=rows["person"] + " "
    )
    manifest = Table(*write_rows(tmp_path / "spaced.csv", spaced)).manifest(["none", "mild"])
    pd.testing.assert_frame_equal(manifest.table, expected.table)
    assert manifest.notes == (
        "4 paths have stray white space or variant characters, which are removed",
        "4 splits have stray white space or variant characters, which are removed",
        "4 patient IDs have stray white space or variant characters, which are removed",
        "1 images have no path and are left out",
    )


def test_one_patient_whose_id_is_written_in_several_ways_is_one_patient(tmp_path, rows):
    spaced = rows.assign(person=["A 1", "A\u00a01 ", "\uff21\u30001"])  # no-break, full-width
    manifest = Table(*write_rows(tmp_path / "t.csv", spaced)).manifest(["none", "mild"])
    assert manifest.table["patient"].tolist() == ["A 1"] * 3
    assert "2 patient IDs have stray white space or variant characters" in manifest.notes[0]


def test_an_unknown_split_and_a_repeated_path_are_refused_with_a_remedy(tmp_path, rows):
    with pytest.raises(ValueError, match=r"'fold' has the splits \['0', '1'.*--split none"):
        Table(*write_rows(tmp_path / "t.csv", rows.assign(fold=range(3)))).manifest(
            ["none", "mild"]
        )
    repeated = rows.assign(file=["a.png", "b.png", "a.png"])
    message = r"t.csv: 1 rows repeat the path of another row, such as \['a.png'\]; keep one row"
    with pytest.raises(ValueError, match=message):
        Table(*write_rows(tmp_path / "t.csv", repeated)).manifest(["none", "mild"])


def write_rows(file, rows):
    """Writes a table; returns the first arguments of its source."""
    rows.to_csv(file, index=False)
    return str(file), "person", None, "file", "grade", "fold"


def test_hidden_files_and_folders_are_skipped(split_folders):
    write_image(split_folders / "train/yes/.ipynb_checkpoints/p2_a-checkpoint.png")
    write_image(split_folders / "train/yes/._p2_a.png")
    write_image(split_folders / ".trash/x.png")
    assert len(Folders(str(split_folders), None).manifest(["no", "yes"]).table) == 4


def test_files_without_suffix_are_recognized_by_content_and_skipped_ones_are_counted(
    split_folders,
):
    for name, suffix in (("scan", ""), ("1.2.840", ".7"), ("IM_0001", "")):
        path = split_folders / f"train/no/{name}{suffix}"
        shutil.copy(split_folders / "train/no/p1_a.png", path)
    for name in ("README", "a.txt", "b.txt", "c.csv", "DICOMDIR", ".hidden.txt"):
        (split_folders / "train/no" / name).write_text("no image" * 40)
    manifest = Folders(str(split_folders), None).manifest(["no", "yes"])
    ids = manifest.table["id"].tolist()
    assert {f"train/no/{name}" for name in ("scan", "1.2.840.7", "IM_0001")} < set(ids)
    assert len(ids) == 7
    note = "5 files are no images and are skipped: 2 without a suffix, 2 .txt, 1 .csv"
    assert note in manifest.notes


def test_linked_folders_are_read_and_other_image_formats_are_counted(
    split_folders, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "yes"
    (split_folders / "train/yes").rename(elsewhere)
    (split_folders / "train/yes").symlink_to(elsewhere)
    (split_folders / "train/no/above").symlink_to(split_folders)
    for name in ("a.gif", "b.gif", "c.jp2", "d.txt"):
        (split_folders / "train/no" / name).write_text("content")
    manifest = Folders(str(split_folders), None).manifest(["no", "yes"])
    assert len(manifest.table) == 4
    assert manifest.table["id"].str.startswith("train/yes/").any()
    formats = "images in formats that are not supported, and are skipped"
    assert f"3 files are {formats}: 2 .gif, 1 .jp2" in manifest.notes
    assert "1 files are no images and are skipped: 1 .txt" in manifest.notes


def test_a_folder_without_images_says_which_files_it_has(tmp_path):
    (tmp_path / "a.nii").touch()
    with pytest.raises(ValueError, match=r"no image files .*; skipped: 1 .nii"):
        Folders(str(tmp_path), None).manifest(["no"])


@pytest.fixture
def dicom_folders(tmp_path):
    """Two patients with two studies each, of one image each."""
    pytest.importorskip("pydicom")
    for k in range(4):
        path = tmp_path / "set" / ("train", "test")[k // 2] / ("no", "yes")[k % 2] / f"{k}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_dicom(path, PatientID=f"p{k // 2}", StudyInstanceUID=f"1.{k}", ViewPosition="AP")
    return tmp_path / "set"


def test_dicom_files_give_patient_study_and_attributes(dicom_folders):
    manifest = Folders(str(dicom_folders), None).manifest(["no", "yes"])
    table = manifest.table.set_index("id")
    assert table["patient"].to_dict() == {
        "train/no/0.dcm": "p0", "train/yes/1.dcm": "p0",
        "test/no/2.dcm": "p1", "test/yes/3.dcm": "p1",
    }  # fmt: skip
    assert sorted(table["study"]) == ["1.0", "1.1", "1.2", "1.3"]
    assert manifest.attributes == ["view_position"]
    assert manifest.notes == ()
    by_name = Folders(str(dicom_folders), r"(\d)\.dcm").manifest(["no", "yes"]).table
    assert sorted(by_name["patient"]) == ["0", "1", "2", "3"]


def test_images_without_a_dicom_patient_are_noted(dicom_folders):
    write_image(dicom_folders / "train/no/plain.png")
    manifest = Folders(str(dicom_folders), None).manifest(["no", "yes"])
    assert manifest.notes == (
        "1 images have no patient; each is treated as a patient of its own",)  # fmt: skip
    row = manifest.table.set_index("id").loc["train/no/plain.png"]
    assert (row["patient"], row["study"]) == ("train/no/plain.png", "train/no/plain.png")


def test_one_dicom_patient_id_for_all_studies_is_ignored_with_a_note(dicom_folders):
    for k, path in enumerate(sorted(dicom_folders.rglob("*.dcm"))):
        write_dicom(path, PatientID="ANON", StudyInstanceUID=f"1.{k}")
    manifest = Folders(str(dicom_folders), None).manifest(["no", "yes"])
    assert manifest.table["patient"].is_unique
    assert "all DICOM files have the PatientID 'ANON', which is ignored" in manifest.notes


def test_a_table_of_dicom_files_is_completed_from_their_headers(dicom_folders, tmp_path):
    paths = [path.relative_to(tmp_path) for path in sorted(dicom_folders.rglob("*.dcm"))]
    rows = pd.DataFrame({"path": map(str, paths), "label": "no", "split": "train"})
    rows.to_csv(tmp_path / "t.csv", index=False)
    table = Table(str(tmp_path / "t.csv"), None).manifest(["no"]).table
    assert table["patient"].tolist() == ["p1", "p1", "p0", "p0"]
    assert table["study"].nunique() == 4
    assert table["view_position"].tolist() == ["AP"] * 4
    rows.assign(who=list("abcd"), view_position="PA").to_csv(tmp_path / "t.csv", index=False)
    table = Table(str(tmp_path / "t.csv"), "who").manifest(["no"]).table
    assert table["patient"].tolist() == list("abcd")
    assert table["view_position"].tolist() == ["PA"] * 4
    table = Table(str(tmp_path / "t.csv"), None, attributes=[]).manifest(["no"]).table
    assert "view_position" not in table


MURA = [
    "train/XR_ELBOW/patient00011/study1_negative/image1.png",
    "train/XR_ELBOW/patient00011/study1_negative/image2.png",
    "train/XR_HAND/patient00012/study1_positive/image1.png",
    "valid/XR_WRIST/patient11185/study1_positive/image1.png",
]


def test_mura_is_read_from_its_folders(tmp_path):
    for name in MURA:
        write_image(tmp_path / name)
    table = Mura(str(tmp_path), val=0.0).manifest(["negative", "positive"]).table
    assert table["id"].tolist() == MURA
    assert table["label"].tolist() == [0, 0, 1, 1]
    assert table["split"].tolist() == ["train", "train", "train", "test"]
    assert table["patient"].tolist() == ["patient00011"] * 2 + ["patient00012", "patient11185"]
    assert table["body_part"].tolist() == ["elbow", "elbow", "hand", "wrist"]
    assert table["study"].nunique() == 3


def test_mura_is_read_from_its_lists(tmp_path):
    (tmp_path / "list.csv").write_text("\n".join(f"MURA-v1.1/{name}" for name in MURA) + "\n")
    source = Mura(str(tmp_path), files=[str(tmp_path / "list.csv")], valid_as="val")
    table = source.manifest(["negative", "positive"]).table
    assert table["id"].tolist() == MURA
    assert table["split"].tolist() == ["train", "train", "train", "val"]
    (tmp_path / "list.csv").write_text("MURA-v1.1/train/XR_HAND/image1.png\n")
    with pytest.raises(ValueError, match=r"XR_HAND/image1\.png: not a path in MURA's layout"):
        source.manifest(["negative", "positive"])
    with pytest.raises(ValueError, match=r"\['a'\]; MURA has two"):
        source.manifest(["a"])


def test_several_columns_can_identify_the_patient(tmp_path):
    rows = pd.DataFrame({"path": list("abcd"), "label": list("0101")})
    rows["split"] = ["train", "train", "test", "test"]
    rows["kind"], rows["number"] = ["x", "y", "x", ""], ["1", "1", "1", "1"]
    rows.to_csv(tmp_path / "t.csv", index=False)
    source = Table(str(tmp_path / "t.csv"), ["split", "kind", "number"])
    manifest = source.manifest(["0", "1"])
    assert manifest.table["patient"].tolist() == ["train/x/1", "train/y/1", "test/x/1", "d"]
    assert manifest.table["kind"].tolist() == ["x", "y", "x", ""]
    note = "1 images have no patient; each is treated as a patient of its own"
    assert manifest.notes == (note,)


def test_a_file_name_that_is_not_utf8_is_refused_by_name(tmp_path):
    (tmp_path / "a").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xe9.png")).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"the file name 'a/.udce9\.png' is not in UTF-8"):
        scan_folder(tmp_path)
