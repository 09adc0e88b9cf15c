import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from evaluation.predictions import class_pairs
from lightning_modules.heads import couple


def consistent_pair_logits(p: torch.Tensor) -> torch.Tensor:
    """Pair logits that are consistent with class probabilities p (n, K)."""
    first, second = zip(*class_pairs(p.shape[1]), strict=True)
    return torch.log(p[:, first]) - torch.log(p[:, second])


@pytest.mark.parametrize("classes", range(2, 11))
def test_consistent_pairs_are_coupled_to_their_probabilities(classes: int) -> None:
    torch.manual_seed(classes)
    p = torch.softmax(2 * torch.randn(50, classes, dtype=torch.float64), dim=1)
    assert torch.allclose(couple(consistent_pair_logits(p), classes), p, atol=1e-10)


@pytest.mark.parametrize("classes", [3, 5, 10])
def test_coupling_minimizes_the_objective_of_wu_lin_and_weng(classes: int) -> None:
    torch.manual_seed(0)
    z = torch.randn(3, len(class_pairs(classes)), dtype=torch.float64)
    for row, coupled in zip(z, couple(z, classes).numpy(), strict=True):
        r = np.zeros((classes, classes))
        for (i, j), logit in zip(class_pairs(classes), row.tolist(), strict=True):
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
        assert coupled == pytest.approx(best.x, abs=1e-4)
        assert cost(coupled) <= cost(best.x) + 1e-12


@pytest.mark.parametrize("size", [0.0, 30.0, 1e4])
def test_coupled_probabilities_sum_to_one_for_any_logits(size: float) -> None:
    torch.manual_seed(0)
    p = couple(size * torch.randn(200, 45), 10)
    assert (p >= 0).all()
    assert torch.allclose(p.sum(dim=1), torch.ones(200, dtype=torch.float64))


def test_class_that_wins_all_its_pairs_is_predicted() -> None:
    z = torch.tensor([[-20.0, 3.0, 20.0]])  # of classes 0-1, 0-2, 1-2: class 1 beats both
    assert couple(z, 3).argmax(dim=1).tolist() == [1]


def test_coupling_of_two_classes_is_a_sigmoid() -> None:
    z = torch.linspace(-5, 5, 11)[:, None].double()
    assert torch.allclose(couple(z, 2), torch.cat([torch.sigmoid(z), torch.sigmoid(-z)], 1))


def test_permuting_classes_permutes_their_probabilities() -> None:
    torch.manual_seed(0)
    z, order = torch.randn(4, 6), [2, 0, 3, 1]
    signed = {**{p: z[:, c] for c, p in enumerate(class_pairs(4))}}
    signed |= {(j, i): -z[:, c] for c, (i, j) in enumerate(class_pairs(4))}
    permuted = torch.stack([signed[order[i], order[j]] for i, j in class_pairs(4)], dim=1)
    assert torch.allclose(couple(permuted, 4), couple(z, 4)[:, order])


def test_coupling_is_differentiable() -> None:
    z = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: couple(z, 5), z)


def test_wrong_number_of_pairs_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 5\), not \(n, 6\): 4 classes"):
        couple(torch.zeros(2, 5), 4)
