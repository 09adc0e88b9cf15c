import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from datamodules.manifest import Manifest
from datamodules.splits import Fold, Groups, SplitFractions, assign_split, fold_of_patient


@pytest.fixture
def table():
    """600 patients with 1 to 6 images each; 24 patients have the rare class 2."""
    rng = np.random.default_rng(0)
    num_images = rng.integers(1, 7, 600)
    label = np.where(np.arange(600) < 24, 2, rng.random(600) < 0.3).astype(int)
    rows = [(f"p{k}", label[k]) for k in range(600) for _ in range(num_images[k])]
    return pd.DataFrame(rows, columns=["patient", "label"])


def assign(table, fractions, file_splits=None):
    return np.array(fractions.assign(table.assign(id=table.index.astype(str)), file_splits))


def class_fractions(table, splits):
    return pd.crosstab(table["label"], splits, normalize="index")


def test_stratified_splits_have_the_fractions_in_every_class_and_whole_patients(table):
    splits = assign(table, SplitFractions(0.2, 0.1, stratified=True))
    assert table.assign(split=splits).groupby("patient")["split"].nunique().max() == 1
    fractions = class_fractions(table, splits)
    tolerance = 6 / table["label"].value_counts().sort_index()  # images of the largest patient
    assert ((fractions["val"] - 0.2).abs() <= tolerance).all()
    assert ((fractions["test"] - 0.1).abs() <= tolerance).all()


def test_without_stratification_the_fraction_of_a_rare_class_can_be_far_off(table):
    errors = []
    for seed in range(20):
        splits = assign(table, SplitFractions(0.2, 0.1, seed))
        errors.append(abs(class_fractions(table, splits)["val"][2] - 0.2))
    assert max(errors) > 0.1


def test_another_seed_gives_another_stratified_split(table):
    first, second = (assign(table, SplitFractions(seed=k, stratified=True)) for k in (0, 1))
    assert not np.array_equal(first, second)


@pytest.fixture
def copies(table, tmp_path):
    """A chain of copies: p0 and p1 share one image, p1 and p2 another one; p3 has two copies."""
    ids = {name: rows.index.astype(str).tolist() for name, rows in table.groupby("patient")}
    groups = [(ids["p0"][0], "a"), (ids["p1"][0], "a"), (ids["p1"][-1], "b"), (ids["p2"][0], "b")]
    file = tmp_path / "copies.csv"
    pd.DataFrame(groups, columns=["id", "group"]).to_csv(file, index=False)
    return str(file)


@pytest.mark.parametrize("stratified", [False, True])
def test_patients_with_copies_of_one_image_get_the_same_split(table, copies, stratified):
    shared = table["patient"].isin(["p0", "p1", "p2"]).to_numpy()
    separate = 0
    for seed in range(8):
        fractions = SplitFractions(0.3, 0.3, seed, stratified, copies)
        splits = assign(table, fractions)
        assert len(set(splits[shared])) == 1
        assert table.assign(split=splits).groupby("patient")["split"].nunique().max() == 1
        separate += len(set(assign(table, SplitFractions(0.3, 0.3, seed, stratified))[shared])) > 1
    assert separate >= 4


def test_patients_with_copies_of_one_image_get_the_same_fold(table, copies):
    ids = table.index.astype(str)
    columns = table.assign(id=ids, path=ids, study=table["patient"], split="train")
    manifest = Manifest(columns, ["a", "b", "c"])
    for index in range(5):
        folds = Fold(index, 5, copies=copies).apply(manifest).table
        assert folds[folds["patient"].isin(["p0", "p1", "p2"])]["split"].nunique() == 1
    folds = Fold(0, 5, seed=1).apply(manifest).table
    assert folds[folds["patient"].isin(["p0", "p1", "p2"])]["split"].nunique() > 1


def test_a_list_of_copies_that_does_not_fit_is_refused(table, tmp_path):
    (tmp_path / "copies.csv").write_text("id,group\n0,a\nnobody,a\n")
    with pytest.raises(ValueError, match=r"copies.csv has 1 ids that are not in the data: \['nob"):
        assign(table, SplitFractions(copies=str(tmp_path / "copies.csv")))
    (tmp_path / "copies.csv").write_text("id\n0\n")
    with pytest.raises(ValueError, match=r"copies.csv has no columns \['group'\]"):
        assign(table, SplitFractions(copies=str(tmp_path / "copies.csv")))


@pytest.mark.parametrize("stratified", [False, True])
def test_splits_in_the_files_stay_and_val_is_taken_from_train(table, stratified):
    file_splits = ["test" if k % 5 == 0 else "train" for k in range(len(table))]
    splits = assign(table, SplitFractions(0.25, 0.5, stratified=stratified), file_splits)
    is_test = np.array(file_splits) == "test"
    assert (splits[is_test] == "test").all()
    assert set(splits[~is_test]) == {"train", "val"}
    assert (splits[~is_test] == "val").mean() == pytest.approx(0.25, abs=0.06)


def test_fractions_are_refused_if_the_files_have_all_splits(table):
    file_splits = ["train", "val", "test"] * (len(table) // 3) + ["train"] * (len(table) % 3)
    message = r"already have the splits \['test', 'train', 'val'\]"
    with pytest.raises(ValueError, match=message):
        assign(table, SplitFractions(), file_splits)


def test_assigned_splits_have_the_requested_fractions_and_depend_on_the_seed():
    splits = [assign_split(f"p{n}", 0.2, 0.1) for n in range(4000)]
    assert abs(splits.count("val") / 4000 - 0.2) < 0.02
    assert abs(splits.count("test") / 4000 - 0.1) < 0.015
    assert assign_split("p0", 0.2, 0.1) == splits[0]
    assert assign_split("p0", 0.0, 1.0) == "test"
    assert splits != [assign_split(f"p{n}", 0.2, 0.1, seed=1) for n in range(4000)]
    with pytest.raises(ValueError, match=r"val is 0\.9 and test is 0\.2"):
        assign_split("p", 0.9, 0.2)


@pytest.fixture
def manifest() -> Manifest:
    rng = np.random.default_rng(0)
    patients = [f"p{n}" for n in rng.integers(0, 200, 900)]
    names = [f"i{n}" for n in range(900)]
    table = pd.DataFrame({"id": names, "path": names, "label": rng.integers(0, 2, 900),
                          "patient": patients, "study": patients})  # fmt: skip
    return Manifest(table.assign(split=["test"] * 899 + ["predict"]), ["no", "yes"])


@pytest.mark.parametrize("num_folds", [3, 5])
def test_every_image_is_in_test_once_and_no_patient_is_in_two_splits(manifest, num_folds):
    times_tested = np.zeros(len(manifest.table), int)
    for index in range(num_folds):
        table = Fold(index, num_folds).apply(manifest).table
        times_tested += (table["split"] == "test").to_numpy()
        labeled = table[table["split"] != "predict"]
        assert labeled.groupby("patient")["split"].nunique().max() == 1
        assert set(labeled["split"]) == {"train", "val", "test"}
    assert times_tested.tolist() == [1] * 899 + [0]


def test_folds_have_equal_size_and_stay_when_patients_are_removed(manifest):
    folds = pd.Series([fold_of_patient(f"p{n}", 5) for n in range(5000)])
    assert folds.value_counts(normalize=True).between(0.18, 0.22).all()
    subset = Manifest(manifest.table[::3], manifest.class_names)
    all_splits, subset_splits = (
        Fold(1, 5).apply(m).table.set_index("id")["split"] for m in (manifest, subset)
    )
    assert all_splits[subset_splits.index].equals(subset_splits)
    patients = ("p1", "p2")
    assert any(fold_of_patient(p, 5, seed=1) != fold_of_patient(p, 5) for p in patients)


def test_without_folds_the_manifest_stays(manifest):
    assert Fold().apply(manifest) is manifest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 2), "fold.num_folds is 2"),
        ((5, 5), "fold.index is 5; allowed are 0 to 4"),
        ((1, 0), "fold.index is 1"),
    ],
)
def test_a_wrong_fold_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Fold(*settings)


def test_groups_are_the_connected_components_named_by_their_first_row():
    pairs = np.random.default_rng(0).integers(0, 300, (280, 2))
    groups = Groups(300)
    for first, second in pairs:
        groups.connect(int(first), int(second))
    graph = csr_matrix((np.ones(len(pairs)), pairs.T), (300, 300))
    components = connected_components(graph, directed=False)[1]
    first_rows = np.unique(components, return_index=True)[1]
    assert groups.labels().tolist() == first_rows[components].tolist()
    assert groups.sizes().tolist() == np.bincount(components)[components].tolist()
