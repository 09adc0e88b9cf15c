"""One-versus-one: what each head learns from, the coupled logits, and the prediction tables."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from evaluation.predictions import class_pairs
from lightning_modules import OneVsOneClassifier, checkpoints
from lightning_modules.freezing import FineTuning, parameter_stages
from lightning_modules.heads import couple
from lightning_modules.losses import LossConfig

NAMES = ["none", "mild", "moderate", "severe"]


def build(num_classes: int = 4, **options: object) -> OneVsOneClassifier:
    torch.manual_seed(0)
    return OneVsOneClassifier([*NAMES, *"efghij"][:num_classes], "test_resnet", **options)


def loss_in_a_loop(z: Tensor, label: Tensor, config: LossConfig, weights: Tensor | None) -> Tensor:
    """The mean over all (image, pair) whose image is of the pair, one at a time."""
    loss, total, size = config.create(), torch.tensor(0.0), 0
    for column, (i, j) in enumerate(class_pairs(4)):
        for row in range(len(label)):
            if label[row] in (i, j):
                logits = torch.stack([z[row, column], torch.tensor(0.0)])[None]
                target = torch.tensor([int(label[row] == j)])
                pair_weights = None if weights is None else weights[[i, j]]
                total += loss(logits, target, pair_weights)
                size += 1
    return total / size


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 4.0, 2.0, 0.5])])
@pytest.mark.parametrize(
    "config", [LossConfig(), LossConfig("focal", gamma=3.0, alpha=2.5, label_smoothing=0.1)]
)
def test_the_loss_equals_a_loop(config: LossConfig, weights: Tensor | None) -> None:
    z, label = torch.randn(10, 6), torch.arange(10) % 4
    loss = build(loss=config).compute_loss(z, label, weights)
    assert torch.allclose(loss, loss_in_a_loop(z, label, config, weights))


def test_a_head_learns_from_its_two_classes_only() -> None:
    z = torch.randn(5, 6, requires_grad=True)
    label = torch.tensor([0, 1, 2, 3, 1])
    build().compute_loss(z, label, None).backward()
    for row in range(5):
        for column, pair in enumerate(class_pairs(4)):
            assert (z.grad[row, column] != 0) == (int(label[row]) in pair)


@pytest.mark.parametrize("num_classes", range(2, 11))
def test_two_to_ten_classes(num_classes: int) -> None:
    module = build(num_classes).eval()
    logits = module(torch.rand(3, 3, 32, 32))
    assert logits.shape == (3, num_classes)
    assert torch.allclose(logits.exp().sum(1), torch.ones(3), atol=1e-5)
    label = torch.arange(3) % num_classes
    assert module.compute_loss(module.net(torch.rand(3, 3, 32, 32)), label, None).isfinite()


def test_two_classes_give_binary_cross_entropy() -> None:
    z, label = torch.randn(6, 1), torch.arange(6) % 2
    expected = functional.binary_cross_entropy_with_logits(-z[:, 0], label.float())
    assert torch.allclose(build(2).compute_loss(z, label, None), expected)


def test_one_trunk_per_pair() -> None:
    module = build(3, trunks="pair", fine_tuning=FineTuning(frozen_stages=1))
    shared = sum(p.numel() for p in build(3).parameters())
    assert sum(p.numel() for p in module.parameters()) > 2.9 * shared
    assert module(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    module.fine_tuning.apply(module.net, 0)
    trainable = {n for n, p in module.net.named_parameters() if p.requires_grad}
    assert {"trunks.0.fc.weight", "trunks.2.fc.weight"} <= trainable
    assert not {n for n in trainable if parameter_stages(module.net)[n] <= 1}


def test_dropout_precedes_the_heads() -> None:
    module = build(backbone_args={"drop_rate": 0.28})
    image = torch.rand(2, 3, 32, 32)
    assert not torch.equal(module.net(image), module.net(image))


def test_tables_have_the_pair_logits_and_agree_with_forward() -> None:
    module = build().eval()
    batch = {"image": torch.rand(5, 3, 32, 32), "label": torch.arange(5) % 4, "index": None}
    with torch.no_grad():
        pair_logits = module.member_logits(batch["image"])[:, 0].numpy()
        logits = module(batch["image"]).numpy()
    rows = pd.DataFrame({"id": list("abcde"), "label": [0, 1, 2, 3, 0]})
    rows = rows.assign(split="test", patient="", study="")
    table = module.make_table(rows, pair_logits, {})
    assert table.pair_logits is not None
    np.testing.assert_array_equal(table.pair_logits, pair_logits)
    np.testing.assert_allclose(table.logits, logits, atol=1e-6)
    expected = couple(torch.from_numpy(pair_logits), 4).numpy()
    np.testing.assert_allclose(table.probabilities, expected, atol=1e-6)


def test_logits_of_certain_pairs_are_finite() -> None:
    assert build().logits(torch.tensor([[1e4, -1e4, 1e4, -1e4, 1e4, -1e4]])).isfinite().all()


def test_checkpoints_can_rebuild_the_module() -> None:
    assert checkpoints.REGISTRY["OneVsOneClassifier"] is OneVsOneClassifier
    module = build(trunks="pair", loss=LossConfig("focal", gamma=3.0))
    block = checkpoints.Block(
        "OneVsOneClassifier", module.init_args, module.class_names, {}, "", torch.empty(0), {},
        "", "", 0, {},
    )  # fmt: skip
    rebuilt = checkpoints.build_module(block)
    assert rebuilt.trunks == "pair"
    assert rebuilt.init_args == module.init_args
