import hashlib

import numpy as np
import pandas as pd
import pytest

from datamodules.images import read_image
from datamodules.phantoms.generate import KINDS, PhantomSpec, generate_images, write_dataset
from datamodules.phantoms.organs import FINDINGS, GRADES, chest_findings
from datamodules.phantoms.primitives import Rng
from datamodules.sources import Phantoms

PIXELS = {
    "fracture": "bcea3d507782",
    "retina": "aa41a58cf5fa",
    "limbs": "51272623ba34",
    "chest": "57c871a593ea",
    "chest_findings": "93a327a73021",
    "pneumonia": "93b7e6a5578b",
    "cardiomegaly": "8ebb796b5d5c",
    "osteoporosis": "8cd072353ee8",
    "osteoarthritis": "0395ad4e9535",
    "limb_abnormality": "4df9beb4d902",
}
SMALL = PhantomSpec("fracture", num_patients=6, images_per_patient=2, image_size=64, seed=5)


@pytest.mark.parametrize("kind", sorted(PIXELS))
def test_pixels_are_the_same_on_every_machine(kind):
    images = generate_images(
        PhantomSpec(kind, num_patients=6, images_per_patient=2, image_size=64, seed=5)
    )
    digest = hashlib.sha256(b"".join(pixels.tobytes() for _, pixels in images))
    assert digest.hexdigest()[:12] == PIXELS[kind]


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"chest_findings"}))
def test_every_class_is_generated_and_only_lesions_have_a_box(kind):
    images = list(generate_images(PhantomSpec(kind, 80, 2, 48, 0)))
    assert {row["label"] for row, _ in images} == set(KINDS[kind].classes)
    for row, pixels in images:
        assert (row["box"] == "") == (row["label"] == KINDS[kind].classes[0])
        if row["box"]:
            x0, y0, x1, y1 = map(int, row["box"].split(","))
            assert 0 <= x0 < x1 <= pixels.shape[1]
            assert 0 <= y0 < y1 <= pixels.shape[0]


def test_findings_are_independent_and_each_has_its_box():
    rows = [row for row, _ in generate_images(PhantomSpec("chest_findings", 400, 1, 32, 0))]
    present = np.array([[name in row["label"].split("|") for name in FINDINGS] for row in rows])
    boxes = np.array([[row[f"box/{name}"] != "" for name in FINDINGS] for row in rows])
    assert np.array_equal(present, boxes)
    assert [row["label"] == "No Finding" for row in rows] == [not any(row) for row in present]
    assert np.abs(present.mean(axis=0) - (0.3, 0.25, 0.25, 0.2, 0.2)).max() < 0.08
    assert np.abs(np.corrcoef(present.T) - np.eye(5)).max() < 0.15
    assert (present.sum(axis=1) > 1).mean() > 0.25


def test_the_pixels_of_a_box_change_with_its_finding():
    for k, name in enumerate(FINDINGS):
        image, without = (chest_findings(b, Rng("p"), Rng("i"), 64) for b in (1 << k, 0))
        x0, y0, x1, y1 = map(int, image.attributes[f"box/{name}"].split(","))
        change = np.abs(image.pixels.astype(int) - without.pixels)
        assert change[y0:y1, x0:x1].max() == change.max() > 30


def test_retina_grades_follow_from_the_number_of_lesions_and_are_imbalanced():
    rows = [row for row, _ in generate_images(PhantomSpec("retina", 300, 2, 32, 0))]
    counts = {grade: [int(r["lesions"]) for r in rows if r["label"] == grade] for grade in GRADES}
    assert max(counts["none"]) == 0
    assert max(counts["mild"]) < min(counts["moderate"])
    assert max(counts["moderate"]) < min(counts["severe"])
    assert len(counts["none"]) > 2 * len(counts["moderate"]) > 2 * len(counts["severe"])


def test_limbs_have_seven_body_parts_and_studies_of_several_images():
    rows = pd.DataFrame([row for row, _ in generate_images(PhantomSpec("limbs", 150, 3, 32, 0))])
    assert rows["body_part"].nunique() == 7
    assert rows.groupby("study")["label"].nunique().max() == 1
    assert rows.groupby("study").size().max() == 3
    assert rows.groupby("patient")["body_part"].nunique().max() == 1
    assert rows.groupby("patient")["study"].nunique().max() == 2


def test_a_dataset_is_written_once_and_completely(tmp_path):
    folder = write_dataset(SMALL, tmp_path)
    table = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    images = list(generate_images(SMALL))
    assert len(table) == len(images)
    assert np.array_equal(read_image(folder / table["path"][0]), images[0][1])
    before = (folder / "manifest.csv").stat().st_mtime_ns
    assert write_dataset(SMALL, tmp_path) == folder
    assert (folder / "manifest.csv").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_colleagues_may_read_a_dataset_if_the_umask_allows_it(tmp_path):
    folder = write_dataset(SMALL, tmp_path)
    (tmp_path / "reference").mkdir()
    assert folder.stat().st_mode == (tmp_path / "reference").stat().st_mode


def test_no_single_statistic_of_an_image_predicts_the_class():
    rows = [
        (row["label"], pixels)
        for row, pixels in generate_images(PhantomSpec("fracture", 300, 2, 64, 1))
    ]
    labels = np.array([label != "none" for label, _ in rows])
    for statistic in (np.mean, np.std, np.min, np.max, np.median):
        value = np.array([statistic(pixels) for _, pixels in rows])
        higher = (value[labels][:, None] > value[~labels]).mean()
        ties = (value[labels][:, None] == value[~labels]).mean()
        assert 0.35 < higher + ties / 2 < 0.65


def test_the_source_splits_by_patient(tmp_path):
    source = Phantoms(num_patients=60, images_per_patient=2, root=str(tmp_path), val=0.3, test=0.2)
    source.prepare()
    manifest = source.manifest(["none", "simple", "comminuted"])
    assert manifest.attributes == ["box"]
    assert manifest.table.groupby("patient")["split"].nunique().max() == 1
    assert set(manifest.table["split"]) == {"train", "val", "test"}
    with pytest.raises(
        ValueError, match=r"are \['comminuted', 'none', 'simple'\], not \['a', 'b'\]"
    ):
        source.manifest(["a", "b"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "teeth"}, "kind is 'teeth'"),
        ({"images_per_patient": 0}, "images_per_patient is 0"),
        ({"image_size": 8}, "image_size is 8"),
        ({"unknown": 0.3}, r"unknown is 0.3; it is from 0 to 1, and for chest_findings"),
        ({"kind": "chest_findings", "unknown": 1.5}, "unknown is 1.5"),
    ],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Phantoms(**changes)


def test_a_share_of_the_training_labels_of_findings_is_unknown(tmp_path):
    options = {"num_patients": 300, "images_per_patient": 1, "image_size": 32}
    full, some, negative = (
        Phantoms("chest_findings", root=str(tmp_path), **options, **unknown).manifest(FINDINGS)
        for unknown in ({}, {"unknown": 0.3}, {"unknown": 0.3, "unknown_among": "negative"})
    )
    assert (full.labels >= 0).all()
    assert full.attributes == ["box", *(f"box/{name}" for name in FINDINGS)]
    truth = full.table.set_index("id")
    for manifest in (some, negative):
        of_row = truth.loc[manifest.table["id"], [f"finding/{n}" for n in FINDINGS]].to_numpy()
        is_unknown = manifest.labels == -1
        assert (manifest.labels == of_row)[~is_unknown].all()
        assert not is_unknown[manifest.table["split"] != "train"].any()
        assert manifest.digest() != full.digest()
    is_train = (some.table["split"] == "train").to_numpy()
    assert (some.labels[is_train] == -1).mean() == pytest.approx(0.3, abs=0.04)
    assert (negative.labels == 1).sum() == (full.labels == 1).sum()
