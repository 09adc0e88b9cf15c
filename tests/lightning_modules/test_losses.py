"""The loss against torch's own cross entropy, closed forms, and its parts acting together."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.losses import Loss, binary_logits

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(9, 4, dtype=torch.float64) * 3, torch.arange(9) % 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [None, WEIGHTS.double()])
def test_gamma_zero_is_torchs_cross_entropy(
    batch: tuple[Tensor, Tensor], smoothing: float, weights: Tensor | None
) -> None:
    expected = functional.cross_entropy(*batch, weight=weights, label_smoothing=smoothing)
    assert torch.allclose(Loss(smoothing=smoothing)(*batch, weights).double(), expected, rtol=1e-5)


def test_shares_of_classes_follow_torch_as_well(batch: tuple[Tensor, Tensor]) -> None:
    shares = torch.softmax(batch[0].flip(0), dim=1)
    weights = WEIGHTS.double()
    expected = functional.cross_entropy(batch[0], shares, weight=weights, label_smoothing=0.1)
    got = Loss(smoothing=0.1)(batch[0], shares, weights).double()
    assert torch.allclose(got, expected, rtol=1e-5)


def test_focal_in_closed_form() -> None:
    p = torch.tensor([0.9, 0.3], dtype=torch.float64)
    logits = torch.stack([torch.zeros(2), torch.logit(p)], dim=1)
    expected = 2.5 * ((1 - p) ** 3 * -torch.log(p)).mean()
    got = Loss(gamma=3.0, alpha=2.5)(logits, torch.tensor([1, 1]))
    assert torch.allclose(got.double(), expected, rtol=1e-5)


def test_all_parts_together_in_a_loop_by_hand(batch: tuple[Tensor, Tensor]) -> None:
    total = 0.0
    for row, label in zip(*batch, strict=True):
        p = torch.softmax(row, 0)
        for k in range(4):
            share = 0.9 * (k == label) + 0.1 / 4
            total += 2.5 * share * WEIGHTS[k] * (1 - p[k]) ** 3 * -torch.log(p[k])
    expected = total / WEIGHTS[batch[1]].sum()
    got = Loss(gamma=3.0, alpha=2.5, smoothing=0.1)(*batch, WEIGHTS.double())
    assert torch.allclose(got.double(), expected.double(), rtol=1e-5)


@pytest.mark.parametrize("change", [{"gamma": 0.0}, {"alpha": 1.0}, {"smoothing": 0.0}])
def test_no_part_silences_another(batch: tuple[Tensor, Tensor], change: dict[str, float]) -> None:
    full = {"gamma": 3.0, "alpha": 2.5, "smoothing": 0.1}
    with_weights = Loss(**full)(*batch, WEIGHTS)
    assert not torch.isclose(with_weights, Loss(**full)(*batch))
    assert not torch.isclose(with_weights, Loss(**{**full, **change})(*batch, WEIGHTS))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_gradients_are_finite_for_certain_images(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    Loss(gamma=gamma)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_is_summed_in_single() -> None:
    logits = torch.randn(512, 3).half()
    target = torch.zeros(512, dtype=torch.long)
    assert Loss()(logits, target).dtype == torch.float32


def test_two_logits_of_a_sigmoid_are_binary_cross_entropy() -> None:
    z, label = torch.tensor([-2.0, 0.3, 4.0]), torch.tensor([0, 1, 1])
    expected = functional.binary_cross_entropy_with_logits(z, label.float())
    assert torch.allclose(Loss()(binary_logits(z), label), expected)
    assert torch.allclose(torch.softmax(binary_logits(z), 1)[:, 1], torch.sigmoid(z))


def test_pos_weight_is_torchs() -> None:
    z, label = torch.tensor([-2.0, 0.3, 4.0]), torch.tensor([0, 1, 1])
    pos = torch.tensor(3.0)
    expected = functional.binary_cross_entropy_with_logits(z, label.float(), pos_weight=pos)
    assert torch.allclose(Loss(pos_weight=3.0)(binary_logits(z), label), expected)


def test_class_weights_are_pos_weight_up_to_their_sum() -> None:
    z, label = torch.tensor([-2.0, 0.3, 4.0]), torch.tensor([0, 1, 1])
    pos = torch.tensor(3.0)
    expected = functional.binary_cross_entropy_with_logits(
        z, label.float(), pos_weight=pos, reduction="sum"
    )
    got = Loss()(binary_logits(z), label, torch.stack([torch.tensor(1.0), pos]))
    assert torch.allclose(got * (1 + 3 + 3), expected)


@pytest.mark.parametrize(
    ("name", "value"), [("gamma", -1.0), ("alpha", -0.1), ("smoothing", 1.0), ("smoothing", -0.1)]
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"loss\.{name}: {value} is not in"):
        Loss(**{name: value})
