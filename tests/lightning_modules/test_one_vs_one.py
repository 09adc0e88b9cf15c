"""One-versus-one: what each head learns from, what the ensemble sees, and what tables keep."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from evaluation.one_vs_one import couple, pairs
from lightning_modules import OneVsOneClassifier, checkpoints
from lightning_modules.freezing import FineTuning, stages
from lightning_modules.losses import Loss

NAMES = ["none", "mild", "moderate", "severe"]


def model(classes: int = 4, **options: object) -> OneVsOneClassifier:
    torch.manual_seed(0)
    return OneVsOneClassifier([*NAMES, *"efghij"][:classes], "test_resnet", **options)


def by_hand(z: Tensor, label: Tensor, loss: Loss, weights: Tensor | None) -> Tensor:
    """Every (image, pair) whose image is of the pair, one at a time."""
    total, size = torch.tensor(0.0), torch.tensor(0.0)
    for at, (i, j) in enumerate(pairs(4)):
        for row in range(len(label)):
            if label[row] in (i, j):
                two = torch.stack([z[row, at], torch.tensor(0.0)])[None]
                side = torch.tensor([int(label[row] == j)])
                w = torch.tensor(1.0) if weights is None else weights[label[row]]
                pair_weights = None if weights is None else weights[[i, j]]
                total += loss(two, side, pair_weights) * w
                size += w
    return total / size


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 4.0, 2.0, 0.5])])
@pytest.mark.parametrize("loss", [Loss(), Loss(gamma=3.0, alpha=2.5, smoothing=0.1)])
def test_the_loss_by_hand(loss: Loss, weights: Tensor | None) -> None:
    z, label = torch.randn(10, 6), torch.arange(10) % 4
    got = model(loss=loss).cost(z, label, weights)
    assert torch.allclose(got, by_hand(z, label, loss, weights))


def test_a_head_learns_from_its_two_classes_alone() -> None:
    z = torch.randn(5, 6, requires_grad=True)
    label = torch.tensor([0, 1, 2, 3, 1])
    model().cost(z, label, None).backward()
    for row in range(5):
        for at, pair in enumerate(pairs(4)):
            assert (z.grad[row, at] != 0) == (int(label[row]) in pair)


@pytest.mark.parametrize("classes", range(2, 11))
def test_two_to_ten_classes(classes: int) -> None:
    net = model(classes).eval()
    logits = net(torch.rand(3, 3, 32, 32))
    assert logits.shape == (3, classes)
    assert torch.allclose(logits.exp().sum(1), torch.ones(3), atol=1e-5)
    label = torch.arange(3) % classes
    assert net.cost(net.net(torch.rand(3, 3, 32, 32)), label, None).isfinite()


def test_two_classes_are_binary_cross_entropy() -> None:
    z, label = torch.randn(6, 1), torch.arange(6) % 2
    expected = functional.binary_cross_entropy_with_logits(-z[:, 0], label.float())
    assert torch.allclose(model(2).cost(z, label, None), expected)


def test_one_trunk_a_pair() -> None:
    net = model(3, trunks="pair", tuning=FineTuning(frozen_stages=1))
    shared = sum(p.numel() for p in model(3).parameters())
    assert sum(p.numel() for p in net.parameters()) > 2.9 * shared
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    net.tuning.apply(net.net, 0)
    trains = {n for n, p in net.net.named_parameters() if p.requires_grad}
    assert {"trunks.0.fc.weight", "trunks.2.fc.weight"} <= trains
    assert not {n for n in trains if stages(net.net)[n] <= 1}


def test_dropout_acts_before_the_heads() -> None:
    net = model(backbone_args={"drop_rate": 0.28})
    image = torch.rand(2, 3, 32, 32)
    assert not torch.equal(net.net(image), net.net(image))


def test_tables_keep_the_pairs_and_agree_with_the_ensemble() -> None:
    net = model().eval()
    batch = {"image": torch.rand(5, 3, 32, 32), "label": torch.arange(5) % 4, "index": None}
    with torch.no_grad():
        votes, said = net.votes(batch)[:, 0].numpy(), net(batch["image"]).numpy()
    rows = pd.DataFrame({"id": list("abcde"), "label": [0, 1, 2, 3, 0]})
    table = net.tabulate(rows.assign(split="test", patient="", study=""), votes, {})
    assert table.pairs is not None
    np.testing.assert_array_equal(table.pairs, votes)
    np.testing.assert_allclose(table.logits, said, atol=1e-6)
    expected = couple(torch.from_numpy(votes), 4).numpy()
    np.testing.assert_allclose(table.probabilities, expected, atol=1e-6)


def test_certain_pairs_stay_finite() -> None:
    assert model().logits(torch.tensor([[1e4, -1e4, 1e4, -1e4, 1e4, -1e4]])).isfinite().all()


def test_it_is_in_the_registry_of_checkpoints() -> None:
    assert checkpoints.REGISTRY["OneVsOneClassifier"] is OneVsOneClassifier
    again = OneVsOneClassifier(**{**model(trunks="pair").init_args, "loss": Loss(), **plain()})
    assert again.trunks == "pair"


def plain() -> dict[str, object]:
    defaults = model()
    return {"optimization": defaults.optimization, "tuning": defaults.tuning}
