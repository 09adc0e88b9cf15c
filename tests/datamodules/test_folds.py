import numpy as np
import pandas as pd
import pytest

from datamodules.manifest import Manifest
from datamodules.splits import Fold, fold_of_patient


@pytest.fixture
def manifest() -> Manifest:
    rng = np.random.default_rng(0)
    patients = [f"p{n}" for n in rng.integers(0, 200, 900)]
    names = [f"i{n}" for n in range(900)]
    table = pd.DataFrame({"id": names, "path": names, "label": rng.integers(0, 2, 900),
                          "patient": patients, "study": patients})  # fmt: skip
    return Manifest(table.assign(split=["test"] * 899 + ["predict"]), ["no", "yes"])


@pytest.mark.parametrize("of", [3, 5])
def test_every_image_is_tested_once_and_no_patient_stands_on_two_sides(manifest, of):
    tested = np.zeros(len(manifest.table), int)
    for part in range(of):
        found = Fold(part, of).applied(manifest).table
        tested += (found["split"] == "test").to_numpy()
        known = found[found["split"] != "predict"]
        assert known.groupby("patient")["split"].nunique().max() == 1
        assert set(known["split"]) == {"train", "val", "test"}
    assert tested.tolist() == [1] * 899 + [0]


def test_parts_are_even_and_stay_when_others_come_and_go(manifest):
    parts = pd.Series([fold_of_patient(f"p{n}", 5) for n in range(5000)])
    assert parts.value_counts(normalize=True).between(0.18, 0.22).all()
    fewer = Manifest(manifest.table[::3], manifest.class_names)
    whole, less = (Fold(1, 5).applied(m).table.set_index("id")["split"] for m in (manifest, fewer))
    assert whole[less.index].equals(less)
    assert fold_of_patient("p1", 5, seed=1) != fold_of_patient("p1", 5) or fold_of_patient(
        "p2", 5, 1
    ) != fold_of_patient("p2", 5)


def test_no_fold_changes_nothing(manifest):
    assert Fold().applied(manifest) is manifest


@pytest.mark.parametrize(
    ("settings", "words"),
    [((0, 2), "fold.of is 2"), ((5, 5), "fold.part is 5; allowed are 0 to 4"), ((1, 0), "part")],
)
def test_a_wrong_fold_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Fold(*settings)
