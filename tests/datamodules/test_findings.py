"""Several findings per image: tables, public layouts, splits, class weights and batches."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from datamodules import ChestXray14, CheXpert, ImageDataModule, Table
from datamodules.manifest import Manifest
from datamodules.samplers import Balance
from datamodules.sources import Findings
from datamodules.splits import SplitFractions

NAMES = ["Effusion", "Mass"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four labeled images with every kind of cell, one without any known label."""
    rows = [("a.png", "1", "0.0"), ("b.png", "0", "-1"), ("c.png", "1.0", ""),
            ("d.png", "", "uncertain"), ("e.png", "0", "1")]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["path", *NAMES])
    splits = ["train", "train", "val", "test", "test"]
    file = tmp_path / "labels.csv"
    frame.assign(patient=frame["path"], split=splits, sex="f").to_csv(file, index=False)
    return file


def labels(file: Path, **policies: Any) -> list[list[int]]:
    source = Table(str(file), "patient", findings=Findings(**policies))
    return source.manifest(NAMES).labels.tolist()


def test_cells_become_labels_by_the_policies(table: Path) -> None:
    assert labels(table) == [[1, 0], [0, -1], [1, -1], [0, 1]]
    assert labels(table, unknown="negative") == [[1, 0], [0, -1], [1, 0], [0, -1], [0, 1]]
    assert labels(table, uncertain="positive") == [[1, 0], [0, 1], [1, -1], [-1, 1], [0, 1]]
    only_mass = {"Mass": {"unknown": "positive", "uncertain": "negative"}}
    assert labels(table, by_finding=only_mass) == [[1, 0], [0, 0], [1, 1], [-1, 0], [0, 1]]


def test_the_manifest_says_what_is_left_out_and_label_columns_are_no_attributes(
    table: Path,
) -> None:
    manifest = Table(str(table), "patient", findings=Findings()).manifest(NAMES)
    assert manifest.is_multi_label
    assert "1 images have no known label and are left out" in manifest.notes
    assert manifest.attributes == ["sex"]
    one = Table(str(table), "patient", attributes=[], findings=Findings()).manifest(NAMES)
    assert one.attributes == []
    assert np.array_equal(one.labels, manifest.labels)


def test_invalid_cells_policies_and_columns_are_errors(table: Path) -> None:
    with pytest.raises(ValueError, match=r"no columns \['Edema'\]"):
        Table(str(table), "patient", findings=Findings()).manifest(["Edema"])
    with pytest.raises(ValueError, match=r"'sex' has the values \['f'\]; allowed are 1, 0, -1"):
        Table(str(table), "patient", findings=Findings()).manifest(["sex"])
    with pytest.raises(ValueError, match=r"findings\.uncertain is 'maybe'"):
        Findings(uncertain="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"by_finding.Mass.unsure: allowed are"):
        Findings(by_finding={"Mass": {"unsure": "negative"}})
    with pytest.raises(ValueError, match=r"by_finding: \['Edema'\] are not in"):
        labels(table, by_finding={"Edema": {"unknown": "negative"}})


def test_the_digest_covers_every_label(table: Path) -> None:
    manifest = Table(str(table), "patient", findings=Findings()).manifest(NAMES)
    changed = manifest.table.assign(**{"finding/Mass": [0, -1, -1, 0]})
    assert Manifest(changed, NAMES).digest() != manifest.digest()
    with pytest.raises(ValueError, match="1, 0, or -1 if unknown"):
        Manifest(changed.replace({"finding/Mass": {-1: 2}}), NAMES)
    with pytest.raises(ValueError, match="no label for"):
        Manifest(changed.assign(**{"finding/Effusion": -1}), NAMES)
    with pytest.raises(ValueError, match=r"has the labels \['finding/Effusion', 'finding/Mass'\]"):
        Manifest(changed, ["Mass"])


def write_image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.full((40, 40), 90, np.uint8))


def test_chestxray14_in_its_own_layout(tmp_path: Path) -> None:
    texts = ["No Finding", "Effusion|Mass", "Mass", "Effusion", "Hernia"] * 4
    frame = pd.DataFrame({
        "Image Index": [f"{k:08d}_000.png" for k in range(20)], "Finding Labels": texts,
        "Follow-up #": 0, "Patient ID": range(20), "Patient Age": 50, "Patient Gender": "F",
        "View Position": "PA", "OriginalImage[Width": 2682,
    })  # fmt: skip
    frame.to_csv(tmp_path / "Data_Entry_2017_v2020.csv", index=False)
    for k, name in enumerate(frame["Image Index"][:18]):  # the last two were not downloaded
        write_image(tmp_path / f"images_{1 + k % 2:03d}" / "images" / name)
    (tmp_path / "test_list.txt").write_text("\n".join(frame["Image Index"][:5]))
    manifest = ChestXray14(str(tmp_path), val=0.3).manifest(NAMES)
    assert manifest.labels[:5].tolist() == [[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]]
    assert len(manifest.table) == 18
    assert (manifest.table["split"] == "test").tolist() == [True] * 5 + [False] * 13
    assert 0 < len(manifest.rows("val")) < 8
    assert manifest.attributes == ["Patient Age", "Patient Gender", "View Position"]
    assert "findings that are not among the classes are ignored: Hernia" in manifest.notes
    assert all(Path(path).is_file() for path in manifest.table["path"])
    with pytest.raises(ValueError, match=r"no row has \['Efusion'\]"):
        ChestXray14(str(tmp_path)).manifest(["Efusion"])


def test_chexpert_in_its_own_layout(tmp_path: Path) -> None:
    def write(name: str, rows: list[tuple[str, str, str, str]]) -> None:
        columns = ["Path", "Sex", "No Finding", "Edema", "Atelectasis"]
        frame = pd.DataFrame([(path, "Male", *cells) for path, *cells in rows], columns=columns)
        frame = frame.assign(**{"Age": 68, "Frontal/Lateral": "Frontal", "AP/PA": "AP"})
        frame.to_csv(tmp_path / name, index=False)

    folder = "CheXpert-v1.0-small/{}/patient{:05d}/study1/view1_frontal.jpg"
    cells = [("", "1.0", "-1.0"), ("1.0", "0.0", ""), ("", "", "1.0"), ("", "-1.0", "0.0")]
    write("train.csv", [(folder.format("train", k), *cells[k % 4]) for k in range(40)])
    write("valid.csv", [(folder.format("valid", 100 + k), "0.0", "1.0", "0.0") for k in range(3)])
    source = CheXpert(str(tmp_path), by_finding={"Atelectasis": {"uncertain": "positive"}}, val=0.2)
    manifest = source.manifest(["Atelectasis", "Edema"])
    by_path = dict(zip(manifest.table["id"], manifest.labels.tolist(), strict=True))
    path = "train/patient{:05d}/study1/view1_frontal.jpg"
    expected = [[1, 1], [-1, 0], [1, -1], [0, -1]]
    assert [by_path[path.format(k)] for k in range(4)] == expected
    table = manifest.table
    assert table["path"].iloc[0] == str(tmp_path / path.format(0))
    assert table["study"].iloc[0] == "patient00000/study1"
    assert table["split"].iloc[-3:].tolist() == ["test"] * 3
    assert set(table["split"].iloc[:40]) == {"train", "val"}


def many(num_patients: int = 300) -> pd.DataFrame:
    """Two images per patient with a frequent and a rare finding, half of the latter unknown."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(num_patients), 2)
    frequent, rare = rng.random((2, num_patients)) < [[0.4], [0.04]]
    mass = np.where(rng.random(2 * num_patients) < 0.5, rare[patient], -1)
    return pd.DataFrame({
        "id": np.arange(2 * num_patients).astype(str), "path": "x", "label": -1, "study": "",
        "patient": [f"p{k}" for k in patient],
        "finding/Effusion": frequent[patient].astype(int), "finding/Mass": mass,
    })  # fmt: skip


def test_stratified_splits_have_the_fractions_in_every_finding() -> None:
    table = many()
    splits = SplitFractions(0.2, 0.2, stratified=True).assign(table)
    assert table.assign(split=splits).groupby("patient")["split"].nunique().max() == 1
    for name in NAMES:
        positive = table[f"finding/{name}"] == 1
        fractions = pd.Series(splits)[positive].value_counts(normalize=True)
        assert abs(fractions["test"] - 0.2) <= 2 / positive.sum()  # images of a patient


def test_class_weights_of_a_finding_are_those_of_two_classes_on_its_known_labels() -> None:
    labels = many()[["finding/Effusion", "finding/Mass"]].to_numpy()
    weights = Balance("inverse").compute_class_weights(labels, NAMES)
    known = labels[labels[:, 1] >= 0, 1]
    assert weights is not None
    assert weights[1] == Balance("inverse").compute_class_weights(known, ["no", "yes"])
    assert np.allclose(np.array(weights[1]) * np.bincount(known), len(known) / 2)
    with pytest.raises(ValueError, match="none, inverse, sqrt or effective"):
        Balance([1.0, 2.0]).compute_class_weights(labels, NAMES)
    with pytest.raises(ValueError, match="sampler 'weighted' needs one label per image"):
        Balance(sampler="weighted").make_sampler(labels, 0, 0, 1)
    with pytest.raises(ValueError, match="max_per_class needs one label per image"):
        Balance(max_per_class=3).limit_rows(np.arange(len(labels)), labels, [])


def test_batches_have_the_labels_of_all_findings(table: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png"):
        write_image(table.parent / name)
    source = Table(str(table), "patient", findings=Findings())
    data = ImageDataModule(source, NAMES, {"size": 32}, num_workers=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"train' has no images of the classes \['Mass'\]"):
        data.setup("fit")
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["label"].tolist() == [[0, 1]]
    assert str(batch["label"].dtype) == "torch.int64"
