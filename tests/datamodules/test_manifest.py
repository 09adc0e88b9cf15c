import numpy as np
import pandas as pd
import pytest

from datamodules.manifest import Manifest, assign_split


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


def test_rows_are_positions_in_the_table():
    manifest = Manifest(table(split=["val", "train", "val"]), ["no", "yes"])
    assert manifest.rows("val").tolist() == [0, 2]
    assert manifest.rows("test").tolist() == []
    assert manifest.attributes == ["box"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ["a", "a", "c"]}, r"1 ids stand more than once.*'a'"),
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


def test_a_missing_column_and_doubled_class_names_are_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['study'\]"):
        Manifest(table().drop(columns="study"), ["no", "yes"])
    with pytest.raises(ValueError, match="each class once"):
        Manifest(table(), ["no", "no"])


def test_an_unknown_label_may_stand_in_predict():
    manifest = Manifest(table(label=[0, 1, -1], split=["train", "val", "predict"]), ["no", "yes"])
    assert manifest.rows("predict").tolist() == [2]


def test_the_digest_knows_contents_but_not_order():
    digest = Manifest(table(), ["no", "yes"]).digest()
    assert digest == Manifest(table().iloc[::-1], ["no", "yes"]).digest()
    assert digest == Manifest(table(path=["y", "y", "y"]), ["no", "yes"]).digest()
    for changes in ({"label": [1, 1, 1]}, {"split": ["test"] * 3}, {"patient": ["p", "q", "q"]}):
        assert digest != Manifest(table(**changes), ["no", "yes"]).digest()


def test_split_of_is_a_known_rule_with_the_asked_shares():
    sides = [assign_split(f"p{n}", 0.2, 0.1) for n in range(4000)]
    assert abs(sides.count("val") / 4000 - 0.2) < 0.02
    assert abs(sides.count("test") / 4000 - 0.1) < 0.015
    assert assign_split("p0", 0.2, 0.1) == sides[0]
    assert assign_split("p0", 0.0, 1.0) == "test"
    assert sides != [assign_split(f"p{n}", 0.2, 0.1, seed=1) for n in range(4000)]
    with pytest.raises(ValueError, match=r"val is 0\.9 and test is 0\.2"):
        assign_split("p", 0.9, 0.2)


def test_positions_of_all_splits_make_up_the_table():
    manifest = Manifest(table(), ["no", "yes"])
    rows = np.concatenate([manifest.rows(split) for split in ("train", "val", "test", "predict")])
    assert sorted(rows.tolist()) == [0, 1, 2]
