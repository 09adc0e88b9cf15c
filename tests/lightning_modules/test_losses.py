"""The losses against torch's cross entropy and closed forms, losses of a user, mixed batches."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.cli.main import main
from lightning_modules import checkpoints
from lightning_modules.heads import SigmoidHead
from lightning_modules.losses import LOSSES, CrossEntropyLoss, FocalLoss, LossConfig
from tests.conftest import Tiny

CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])


def sigmoid_logits(z: Tensor) -> Tensor:
    return SigmoidHead(["no", "yes"], CrossEntropyLoss()).logits(z)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(9, 4, dtype=torch.float64) * 3, torch.arange(9) % 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS.double()])
def test_cross_entropy_equals_torch(
    batch: tuple[Tensor, Tensor], smoothing: float, weights: Tensor | None
) -> None:
    options = {"weight": weights, "label_smoothing": smoothing}
    expected = functional.cross_entropy(*batch, **options, reduction="sum") / len(batch[1])
    loss = CrossEntropyLoss(label_smoothing=smoothing)(*batch, weights)
    assert torch.allclose(loss.double(), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), FocalLoss(gamma=3.0, label_smoothing=0.1)])
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_images(
    batch: tuple[Tensor, Tensor], loss: FocalLoss
) -> None:
    logits, target = batch
    images = range(len(target))
    single = [loss(logits[[i]], target[[i]], CLASS_WEIGHTS) for i in images]
    assert torch.allclose(torch.stack(single).mean(), loss(*batch, CLASS_WEIGHTS))


def test_class_probabilities_as_target_equal_torch(batch: tuple[Tensor, Tensor]) -> None:
    target = torch.softmax(batch[0].flip(0), dim=1)
    weights = CLASS_WEIGHTS.double()
    expected = functional.cross_entropy(batch[0], target, weight=weights, label_smoothing=0.1)
    loss = CrossEntropyLoss(label_smoothing=0.1)(batch[0], target, weights)
    assert torch.allclose(loss.double(), expected, rtol=1e-5)


def test_focal_loss_equals_its_closed_form() -> None:
    p = torch.tensor([0.9, 0.3], dtype=torch.float64)
    logits = torch.stack([torch.zeros(2), torch.logit(p)], dim=1)
    expected = 2.5 * ((1 - p) ** 3 * -torch.log(p)).mean()
    loss = FocalLoss(gamma=3.0, alpha=2.5)(logits, torch.tensor([1, 1]))
    assert torch.allclose(loss.double(), expected, rtol=1e-5)


def test_all_settings_together_equal_a_loop(batch: tuple[Tensor, Tensor]) -> None:
    total = 0.0
    for row, label in zip(*batch, strict=True):
        p = torch.softmax(row, 0)
        for k in range(4):
            q = 0.9 * (k == label) + 0.1 / 4
            total += 2.5 * q * CLASS_WEIGHTS[k] * (1 - p[k]) ** 3 * -torch.log(p[k])
    expected = total / len(batch[1])
    loss = FocalLoss(gamma=3.0, alpha=2.5, label_smoothing=0.1)(*batch, CLASS_WEIGHTS.double())
    assert torch.allclose(loss.double(), expected.double(), rtol=1e-5)


@pytest.mark.parametrize("change", [{"gamma": 0.0}, {"alpha": 1.0}, {"label_smoothing": 0.0}])
def test_no_setting_disables_another(
    batch: tuple[Tensor, Tensor], change: dict[str, float]
) -> None:
    settings = {"gamma": 3.0, "alpha": 2.5, "label_smoothing": 0.1}
    with_weights = FocalLoss(**settings)(*batch, CLASS_WEIGHTS)
    assert not torch.isclose(with_weights, FocalLoss(**settings)(*batch))
    assert not torch.isclose(
        with_weights, FocalLoss(**{**settings, **change})(*batch, CLASS_WEIGHTS)
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_gradients_are_finite_for_certain_predictions(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    FocalLoss(gamma=gamma)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_is_summed_in_single_precision() -> None:
    logits = torch.randn(512, 3).half()
    target = torch.zeros(512, dtype=torch.long)
    assert CrossEntropyLoss()(logits, target).dtype == torch.float32


def test_logits_of_a_sigmoid_head_give_binary_cross_entropy() -> None:
    z, label = torch.tensor([-2.0, 0.3, 4.0]), torch.tensor([0, 1, 1])
    expected = functional.binary_cross_entropy_with_logits(z, label.float())
    assert torch.allclose(CrossEntropyLoss()(sigmoid_logits(z), label), expected)
    assert torch.allclose(torch.softmax(sigmoid_logits(z), 1)[:, 1], torch.sigmoid(z))


def test_pos_weight_equals_torch() -> None:
    z, label = torch.tensor([-2.0, 0.3, 4.0]), torch.tensor([0, 1, 1])
    pos = torch.tensor(3.0)
    expected = functional.binary_cross_entropy_with_logits(z, label.float(), pos_weight=pos)
    assert torch.allclose(CrossEntropyLoss(pos_weight=3.0)(sigmoid_logits(z), label), expected)


def test_class_weights_equal_pos_weight() -> None:
    z, label = torch.tensor([-2.0, 0.3, 4.0]), torch.tensor([0, 1, 1])
    expected = CrossEntropyLoss(pos_weight=3.0)(sigmoid_logits(z), label)
    loss = CrossEntropyLoss()(sigmoid_logits(z), label, torch.tensor([1.0, 3.0]))
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gamma", -1.0), ("alpha", -0.1), ("label_smoothing", 1.0), ("label_smoothing", -0.1)],
)
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"loss\.{name}: {value} is not in"):
        LossConfig("focal", **{name: value}).create()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LossConfig("focall"), r"loss\.name: 'focall' is neither one of cross_entropy, focal nor"),
        (LossConfig("no_such_module.Loss"), "'no_such_module.Loss' is neither one of"),
        (LossConfig(gamma=2.0), "loss: cross_entropy refuses {'gamma': 2.0}"),
        (LossConfig("focal", args={"gama": 2.0}), "loss: focal refuses {'gama': 2.0}"),
    ],
)
def test_unknown_names_and_settings_are_refused(config: LossConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.create()


def squared_error(
    logits: Tensor, target: Tensor, class_weights: Tensor | None, scale: float = 1.0
) -> Tensor:
    """A loss as a user might write it."""
    return scale * (logits.softmax(1) - functional.one_hot(target, logits.shape[1])).square().mean()


class ShiftedCrossEntropy(nn.Module):
    """A loss with a tensor of its own."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, logits: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
        return functional.cross_entropy(logits, target, class_weights) + self.shift


def test_a_registered_loss_is_named_in_a_config(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "squared_error", squared_error)
    run = tmp_path / "squared"
    changes = {
        "trainer.max_epochs": 1,
        "model.init_args.loss": {"name": "squared_error", "args": {"scale": 2.0}},
    }
    assert main(["fit", *tiny.configs("squared", **changes), "--run", str(run)]) == 0
    block, _ = checkpoints.read(run / "best.ckpt")
    assert block.init_args["loss"]["name"] == "squared_error"
    monkeypatch.delitem(LOSSES, "squared_error")
    module, _ = checkpoints.load(run / "best.ckpt")  # inference needs no loss
    assert module(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_a_loss_is_named_by_its_import_path() -> None:
    config = LossConfig(f"{__name__}.ShiftedCrossEntropy", args={"shift": 1.0})
    logits, target = torch.randn(4, 3), torch.arange(4) % 3
    expected = functional.cross_entropy(logits, target) + 1
    assert torch.allclose(config.create()(logits, target, None), expected)


MIXING = [
    LossConfig(mixup_alpha=0.4),
    LossConfig(cutmix_alpha=1.0),
    LossConfig(mixup_alpha=0.4, cutmix_alpha=1.0),
]


def test_batches_are_not_mixed_by_default() -> None:
    image, label = torch.rand(4, 3, 8, 8), torch.arange(4)
    mixed, target = LossConfig().mix(image, label, 4)
    assert mixed is image
    assert target is label


@pytest.mark.parametrize("config", MIXING)
def test_mixed_class_probabilities_equal_the_proportions_of_the_pixels(config: LossConfig) -> None:
    label = torch.arange(4)
    image = torch.zeros(4, 4, 16, 16)
    image[label, label] = 1.0  # channel k shows the proportion of image k
    mixed, probabilities = config.mix(image, label, 4)
    assert torch.allclose(mixed.mean(dim=(2, 3)), probabilities, atol=1e-6)
    assert torch.allclose(probabilities.sum(1), torch.ones(4))


def test_the_seed_determines_the_mixed_batch() -> None:
    image, label, results = torch.rand(4, 3, 8, 8), torch.arange(4), []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(MIXING[2].mix(image, label, 4))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_negative_mixing_parameters_are_named() -> None:
    with pytest.raises(ValueError, match=r"loss\.cutmix_alpha: -1 is not at least 0"):
        LossConfig(cutmix_alpha=-1)
