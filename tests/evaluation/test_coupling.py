import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from evaluation.metrics import compute
from evaluation.metrics.spec import NAMES, is_figure
from evaluation.one_vs_one import couple, figures, pairs
from evaluation.predictions import PredictionTable
from evaluation.stats.estimate import wilson
from tests.evaluation import tables


def logits_of(p: torch.Tensor) -> torch.Tensor:
    """Pair logits that agree with the class probabilities p (n, K)."""
    first, second = zip(*pairs(p.shape[1]), strict=True)
    return torch.log(p[:, first]) - torch.log(p[:, second])


@pytest.mark.parametrize("classes", range(2, 11))
def test_consistent_pairs_give_back_their_probabilities(classes: int) -> None:
    torch.manual_seed(classes)
    p = torch.softmax(2 * torch.randn(50, classes, dtype=torch.float64), dim=1)
    assert torch.allclose(couple(logits_of(p), classes), p, atol=1e-10)


@pytest.mark.parametrize("classes", [3, 5, 10])
def test_it_is_the_minimum_of_wu_lin_and_weng(classes: int) -> None:
    torch.manual_seed(0)
    z = torch.randn(3, len(pairs(classes)), dtype=torch.float64)
    for row, found in zip(z, couple(z, classes).numpy(), strict=True):
        r = np.zeros((classes, classes))
        for (i, j), logit in zip(pairs(classes), row.tolist(), strict=True):
            r[i, j] = 1 / (1 + np.exp(-logit))
            r[j, i] = 1 - r[i, j]

        def cost(p: np.ndarray, r: np.ndarray = r) -> float:
            return float(((r.T * p[:, None] - r * p[None, :]) ** 2).sum())

        best = minimize(
            cost,
            np.full(classes, 1 / classes),
            bounds=[(0, 1)] * classes,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found == pytest.approx(best.x, abs=1e-4)
        assert cost(found) <= cost(best.x) + 1e-12


@pytest.mark.parametrize("size", [0.0, 30.0, 1e4])
def test_any_logits_give_probabilities(size: float) -> None:
    torch.manual_seed(0)
    p = couple(size * torch.randn(200, 45), 10)
    assert (p >= 0).all()
    assert torch.allclose(p.sum(dim=1), torch.ones(200, dtype=torch.float64))


def test_a_class_that_beats_all_others_wins() -> None:
    z = torch.tensor([[-20.0, 3.0, 20.0]])  # of classes 0-1, 0-2, 1-2: class 1 beats both
    assert couple(z, 3).argmax(dim=1).tolist() == [1]


def test_two_classes_are_a_sigmoid() -> None:
    z = torch.linspace(-5, 5, 11)[:, None].double()
    assert torch.allclose(couple(z, 2), torch.cat([torch.sigmoid(z), torch.sigmoid(-z)], 1))


def test_renaming_classes_renames_their_probabilities() -> None:
    torch.manual_seed(0)
    z, order = torch.randn(4, 6), [2, 0, 3, 1]
    signed = {**{p: z[:, c] for c, p in enumerate(pairs(4))}}
    signed |= {(j, i): -z[:, c] for c, (i, j) in enumerate(pairs(4))}
    turned = torch.stack([signed[order[i], order[j]] for i, j in pairs(4)], dim=1)
    assert torch.allclose(couple(turned, 4), couple(z, 4)[:, order])


def test_gradients_flow() -> None:
    z = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: couple(z, 5), z)


def test_wrong_number_of_pairs_is_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 5\), not \(n, 6\): 4 classes"):
        couple(torch.zeros(2, 5), 4)


def table_with(z: np.ndarray, made: PredictionTable) -> PredictionTable:
    p = couple(torch.from_numpy(z), len(made.class_names)).numpy()
    rows, names = made.rows, made.class_names
    return PredictionTable(rows, np.log(p), names, made.meta, pairs=z)


@pytest.mark.parametrize("films", [1, 3])
def test_pair_accuracies_are_counted_on_their_two_classes(films: int) -> None:
    made = tables.make(120, classes=3, films=films)
    z = np.random.default_rng(1).normal(size=(120, 3))
    table = table_with(z, made)
    found = figures(table, draws=200)
    rates = []
    for column, (i, j) in enumerate(pairs(3)):
        rows = [n for n in range(120) if made.labels[n] in (i, j)]
        hits = sum((z[n, column] > 0) == (made.labels[n] == i) for n in rows)
        name = f"pair/{made.class_names[i]}/{made.class_names[j]}"
        assert found[name].value == pytest.approx(hits / len(rows))
        assert found[name].n == len(rows)
        rates.append(hits / len(rows))
    coupled = np.mean(table.logits.argmax(1) == made.labels)
    assert found["pairs"].value == pytest.approx(np.mean(rates))
    assert found["pairs_gap"].value == pytest.approx(np.mean(rates) - coupled)
    low, high = found["pairs"].low, found["pairs"].high
    assert low is not None
    assert high is not None
    assert low < np.mean(rates) < high


@pytest.mark.parametrize(("right", "films"), [(True, 1), (True, 3), (False, 1), (False, 3)])
def test_a_pair_that_is_always_right_or_never_counts_its_patients(right: bool, films: int) -> None:
    made = tables.make(120, classes=3, films=films)
    z = np.random.default_rng(1).normal(size=(120, 3))
    z[:, 0] = np.where((made.labels == 0) == right, 2, -2)
    found, asked = figures(table_with(z, made), draws=200), made.labels < 2
    people = len(set(made.patients[asked]))
    pair = found["pair/none/simple"]
    assert (pair.value, pair.n, pair.patients) == (float(right), asked.sum(), people)
    assert (pair.low, pair.high) == wilson(people * right, people)


def test_where_all_pairs_are_right_their_mean_has_room() -> None:
    made = tables.make(120, classes=3)
    z = np.stack([np.where(made.labels == i, 2, -2) for i, _ in pairs(3)], axis=1)
    found = figures(table_with(z, made), draws=200)
    each = found["pair/none/simple"]
    assert each.low < found["pairs"].low < 1 - (1 - each.low) / 3
    assert (found["pairs"].value, found["pairs"].high) == (1.0, 1.0)
    gap = found["pairs_gap"]
    assert (gap.value, gap.low) == (0.0, None)
    assert "all the same" in gap.reason


def test_no_pairs_no_figures() -> None:
    assert figures(tables.make()) == {}


def test_the_names_of_all_figures_are_known_beforehand() -> None:
    made = tables.make(120, classes=3)
    table = table_with(np.random.default_rng(1).normal(size=(120, 3)), made)
    found = figures(table, draws=20) | compute.compute_metrics(table, draws=20)
    assert {name.split("/")[0] for name in found} == set(NAMES)
    assert all(is_figure(name) and is_figure(f"study/{name}", "study") for name in found)
    assert not any(is_figure(name) for name in ("", "Accuracy", "study/kappa", "recall_x"))
