"""Labels are ranked by predictions of an experiment, and corrected through a CSV file."""

import shutil

import pandas as pd
import pytest

from consilium.cli.main import main
from consilium.inference import label_report
from datamodules.manifest import Manifest


def test_labels_are_ranked_corrected_and_written_as_a_new_table(experiment, tmp_path, capsys):
    assert main(["audit", "--labels", str(experiment), "-o", str(tmp_path)]) == 0
    assert "wrong labels: about " in capsys.readouterr().out
    page = (tmp_path / "labels.html").read_text()
    assert "of the labels are wrong" in page
    assert "labels were checked" in page
    labels = pd.read_csv(tmp_path / "labels.csv", dtype=str, keep_default_na=False)
    assert set(labels["new_label"]) == {""}
    manifest, has_splits = label_report.load_manifest_of(experiment / "members/small")
    evaluated = manifest.table[manifest.table["split"].isin(["val", "test"])]
    assert set(labels["id"]) == set(evaluated["id"])
    assert has_splits

    changed, dropped = labels["id"][0], labels["id"][1]
    labels.loc[0, "new_label"] = labels["suggestion"][0]
    labels.loc[1, "new_label"] = "exclude"
    labels.to_csv(tmp_path / "corrected.csv", index=False)
    output = tmp_path / "relabeled.csv"
    arguments = ["--labels", str(experiment), "--apply", str(tmp_path / "corrected.csv")]
    assert main(["audit", *arguments, "-o", str(output)]) == 0
    assert "1 labels changed, 1 images left out" in capsys.readouterr().out
    table = pd.read_csv(output, dtype=str, keep_default_na=False).set_index("path")
    paths = dict(zip(manifest.table["id"], manifest.table["path"], strict=True))
    assert paths[dropped] not in table.index
    assert table.loc[paths[changed], "label"] == labels["suggestion"][0]
    assert table["label_before"].ne("").sum() == (labels["suggestion"][0] != labels["label"][0])
    assert table["patient"].tolist() == [
        p for n, p in zip(manifest.table["id"], manifest.table["patient"], strict=True)
        if n != dropped
    ]  # fmt: skip
    assert len(table) == len(manifest.table) - 1


@pytest.fixture
def manifest():
    ids = ["a", "b", "c"]
    table = pd.DataFrame({"id": ids, "path": ids, "label": [0, 1, 1], "split": "train",
                          "patient": ids, "study": ids})  # fmt: skip
    return Manifest(table, ["well", "ill"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,new_label\na,sick\n", r"a: 'sick' is not one of \['well', 'ill', 'exclude'\]"),
        ("id,new_label\nz,ill\n", "'z' is no image of the dataset"),
        ("id,new_label\na,ill\na,well\n", "two corrections of 'a'"),
        ("id,label\na,ill\n", "no column 'new_label'"),
    ],
)
def test_wrong_corrections_are_refused_in_one_line(content, message, manifest, tmp_path):
    file = tmp_path / "corrected.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        label_report.apply_corrections(manifest, file, has_splits=True)


def test_a_correction_that_changes_nothing_is_none(manifest, tmp_path):
    (tmp_path / "c.csv").write_text("id,new_label\na, well\nb,well\nc,\n")
    table = label_report.apply_corrections(manifest, tmp_path / "c.csv", has_splits=False)
    assert table["label"].tolist() == ["well", "well", "ill"]
    assert table["label_before"].tolist() == ["", "ill", ""]
    assert "split" not in table


def test_a_run_without_predictions_is_refused(experiment, tmp_path, capsys):
    shutil.copytree(experiment / "members/small", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/predictions")
    assert main(["audit", "--labels", str(tmp_path / "run")]) == 2
    assert "no predictions of val or test; run consilium test" in capsys.readouterr().err
