from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.predictions import PredictionTable, aggregate, align, refuse_test, require_ids
from tests.evaluation.tables import make_table


def test_table_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    table = replace(make_table(), pair_logits=np.random.default_rng(1).normal(size=(60, 3)))
    table.write(tmp_path / "a.parquet")
    restored = PredictionTable.read(tmp_path / "a.parquet")
    assert np.array_equal(restored.logits, table.logits)
    assert np.array_equal(restored.pair_logits, table.pair_logits)
    assert restored.rows.equals(table.rows)
    assert (restored.class_names, restored.meta) == (table.class_names, table.meta)
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    table = make_table()
    e = np.exp(table.logits)
    np.testing.assert_allclose(table.probabilities, e / e.sum(1, keepdims=True), rtol=1e-12)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    make_table().write(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        replace(make_table(), meta={"x": object()}).write(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_truncated_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    make_table().write(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file"):
        PredictionTable.read(path)


def test_other_parquet_file_is_an_error(tmp_path: Path) -> None:
    make_table().rows.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: prediction table of version None"):
        PredictionTable.read(tmp_path / "b.parquet")


def test_row_with_nan_logits_is_an_error() -> None:
    logits = make_table().logits
    logits[7, 1] = np.nan
    with pytest.raises(ValueError, match="logits of id 'image7' are not finite"):
        replace(make_table(), logits=logits)


def test_duplicate_id_is_an_error() -> None:
    rows = make_table().rows
    rows.loc[4, "id"] = "image3"
    with pytest.raises(ValueError, match="id 'image3' occurs twice"):
        replace(make_table(), rows=rows)


def test_missing_and_unexpected_ids_are_errors() -> None:
    table = make_table()
    ids = list(table.rows["id"])
    require_ids(table, reversed(ids))
    with pytest.raises(ValueError, match=r"does not have id 'extra' \(1 such"):
        require_ids(table, [*ids, "extra"])
    with pytest.raises(ValueError, match="has unexpected id 'image0'"):
        require_ids(table, ids[1:])


@pytest.mark.parametrize("label", [-2, 3])
def test_label_out_of_range_is_an_error(label: int) -> None:
    rows = make_table().rows
    rows.loc[5, "label"] = label
    with pytest.raises(ValueError, match=f"label {label} of id 'image5'"):
        replace(make_table(), rows=rows)


def test_missing_column_and_wrong_shape_are_errors() -> None:
    with pytest.raises(ValueError, match="has no column 'patient'"):
        replace(make_table(), rows=make_table().rows.drop(columns="patient"))
    with pytest.raises(ValueError, match=r"logits have shape \(60, 2\)"):
        replace(make_table(), logits=make_table().logits[:, :2])


def test_align_restores_the_order_of_rows_and_classes() -> None:
    table = replace(make_table(), pair_logits=np.random.default_rng(1).normal(size=(60, 3)))
    order = [2, 0, 1]
    rng = np.random.default_rng(0)
    permuted = renumber_classes(table, order).take(rng.permutation(60))
    restored = align([table, permuted])[1]
    assert np.array_equal(restored.logits, table.logits)
    assert np.array_equal(restored.pair_logits, table.pair_logits)
    assert np.array_equal(restored.labels, table.labels)


def renumber_classes(table: PredictionTable, order: list[int]) -> PredictionTable:
    """The same table with its classes renumbered by hand; pairs are (0,1), (0,2), (1,2)."""
    names = [table.class_names[i] for i in order]
    labels = [names.index(table.class_names[y]) for y in table.labels]
    square = np.zeros((len(table), 3, 3))
    for at, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        square[:, i, j], square[:, j, i] = table.pair_logits[:, at], -table.pair_logits[:, at]
    square = square[:, order][:, :, order]
    pairs = np.stack([square[:, 0, 1], square[:, 0, 2], square[:, 1, 2]], axis=1)
    rows = table.rows.assign(label=labels)
    return PredictionTable(rows, table.logits[:, order], names, table.meta, pairs)


def test_align_does_not_change_unknown_labels() -> None:
    table = make_table()
    unknown = replace(table, rows=table.rows.assign(label=-1))
    names = ["simple", "none", "comminuted"]
    other = replace(unknown, class_names=names)
    assert (align([unknown, other])[1].labels == -1).all()


def test_aligning_tables_of_other_samples_is_an_error() -> None:
    table = make_table()
    with pytest.raises(ValueError, match=r"table 2 has classes \['a', 'b', 'c'\]"):
        align([table, replace(table, class_names=["a", "b", "c"])])
    with pytest.raises(ValueError, match="manifest digest d2, the first d1"):
        align([table, replace(table, meta={"manifest_digest": "d2"})])
    with pytest.raises(ValueError, match="does not have id 'image0'"):
        align([table, table.take(np.arange(1, 60))])
    with pytest.raises(ValueError, match="another label than the first for id 'image0'"):
        align([table, replace(table, rows=table.rows.assign(label=1))])
    with pytest.raises(ValueError, match="another split"):
        align([table, replace(table, rows=table.rows.assign(split="val"))])


def test_fitting_on_test_is_an_error() -> None:
    refuse_test(make_table(split="val"), "a temperature")
    with pytest.raises(ValueError, match="a temperature may not be fitted on split 'test'"):
        refuse_test(make_table(), "a temperature")


def test_row_without_patient_counts_as_a_patient() -> None:
    table = replace(make_table(), rows=make_table().rows.assign(patient=""))
    assert len(set(table.patients)) == 60


@pytest.mark.parametrize("missing", [None, np.nan, ""])
def test_rows_without_patients_are_aligned(missing: object) -> None:
    one, other = (
        replace(
            make_table(), rows=make_table().rows.astype({"patient": object}).assign(patient=patient)
        )
        for patient in (missing, None)
    )
    assert (align([one, other])[1].patients == one.patients).all()
    with pytest.raises(ValueError, match="another patient than the first for id 'image0'"):
        align([one, make_table()])


def two_studies() -> PredictionTable:
    """Two studies of two images each, two classes; labels agree within a study."""
    table = make_table(4, 2, images_per_patient=2)
    p = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    return replace(table, logits=np.log(p), rows=table.rows.assign(label=[0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", [0.3, 0.4]),
        ("max", [0.4, 0.7]),
        ("noisy_or", [1 - 0.8 * 0.6, 1 - 0.3 * 0.9]),
    ],
)
def test_images_of_a_study_are_pooled_as_computed_by_hand(rule: str, expected: list[float]) -> None:
    studies = aggregate(two_studies(), "study", rule)
    np.testing.assert_allclose(studies.probabilities[:, 1], expected, atol=1e-6)
    assert list(studies.labels) == [0, 1]
    assert list(studies.rows["id"]) == ["patient0/study0", "patient1/study1"]


def test_study_of_one_image_has_its_probabilities() -> None:
    table = make_table(40)
    for rule in ("mean", "max", "noisy_or"):
        studies = aggregate(table, "study", rule)
        order = [list(table.rows["study"]).index(i.split("/")[1]) for i in studies.rows["id"]]
        if rule == "noisy_or":
            assert np.array_equal(studies.predictions, table.predictions[order])
        np.testing.assert_allclose(studies.probabilities, table.probabilities[order], atol=1e-6)


def test_studies_of_two_patients_with_one_name_are_two_studies() -> None:
    table = make_table(8, 2)
    rows = table.rows.assign(study="study1", patient=np.repeat([f"p{i}" for i in range(4)], 2))
    rows["label"] = np.repeat([0, 1, 0, 1], 2)
    assert len(aggregate(replace(table, rows=rows), "study")) == 4


def test_different_labels_missing_studies_and_unknown_rules_are_errors() -> None:
    table = make_table(8, 2)
    mixed = table.rows.assign(patient="p", study="s", label=[0, 1] * 4)
    with pytest.raises(ValueError, match="study 'p/s' has images with different labels"):
        aggregate(replace(table, rows=mixed), "study")
    with pytest.raises(ValueError, match="id 'image0' has no study"):
        aggregate(replace(table, rows=table.rows.assign(study="")), "study")
    with pytest.raises(ValueError, match="rule 'median' is not among"):
        aggregate(table, "study", "median")


def test_attribute_is_empty_if_images_of_a_study_differ() -> None:
    table = two_studies()
    rows = table.rows.assign(body_part=["wrist", "wrist", "elbow", "hand"])
    body_part = aggregate(replace(table, rows=rows), "study").rows["body_part"]
    assert body_part[0] == "wrist"
    assert body_part.isna()[1]
