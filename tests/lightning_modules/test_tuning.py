"""Freezing bit for bit on four families, thawing, and rates by depth."""

import pytest
import torch
from torch import Tensor, nn

from lightning_modules import backbones
from lightning_modules.freezing import FineTuning, rest, stages

FAMILIES = {
    "densenet": ("densenet121", {"growth_rate": 4, "block_config": [2, 2, 2, 2]}),
    "convnext": ("test_convnext", {}),
    "swin": ("swinv2_tiny_window8_256", {"embed_dim": 12, "depths": [1, 1, 2, 1]}),
    "hybrid": ("test_coatnet", {}),
}


def family(name: str) -> nn.Module:
    backbone, options = FAMILIES[name]
    torch.manual_seed(0)
    return backbones.build(backbone, 3, image_size=64, **options)


def train_two_steps(net: nn.Module, tuning: FineTuning, epoch: int) -> None:
    optimizer = torch.optim.AdamW(tuning.groups(net, 0.1, 0.1))
    net.train()
    tuning.apply(net, epoch)
    for seed in range(2):
        image = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        net(image).square().sum().backward()
        optimizer.step()


def moved(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in net.state_dict().items() if not value.equal(before[name])}


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_stages_stand_bit_for_bit(name: str) -> None:
    net = family(name)
    before, stage = snapshot(net), stages(net)
    train_two_steps(net, FineTuning(frozen_stages=2), 0)
    owners = {weight.rpartition(".")[0] for weight, at in stage.items() if at <= 2}
    changed = moved(net, before)
    assert not {entry for entry in changed if entry.rpartition(".")[0] in owners}
    assert {w for w, at in stage.items() if at > 2 and "bias_table" not in w} <= changed


@pytest.mark.parametrize("name", FAMILIES)
def test_without_resting_norms_the_test_above_would_fail(name: str) -> None:
    net, tuning = family(name), FineTuning(frozen_stages=2)
    tuning.apply(net, 0)
    net.train()
    before = snapshot(net)
    net(torch.rand(4, 3, 64, 64))
    has_statistics = any("running_mean" in entry for entry in before)
    assert bool(moved(net, before)) == has_statistics


def test_train_then_rest_keeps_frozen_norms_at_rest() -> None:
    net = family("densenet")
    FineTuning(frozen_stages=2).apply(net, 0)
    net.train()
    rest(net)
    assert not net.get_submodule("features.norm0").training
    assert net.get_submodule("features.norm5").training


def test_freezing_depends_on_the_epoch_alone() -> None:
    tuning = FineTuning(frozen_stages=3, thaw_epochs=[2, 2, 5])
    net = family("convnext")
    for epoch, frozen in (
        (0, {0, 1, 2, 3}),
        (9, set()),
        (2, {0, 1}),
        (5, set()),
        (1, {0, 1, 2, 3}),
    ):
        tuning.apply(net, epoch)
        stands = {n for n, p in net.named_parameters() if not p.requires_grad}
        assert {stages(net)[name] for name in stands} == frozen, epoch


def test_thawed_layers_move_again() -> None:
    net, tuning = family("densenet"), FineTuning(frozen_stages=1, thaw_epochs=[1])
    train_two_steps(net, tuning, 0)
    before = snapshot(net)
    train_two_steps(net, tuning, 1)
    assert {"features.norm0.running_mean", "features.conv0.weight"} <= moved(net, before)


def test_what_never_trains_is_not_given_to_the_optimizer() -> None:
    net = family("convnext")
    groups = FineTuning(frozen_stages=2).groups(net, 0.1, 0.0)
    given = sum(p.numel() for group in groups for p in group["params"])
    assert given == sum(p.numel() for n, p in net.named_parameters() if stages(net)[n] > 2)


def test_what_thaws_later_is_given_from_the_start() -> None:
    net = family("convnext")
    groups = FineTuning(frozen_stages=2, thaw_epochs=[3, 6]).groups(net, 0.1, 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


def test_last_layers_train() -> None:
    net = family("densenet")
    FineTuning(trainable_layers=3).apply(net, 0)
    trains = {n.rpartition(".")[0] for n, p in net.named_parameters() if p.requires_grad}
    assert trains == {"features.denseblock4.denselayer2.conv2", "features.norm5", "classifier"}


def test_norms_and_biases_are_not_decayed() -> None:
    net = family("convnext")
    decayed = {
        id(p) for g in FineTuning().groups(net, 0.1, 0.5) if g["weight_decay"] for p in g["params"]
    }
    for name, parameter in net.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name


def test_rates_fall_with_depth_and_the_head_has_its_own() -> None:
    net = backbones.build("test_vit", 3)
    rates = {
        id(p): g["lr"]
        for g in FineTuning(layer_decay=0.5, head_lr=10).groups(net, 1.0, 0.0)
        for p in g["params"]
    }
    named = {name: rates[id(p)] for name, p in net.named_parameters()}
    assert named["head.weight"] == 10
    assert named["blocks.5.mlp.fc1.weight"] == 0.5
    assert named["blocks.0.mlp.fc1.weight"] == 0.5**6
    assert named["patch_embed.proj.weight"] == 0.5**7


def test_the_neutral_setting_is_one_group() -> None:
    (group,) = FineTuning().groups(family("convnext"), 0.1, 0.0)
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.0)


def test_table_says_what_trains_from_when_at_which_rate() -> None:
    net = family("convnext")
    rows = FineTuning(frozen_stages=2, thaw_epochs=[3], head_lr=3).table(net, 0.1)
    said = {row[0]: row[2:] for row in rows}
    assert said["stem (frozen)"] == said["stage 1 (frozen)"] == (None, 0.0)
    assert said["stage 2"] == (3, 0.1)
    assert said["stage 3"] == said["stage 4"] == (0, 0.1)
    assert said["head"] == (0, pytest.approx(0.3))
    assert sum(row[1] for row in rows) == sum(p.numel() for p in net.parameters())


def test_table_of_last_layers() -> None:
    net = family("densenet")
    said = {row[0]: row[1:] for row in FineTuning(trainable_layers=3).table(net, 0.1)}
    assert said["stage 4 (frozen)"][1] is None
    assert said["stage 4"][1] == 0
    assert said["head"][2] == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen_stages": -1}, "frozen_stages: -1 is not at least 0"),
        ({"trainable_layers": 0}, "trainable_layers: 0 is not at least 1"),
        ({"frozen_stages": 1, "trainable_layers": 2}, "not both"),
        ({"frozen_stages": 1, "thaw_epochs": [1, 2]}, "thaws more than the frozen_stages 1"),
        ({"head_lr": 0.0}, r"head_lr: 0\.0 is not above 0"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuning(**settings)


def test_more_stages_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"5 is not in 0\.\.4, the stages of ConvNeXt"):
        FineTuning(frozen_stages=5).apply(family("convnext"), 0)


def test_network_without_stages() -> None:
    with pytest.raises(ValueError, match="Linear does not say its stages"):
        FineTuning(frozen_stages=1).apply(nn.Linear(1, 1), 0)
