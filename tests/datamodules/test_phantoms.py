import hashlib

import numpy as np
import pandas as pd
import pytest

from datamodules.images import read
from datamodules.phantoms import Recipe, films, written
from datamodules.sources import Phantoms

SMALL = Recipe("fracture", patients=6, films=2, size=64, seed=5)


def test_the_pixels_are_those_of_every_machine():
    digest = hashlib.sha256(b"".join(pixels.tobytes() for _, pixels in films(SMALL)))
    assert digest.hexdigest()[:16] == "5dc46064401ac2b9"


def test_they_are_written_once_and_whole(tmp_path):
    folder = written(SMALL, tmp_path)
    table = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    drawn = list(films(SMALL))
    assert len(table) == len(drawn)
    assert np.array_equal(read(folder / table["path"][0]), drawn[0][1])
    before = (folder / "manifest.csv").stat().st_mtime_ns
    assert written(SMALL, tmp_path) == folder
    assert (folder / "manifest.csv").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_lesion_has_its_box_and_a_whole_bone_has_none():
    for row, pixels in films(Recipe("fracture", 20, 2, 64, 0)):
        assert (row["box"] == "") == (row["label"] == "none")
        if row["box"]:
            x0, y0, x1, y1 = map(int, row["box"].split(","))
            assert 0 <= x0 < x1 <= pixels.shape[1]
            assert 0 <= y0 < y1 <= pixels.shape[0]


def test_no_single_number_of_a_picture_gives_the_class_away():
    rows = [(row["label"], pixels) for row, pixels in films(Recipe("fracture", 300, 2, 64, 1))]
    labels = np.array([label != "none" for label, _ in rows])
    for number in (np.mean, np.std, np.min, np.max, np.median):
        value = np.array([number(pixels) for _, pixels in rows])
        higher = (value[labels][:, None] > value[~labels]).mean()
        ties = (value[labels][:, None] == value[~labels]).mean()
        assert 0.35 < higher + ties / 2 < 0.65


def test_the_source_splits_by_patient(tmp_path):
    source = Phantoms(patients=60, films=2, root=str(tmp_path), val=0.3, test=0.2)
    source.prepare()
    manifest = source.manifest(["none", "simple", "comminuted"])
    assert manifest.attributes == ["box"]
    assert manifest.table.groupby("patient")["split"].nunique().max() == 1
    assert set(manifest.table["split"]) == {"train", "val", "test"}
    with pytest.raises(ValueError, match=r"say \['comminuted', 'none', 'simple'\].*\['a', 'b'\]"):
        source.manifest(["a", "b"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"kind": "teeth"}, "kind is 'teeth'"), ({"films": 0}, "films is 0"), ({"size": 8}, "size")],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Phantoms(**changes)
