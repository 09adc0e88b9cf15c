import numpy as np
import pandas as pd
import pytest

from datamodules.manifest import Manifest, read_table


def table(**changes):
    columns = {
        "id": ["a", "b", "c"],
        "path": ["x/a", "x/b", "x/c"],
        "label": [0, 1, 1],
        "split": ["train", "val", "test"],
        "patient": ["p", "q", "r"],
        "study": ["s", "t", "u"],
        "box": ["", "1,2,3,4", ""],
    }
    return pd.DataFrame(columns | changes)


def test_rows_are_row_numbers_of_the_table():
    manifest = Manifest(table(split=["val", "train", "val"]), ["no", "yes"])
    assert manifest.rows("val").tolist() == [0, 2]
    assert manifest.rows("test").tolist() == []
    assert manifest.attributes == ["box"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ["a", "a", "c"]}, r"1 ids occur more than once.*'a'"),
        ({"label": [0, 1, 2]}, r"labels \[2\]; allowed are 0 to 1"),
        ({"label": [0, 1, -2]}, r"labels \[-2\]"),
        ({"label": [0, 1, -1]}, r"no label for \['c'\]"),
        ({"split": ["train", "val", "dev"]}, r"splits \['dev'\]; allowed are"),
        ({"patient": ["p", None, "r"]}, r"empty cells"),
    ],
)
def test_a_wrong_table_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Manifest(table(**changes), ["no", "yes"])


def test_a_missing_column_and_repeated_class_names_are_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['study'\]"):
        Manifest(table().drop(columns="study"), ["no", "yes"])
    with pytest.raises(ValueError, match="each class once"):
        Manifest(table(), ["no", "no"])


def test_labels_may_be_unknown_in_the_predict_split():
    manifest = Manifest(table(label=[0, 1, -1], split=["train", "val", "predict"]), ["no", "yes"])
    assert manifest.rows("predict").tolist() == [2]


def test_the_digest_depends_on_the_content_but_not_on_the_order():
    digest = Manifest(table(), ["no", "yes"]).digest()
    assert digest == Manifest(table().iloc[::-1], ["no", "yes"]).digest()
    assert digest == Manifest(table(path=["y", "y", "y"]), ["no", "yes"]).digest()
    for changes in ({"label": [1, 1, 1]}, {"split": ["test"] * 3}, {"patient": ["p", "q", "q"]}):
        assert digest != Manifest(table(**changes), ["no", "yes"]).digest()


def test_the_rows_of_all_splits_are_the_whole_table():
    manifest = Manifest(table(), ["no", "yes"])
    rows = np.concatenate([manifest.rows(split) for split in ("train", "val", "test", "predict")])
    assert sorted(rows.tolist()) == [0, 1, 2]


FILE = pd.DataFrame({"path": ["a,1.png", "b;2.png"], "label": ["NA", ""], "the, note": ["x", "y"]})


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_delimiter_is_detected_from_the_header(delimiter, encoding, tmp_path):
    FILE.to_csv(tmp_path / "t.csv", index=False, sep=delimiter, encoding=encoding)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv"), FILE)


def test_a_table_with_one_column_needs_no_delimiter(tmp_path):
    (tmp_path / "t.csv").write_text("path\na.png\n")
    assert read_table(tmp_path / "t.csv")["path"].tolist() == ["a.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "path,label\na.png,gr\u00fcn\n".encode("latin-1"),
            "not a table in UTF-8: 'utf-8'",
        ),
        ("t.csv", b"", "not a table: No columns"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\0\0", "not a table in UTF-8: 'utf-8'"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", "not a table: Error tokenizing data"),
        ("t.parquet", b"path,label\n", "not a table: "),
    ],
)
def test_a_file_that_is_not_a_table_is_an_error_with_its_name(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        read_table(tmp_path / name)
