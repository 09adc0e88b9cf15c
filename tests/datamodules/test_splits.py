import numpy as np
import pandas as pd
import pytest

from datamodules.sources import Table
from datamodules.splits import SplitFractions


@pytest.fixture
def crowd():
    """600 patients of 1 to 6 films; 24 of them have the rare class 2, one has many films."""
    rng = np.random.default_rng(0)
    films = rng.integers(1, 7, 600)
    label = np.where(np.arange(600) < 24, 2, rng.random(600) < 0.3).astype(int)
    rows = [(f"p{k}", label[k]) for k in range(600) for _ in range(films[k])]
    return pd.DataFrame(rows, columns=["patient", "label"])


def shares(crowd, sides):
    return pd.crosstab(crowd["label"], np.array(sides), normalize="index")


def test_stratified_sides_hold_their_share_of_every_class_and_whole_patients(crowd):
    sides = SplitFractions(0.2, 0.1, stratified=True).split(
        crowd["patient"], crowd["label"].tolist()
    )
    assert crowd.assign(side=sides).groupby("patient")["side"].nunique().max() == 1
    found = shares(crowd, sides)
    most = 6 / crowd["label"].value_counts().sort_index()  # no patient has more films
    assert ((found["val"] - 0.2).abs() <= most).all()
    assert ((found["test"] - 0.1).abs() <= most).all()


def test_without_stratifying_the_rare_class_may_miss_its_share_by_far(crowd):
    off = []
    for seed in range(20):
        plain = SplitFractions(0.2, 0.1, seed).split(crowd["patient"], crowd["label"].tolist())
        off.append(abs(shares(crowd, plain)["val"][2] - 0.2))
    assert max(off) > 0.1


def test_another_seed_is_another_stratified_split(crowd):
    one, other = (
        SplitFractions(seed=seed, stratified=True).split(crowd["patient"], crowd["label"].tolist())
        for seed in (0, 1)
    )
    assert one != other


@pytest.mark.parametrize("stratified", [False, True])
def test_what_the_files_say_stays_and_val_is_cut_from_train(crowd, stratified):
    said = ["test" if k % 5 == 0 else "train" for k in range(len(crowd))]
    fractions = SplitFractions(0.25, 0.5, stratified=stratified)
    sides = np.array(fractions.split(crowd["patient"], crowd["label"].tolist(), said))
    tested = np.array(said) == "test"
    assert (sides[tested] == "test").all()
    assert set(sides[~tested]) == {"train", "val"}
    assert (sides[~tested] == "val").mean() == pytest.approx(0.25, abs=0.06)


def test_a_cut_of_nothing_is_refused(crowd):
    said = ["train", "val", "test"] * (len(crowd) // 3) + ["train"] * (len(crowd) % 3)
    with pytest.raises(ValueError, match=r"the files name \['test', 'train', 'val'\]; nothing"):
        SplitFractions().split(crowd["patient"], crowd["label"].tolist(), said)


def test_several_columns_together_can_be_the_patient(tmp_path):
    rows = pd.DataFrame({"path": list("abcd"), "label": list("0101")})
    rows["split"] = ["train", "train", "test", "test"]
    rows["kind"], rows["number"] = ["x", "y", "x", ""], ["1", "1", "1", "1"]
    rows.to_csv(tmp_path / "t.csv", index=False)
    made = Table(str(tmp_path / "t.csv"), ["split", "kind", "number"]).manifest(["0", "1"])
    assert made.table["patient"].tolist() == ["train/x/1", "train/y/1", "test/x/1", "d"]
    assert made.table["kind"].tolist() == ["x", "y", "x", ""]
    assert made.notes == ("1 pictures name no patient; each is taken as a patient of its own",)
