from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.predictions import PredictionTable, align, refuse_test, require_ids
from tests.evaluation.tables import make


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = replace(make(), pairs=np.random.default_rng(1).normal(size=(60, 3)))
    table.write(tmp_path / "a.parquet")
    again = PredictionTable.read(tmp_path / "a.parquet")
    assert np.array_equal(again.logits, table.logits)
    assert np.array_equal(again.pairs, table.pairs)
    assert again.rows.equals(table.rows)
    assert (again.class_names, again.meta) == (table.class_names, table.meta)
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_probabilities_are_the_softmax() -> None:
    table = make()
    e = np.exp(table.logits)
    np.testing.assert_allclose(table.probabilities, e / e.sum(1, keepdims=True), rtol=1e-12)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    make().write(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        replace(make(), meta={"x": object()}).write(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    make().write(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file"):
        PredictionTable.read(path)


def test_a_foreign_parquet_is_refused(tmp_path: Path) -> None:
    make().rows.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: prediction table of version None"):
        PredictionTable.read(tmp_path / "b.parquet")


def test_a_row_with_nan_logits_is_refused() -> None:
    logits = make().logits
    logits[7, 1] = np.nan
    with pytest.raises(ValueError, match="logits of id 'image7' are not finite"):
        replace(make(), logits=logits)


def test_a_doubled_id_is_refused() -> None:
    rows = make().rows
    rows.loc[4, "id"] = "image3"
    with pytest.raises(ValueError, match="id 'image3' occurs twice"):
        replace(make(), rows=rows)


def test_a_missing_and_a_surplus_id_are_refused() -> None:
    table = make()
    ids = list(table.rows["id"])
    require_ids(table, reversed(ids))
    with pytest.raises(ValueError, match=r"lacks id 'extra' \(1 such"):
        require_ids(table, [*ids, "extra"])
    with pytest.raises(ValueError, match="has the unexpected id 'image0'"):
        require_ids(table, ids[1:])


@pytest.mark.parametrize("label", [-2, 3])
def test_a_label_out_of_range_is_refused(label: int) -> None:
    rows = make().rows
    rows.loc[5, "label"] = label
    with pytest.raises(ValueError, match=f"label {label} of id 'image5'"):
        replace(make(), rows=rows)


def test_a_missing_column_and_a_wrong_width_are_refused() -> None:
    with pytest.raises(ValueError, match="lacks column 'patient'"):
        replace(make(), rows=make().rows.drop(columns="patient"))
    with pytest.raises(ValueError, match=r"logits have shape \(60, 2\)"):
        replace(make(), logits=make().logits[:, :2])


def test_align_undoes_another_order_of_rows_and_classes() -> None:
    table = replace(make(), pairs=np.random.default_rng(1).normal(size=(60, 3)))
    order = [2, 0, 1]
    rng = np.random.default_rng(0)
    moved = _in_class_order(table, order).take(rng.permutation(60))
    again = align([table, moved])[1]
    assert np.array_equal(again.logits, table.logits)
    assert np.array_equal(again.pairs, table.pairs)
    assert np.array_equal(again.labels, table.labels)


def _in_class_order(table: PredictionTable, order: list[int]) -> PredictionTable:
    """The same table with its classes renumbered by hand: pairs (0,1), (0,2), (1,2)."""
    names = [table.class_names[i] for i in order]
    labels = [names.index(table.class_names[y]) for y in table.labels]
    square = np.zeros((len(table), 3, 3))
    for at, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        square[:, i, j], square[:, j, i] = table.pairs[:, at], -table.pairs[:, at]
    square = square[:, order][:, :, order]
    pairs = np.stack([square[:, 0, 1], square[:, 0, 2], square[:, 1, 2]], axis=1)
    rows = table.rows.assign(label=labels)
    return PredictionTable(rows, table.logits[:, order], names, table.meta, pairs)


def test_align_keeps_unknown_labels_unknown() -> None:
    table = make()
    unknown = replace(table, rows=table.rows.assign(label=-1))
    names = ["simple", "none", "comminuted"]
    other = replace(unknown, class_names=names)
    assert (align([unknown, other])[1].labels == -1).all()


def test_align_refuses_what_cannot_be_compared() -> None:
    table = make()
    with pytest.raises(ValueError, match=r"table 2 has classes \['a', 'b', 'c'\]"):
        align([table, replace(table, class_names=["a", "b", "c"])])
    with pytest.raises(ValueError, match="manifest digest d2, the first d1"):
        align([table, replace(table, meta={"manifest_digest": "d2"})])
    with pytest.raises(ValueError, match="lacks id 'image0'"):
        align([table, table.take(np.arange(1, 60))])
    with pytest.raises(ValueError, match="another label than the first for id 'image0'"):
        align([table, replace(table, rows=table.rows.assign(label=1))])
    with pytest.raises(ValueError, match="another split"):
        align([table, replace(table, rows=table.rows.assign(split="val"))])


def test_fitting_on_test_is_refused() -> None:
    refuse_test(make(split="val"), "a temperature")
    with pytest.raises(ValueError, match="a temperature may not be fitted on split 'test'"):
        refuse_test(make(), "a temperature")


def test_a_row_without_patient_is_its_own_patient() -> None:
    table = replace(make(), rows=make().rows.assign(patient=""))
    assert len(set(table.patients)) == 60


@pytest.mark.parametrize("none", [None, np.nan, ""])
def test_rows_without_a_patient_are_aligned_with_each_other(none: object) -> None:
    one, other = (
        replace(make(), rows=make().rows.astype({"patient": object}).assign(patient=unnamed))
        for unnamed in (none, None)
    )
    assert (align([one, other])[1].patients == one.patients).all()
    with pytest.raises(ValueError, match="another patient than the first for id 'image0'"):
        align([one, make()])
