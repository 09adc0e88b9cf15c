"""Synchronized batch norms: same outputs, statistics and hooks, and their own classes again."""

import copy

import lightning as L
import pytest
import torch
from torch import nn

from lightning_modules import ImageClassifier, backbones
from lightning_modules.batch_norm import InPlaceSyncBatchNorm

IMAGE = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "densenet121"])
def test_outputs_and_statistics_do_not_change(name):
    torch.manual_seed(0)
    net = backbones.build(name, 3, image_size=64)
    synced = copy.deepcopy(net)
    plugin = InPlaceSyncBatchNorm()
    assert plugin.apply(synced) is synced
    norms = [layer for layer in synced.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert not norms
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in synced.modules())
    assert torch.equal(net(IMAGE), synced(IMAGE))  # in train mode
    state = synced.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(net.eval()(IMAGE), synced.eval()(IMAGE))
    plugin.revert(synced)
    assert list(map(type, synced.modules())) == list(map(type, net.modules()))
    assert torch.equal(net(IMAGE), synced(IMAGE))


def test_torch_would_drop_the_activations():
    net = backbones.build("test_efficientnet", 3).eval()
    expected = net(IMAGE)
    assert not torch.equal(expected, nn.SyncBatchNorm.convert_sync_batchnorm(net)(IMAGE))


def test_gradient_checkpointing_still_updates_statistics_once():
    states = []
    for grad_checkpointing in (False, True):
        torch.manual_seed(0)
        net = backbones.build("test_efficientnet", 3, grad_checkpointing=grad_checkpointing)
        InPlaceSyncBatchNorm().apply(net)
        net(IMAGE).sum().backward()
        states.append(dict(net.named_buffers()))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_fit_replaces_the_plugin_of_lightning():
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", sync_batchnorm=True, logger=False,
        enable_checkpointing=False,
    )  # fmt: skip
    module = ImageClassifier(["a", "b"], "test_efficientnet")
    module.trainer = trainer
    module.setup("fit")
    assert isinstance(trainer.strategy._layer_sync, InPlaceSyncBatchNorm)
