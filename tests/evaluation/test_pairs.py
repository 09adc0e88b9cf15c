import numpy as np
import pytest

from evaluation.metrics import compute
from evaluation.metrics.confusion import pair_accuracies
from evaluation.predictions import PredictionTable, class_pairs
from evaluation.stats.estimate import wilson_interval
from tests.evaluation.tables import make_table


def with_pair_logits(table: PredictionTable, pair_logits: np.ndarray) -> PredictionTable:
    return PredictionTable(
        table.rows, table.logits, table.class_names, table.meta, pair_logits=pair_logits
    )


@pytest.mark.parametrize("images_per_patient", [1, 3])
def test_accuracy_of_a_pair_is_over_images_of_its_two_classes(images_per_patient: int) -> None:
    plain = make_table(120, classes=3, images_per_patient=images_per_patient)
    z = np.random.default_rng(1).normal(size=(120, 3))
    table = with_pair_logits(plain, z)
    metrics = compute.compute_metrics(table, draws=200)
    accuracies = []
    for column, (i, j) in enumerate(class_pairs(3)):
        rows = [n for n in range(120) if table.labels[n] in (i, j)]
        hits = sum((z[n, column] > 0) == (table.labels[n] == i) for n in rows)
        name = f"pair/{table.class_names[i]}/{table.class_names[j]}"
        assert metrics[name].value == pytest.approx(hits / len(rows))
        assert metrics[name].n == len(rows)
        assert pair_accuracies(table)[name] == pytest.approx(hits / len(rows))
        accuracies.append(hits / len(rows))
    accuracy = np.mean(table.predictions == table.labels)
    assert metrics["pairs"].value == pytest.approx(np.mean(accuracies))
    assert metrics["pairs_gap"].value == pytest.approx(np.mean(accuracies) - accuracy)
    assert metrics["pairs"].low < np.mean(accuracies) < metrics["pairs"].high


@pytest.mark.parametrize("is_right", [True, False])
@pytest.mark.parametrize("images_per_patient", [1, 3])
def test_interval_of_a_pair_without_spread_counts_patients(
    is_right: bool, images_per_patient: int
) -> None:
    plain = make_table(120, classes=3, images_per_patient=images_per_patient)
    z = np.random.default_rng(1).normal(size=(120, 3))
    z[:, 0] = np.where((plain.labels == 0) == is_right, 2, -2)
    pair = compute.compute_metrics(with_pair_logits(plain, z), draws=200)["pair/none/simple"]
    counted = plain.labels < 2
    patients = len(set(plain.patients[counted]))
    assert (pair.value, pair.n, pair.patients) == (float(is_right), counted.sum(), patients)
    assert (pair.low, pair.high) == wilson_interval(patients * is_right, patients)


def test_mean_of_pairs_that_are_all_right_has_an_interval() -> None:
    plain = make_table(120, classes=3)
    plain = plain.with_probabilities(np.eye(3)[plain.labels])
    z = np.stack([np.where(plain.labels == i, 2, -2) for i, _ in class_pairs(3)], axis=1)
    metrics = compute.compute_metrics(with_pair_logits(plain, z), draws=200)
    pair, mean, gap = (metrics[name] for name in ("pair/none/simple", "pairs", "pairs_gap"))
    assert pair.low < mean.low < 1 - (1 - pair.low) / 3
    assert (mean.value, mean.high) == (1.0, 1.0)
    assert (gap.value, gap.low) == (0.0, None)
    assert "all have the same" in gap.reason


def test_table_without_pair_logits_has_no_metrics_of_pairs() -> None:
    metrics = compute.compute_metrics(make_table(), draws=20)
    assert not [name for name in metrics if name.startswith("pair")]
    assert pair_accuracies(make_table()) == {}
