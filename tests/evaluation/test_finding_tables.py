"""Tables of several findings per image, their two-class tables and their means."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation.findings import MultiLabelTable, finding_metrics, mean_estimates
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable

NAMES = ["Effusion", "Mass", "Edema"]


def make_findings(n: int = 240, seed: int = 0, unknown: float = 0.3) -> MultiLabelTable:
    """Two images per patient; logits are noise plus 1.5 for a present finding."""
    rng = np.random.default_rng(seed)
    present = (rng.random((n, 3)) < [0.5, 0.3, 0.2]).astype(int)
    labels = np.where(rng.random((n, 3)) < unknown, -1, present)
    rows = pd.DataFrame({
        "id": [f"image{k}" for k in range(n)], "label": -1, "split": "test",
        "patient": [f"p{k // 2}" for k in range(n)], "study": "", "sex": rng.choice(["f", "m"], n),
        **{f"finding/{name}": labels[:, k] for k, name in enumerate(NAMES)},
    })  # fmt: skip
    logits = rng.normal(size=(n, 3)) + 1.5 * present - 0.5
    return MultiLabelTable(rows, logits, NAMES, {"manifest_digest": "d", "notes": ["a note"]})


def test_a_finding_is_the_two_class_table_of_its_known_labels() -> None:
    table = make_findings()
    known = table.labels[:, 1] >= 0
    mass = table.finding("Mass")
    assert mass.class_names == ["no Mass", "Mass"]
    assert mass.rows["id"].tolist() == table.rows["id"][known].tolist()
    np.testing.assert_array_equal(mass.labels, table.labels[known, 1])
    np.testing.assert_allclose(mass.probabilities[:, 1], table.probabilities[known, 1])
    rows = table.rows[known].drop(columns=[f"finding/{name}" for name in NAMES])
    z = table.logits[known, 1]
    by_hand = PredictionTable(
        rows.assign(label=table.labels[known, 1]), np.stack([0 * z, z], 1), mass.class_names
    )
    assert compute_metrics(mass) == compute_metrics(by_hand)


def test_a_table_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    table = make_findings()
    table.write(tmp_path / "test.parquet")
    read = MultiLabelTable.read(tmp_path / "test.parquet")
    pd.testing.assert_frame_equal(read.rows, table.rows)
    np.testing.assert_array_equal(read.logits, table.logits)
    assert (read.class_names, read.meta) == (table.class_names, table.meta)
    with pytest.raises(ValueError, match="several findings per image cannot be used here"):
        PredictionTable.read(tmp_path / "test.parquet")
    table.finding("Mass").write(tmp_path / "mass.parquet")
    with pytest.raises(ValueError, match=r"has the labels \[\], not \['finding/no Mass'"):
        MultiLabelTable.read(tmp_path / "mass.parquet")


def test_means_are_those_of_scikit_learn_on_the_known_labels() -> None:
    table = make_findings()
    metrics, known = mean_estimates(table, draws=400), table.labels >= 0
    for name, score in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        by_finding = [score(table.labels[k, c], table.logits[k, c]) for c, k in enumerate(known.T)]
        assert metrics[f"{name}/macro"].value == pytest.approx(np.mean(by_finding))
        expected = score(table.labels[known], table.logits[known])
        assert metrics[f"{name}/micro"].value == pytest.approx(expected)
        for mean in ("macro", "micro"):
            estimate = metrics[f"{name}/{mean}"]
            assert estimate.low is not None
            assert estimate.high is not None
            assert estimate.low < float(estimate.value or 0) < estimate.high
    sizes = {(e.n, e.patients) for e in metrics.values()}
    assert sizes == {(int(known.any(axis=1).sum()), 120)}


def test_the_interval_is_over_patients() -> None:
    """Copies of the images of each patient leave the interval as it is."""
    table = make_findings(120, unknown=0.0)
    rows = pd.concat([table.rows, table.rows.assign(id="copy-" + table.rows["id"])])
    twice = MultiLabelTable(rows, np.concatenate([table.logits] * 2), NAMES)
    once, double = (mean_estimates(t, draws=400)["auroc/macro"] for t in (table, twice))
    assert (once.low, once.high) == pytest.approx((double.low, double.high), abs=1e-6)


def test_the_macro_mean_of_one_finding_is_its_auroc() -> None:
    table = make_findings()
    rows = table.rows.drop(columns=["finding/Effusion", "finding/Edema"])
    one = MultiLabelTable(rows, table.logits[:, [1]], ["Mass"], table.meta)
    expected = compute_metrics(table.finding("Mass"))["auroc/Mass"]
    means = mean_estimates(one)
    assert means["auroc/macro"] == means["auroc/micro"]
    assert means["auroc/macro"].value == pytest.approx(expected.value)
    ends = (means["auroc/macro"].low, means["auroc/macro"].high)
    assert ends == pytest.approx((expected.low, expected.high), abs=0.03)  # DeLong and bootstrap


def test_a_finding_without_both_kinds_of_labels_is_left_out_of_the_mean() -> None:
    table = make_findings()
    rows = table.rows.assign(**{"finding/Edema": np.where(table.labels[:, 2] == 1, -1, 0)})
    changed = MultiLabelTable(rows, table.logits, NAMES)
    aurocs = [compute_metrics(table.finding(n))[f"auroc/{n}"].value for n in NAMES[:2]]
    expected = np.mean(np.array(aurocs, float))
    assert mean_estimates(changed, draws=50)["auroc/macro"].value == pytest.approx(expected)
    assert finding_metrics(changed)["auroc"] == pytest.approx(expected)


def test_metrics_of_an_epoch_are_over_the_known_labels() -> None:
    table = make_findings()
    metrics, known = finding_metrics(table), table.labels >= 0
    p, y = table.probabilities[known], table.labels[known]
    assert metrics["loss"] == pytest.approx(-np.log(np.where(y == 1, p, 1 - p)).mean())
    assert metrics["accuracy"] == pytest.approx(((p > 0.5) == y).mean())
    assert metrics["auroc"] == pytest.approx(np.mean([metrics[f"auroc/{n}"] for n in NAMES]))


def test_invalid_tables_are_refused() -> None:
    table = make_findings()
    with pytest.raises(ValueError, match="logits have shape"):
        MultiLabelTable(table.rows, table.logits[:, :2], NAMES)
    with pytest.raises(ValueError, match="1, 0, or -1 if unknown"):
        MultiLabelTable(table.rows.assign(**{"finding/Mass": 2}), table.logits, NAMES)
