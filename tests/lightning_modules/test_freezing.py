"""Freezing bit for bit on four families, unfreezing, and learning rates by depth."""

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from lightning_modules import backbones
from lightning_modules.freezing import (
    FineTuning,
    eval_mode,
    parameter_stages,
)

FAMILIES = {
    "densenet": ("densenet121", {"growth_rate": 4, "block_config": [2, 2, 2, 2]}),
    "convnext": ("test_convnext", {}),
    "swin": ("swinv2_tiny_window8_256", {"embed_dim": 12, "depths": [1, 1, 2, 1]}),
    "hybrid": ("test_coatnet", {}),
}


def build_family(name: str) -> nn.Module:
    backbone, options = FAMILIES[name]
    torch.manual_seed(0)
    return backbones.build(backbone, 3, image_size=64, **options)


def train_two_steps(net: nn.Module, fine_tuning: FineTuning, epoch: int) -> None:
    optimizer = torch.optim.AdamW(fine_tuning.param_groups(net, 0.1, 0.1))
    net.train()
    fine_tuning.apply(net, epoch)
    for seed in range(2):
        image = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        net(image).square().sum().backward()
        optimizer.step()


def changed_names(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in net.state_dict().items() if not value.equal(before[name])}


def copy_state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def frozen_names(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_stages_do_not_change_a_bit(name: str) -> None:
    net = build_family(name)
    before, stages = copy_state(net), parameter_stages(net)
    train_two_steps(net, FineTuning(frozen_stages=2), 0)
    frozen_layers = {weight.rpartition(".")[0] for weight, stage in stages.items() if stage <= 2}
    changed = changed_names(net, before)
    assert not {entry for entry in changed if entry.rpartition(".")[0] in frozen_layers}
    trained = {w for w, stage in stages.items() if stage > 2 and "bias_table" not in w}
    assert trained <= changed


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_norms_would_change_without_eval_mode(name: str) -> None:
    net = build_family(name)
    FineTuning(frozen_stages=2).apply(net, 0)
    net.train()
    before = copy_state(net)
    net(torch.rand(4, 3, 64, 64))
    has_statistics = any("running_mean" in entry for entry in before)
    assert bool(changed_names(net, before)) == has_statistics


def test_frozen_norms_can_be_set_to_eval_after_train() -> None:
    net = build_family("densenet")
    FineTuning(frozen_stages=2).apply(net, 0)
    net.train()
    FineTuning().set_frozen_layers_to_eval(net)
    assert not net.get_submodule("features.norm0").training
    assert net.get_submodule("features.norm5").training


@pytest.mark.parametrize("name", ["densenet", "hybrid"])
def test_batch_norms_keep_their_statistics_if_asked_while_their_weights_train(name: str) -> None:
    net = build_family(name)
    before = copy_state(net)
    train_two_steps(net, FineTuning(frozen_statistics=True), 0)
    changed = changed_names(net, before)
    statistics = {entry for entry in before if "running_" in entry or "num_batches" in entry}
    assert statistics
    assert not changed & statistics
    assert changed >= {n for n, p in net.named_parameters() if p.ndim > 1}


def test_eval_mode_restores_every_layer_after_an_error() -> None:
    net = build_family("convnext")
    net.get_submodule("stages.0").eval()
    before = [layer.training for layer in net.modules()]
    modes = []

    def fail() -> None:
        with eval_mode(net):
            modes.extend(layer.training for layer in net.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any(modes)
    assert [layer.training for layer in net.modules()] == before


def test_freezing_depends_on_the_epoch_only() -> None:
    fine_tuning = FineTuning(frozen_stages=3, unfreeze_epochs=[2, 2, 5])
    net = build_family("convnext")
    for epoch, expected in (
        (0, {0, 1, 2, 3}),
        (9, set()),
        (2, {0, 1}),
        (5, set()),
        (1, {0, 1, 2, 3}),
    ):
        fine_tuning.apply(net, epoch)
        stages = parameter_stages(net)
        assert {stages[name] for name in frozen_names(net)} == expected, epoch


def test_unfrozen_layers_change_again() -> None:
    net, fine_tuning = build_family("densenet"), FineTuning(frozen_stages=1, unfreeze_epochs=[1])
    train_two_steps(net, fine_tuning, 0)
    before = copy_state(net)
    train_two_steps(net, fine_tuning, 1)
    assert {"features.norm0.running_mean", "features.conv0.weight"} <= changed_names(net, before)


def test_the_optimizer_has_no_parameters_that_never_train() -> None:
    net = build_family("convnext")
    groups = FineTuning(frozen_stages=2).param_groups(net, 0.1, 0.0)
    count, stages = sum(p.numel() for g in groups for p in g["params"]), parameter_stages(net)
    assert count == sum(p.numel() for n, p in net.named_parameters() if stages[n] > 2)


def test_the_optimizer_has_parameters_that_are_unfrozen_later() -> None:
    net = build_family("convnext")
    groups = FineTuning(frozen_stages=2, unfreeze_epochs=[3, 6]).param_groups(net, 0.1, 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


def test_trainable_layers_are_the_last_ones() -> None:
    net = build_family("densenet")
    FineTuning(trainable_layers=3).apply(net, 0)
    trained = {n.rpartition(".")[0] for n, p in net.named_parameters() if p.requires_grad}
    assert trained == {"features.denseblock4.denselayer2.conv2", "features.norm5", "classifier"}


def test_norms_and_biases_have_no_weight_decay() -> None:
    net = build_family("convnext")
    groups = FineTuning().param_groups(net, 0.1, 0.5)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in net.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name


def test_learning_rates_decrease_with_depth_and_the_head_has_its_own() -> None:
    net = backbones.build("test_vit", 3)
    groups = FineTuning(layer_decay=0.5, head_lr_ratio=10).param_groups(net, 1.0, 0.0)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in net.named_parameters()}
    assert by_name["head.weight"] == 10
    assert by_name["blocks.5.mlp.fc1.weight"] == 0.5
    assert by_name["blocks.0.mlp.fc1.weight"] == 0.5**6
    assert by_name["patch_embed.proj.weight"] == 0.5**7


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_parameter_groups_equal_those_of_timm(name: str) -> None:
    net = backbones.build(name, 3)
    timm_groups = param_groups_layer_decay(
        net, 0.3, no_weight_decay_list=net.no_weight_decay() if name == "test_vit" else (),
        layer_decay=0.7,
    )  # fmt: skip
    ours = FineTuning(layer_decay=0.7).param_groups(net, 0.1, 0.3)
    expected = {id(p): (g["lr_scale"] * 0.1, g["weight_decay"]) for g in timm_groups
                for p in g["params"]}  # fmt: skip
    assert {id(p): (pytest.approx(g["lr"]), g["weight_decay"]) for g in ours
            for p in g["params"]} == expected  # fmt: skip


def test_the_defaults_give_one_group() -> None:
    (group,) = FineTuning().param_groups(build_family("convnext"), 0.1, 0.0)
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.0)


def test_summary_lists_first_epoch_and_learning_rate_of_each_stage() -> None:
    net = build_family("convnext")
    fine_tuning = FineTuning(frozen_stages=2, unfreeze_epochs=[3], head_lr_ratio=3)
    summary = fine_tuning.summary(net, 0.1)
    rows = {row[0]: row[2:] for row in summary}
    assert rows["stem (frozen)"] == rows["stage 1 (frozen)"] == (None, 0.0)
    assert rows["stage 2"] == (3, 0.1)
    assert rows["stage 3"] == rows["stage 4"] == (0, 0.1)
    assert rows["head"] == (0, pytest.approx(0.3))
    assert sum(row[1] for row in summary) == sum(p.numel() for p in net.parameters())


def test_summary_of_the_last_layers() -> None:
    net = build_family("densenet")
    rows = {row[0]: row[1:] for row in FineTuning(trainable_layers=3).summary(net, 0.1)}
    assert rows["stage 4 (frozen)"][1] is None
    assert rows["stage 4"][1] == 0
    assert rows["head"][2] == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frozen_stages": -1}, "frozen_stages: -1 is not at least 0"),
        ({"trainable_layers": 0}, "trainable_layers: 0 is not at least 1"),
        ({"frozen_stages": 1, "trainable_layers": 2}, "not both"),
        (
            {"frozen_stages": 1, "unfreeze_epochs": [1, 2]},
            r"unfreeze_epochs: \[1, 2\] has more entries than frozen_stages \(1\)",
        ),
        ({"head_lr_ratio": 0.0}, r"head_lr_ratio: 0\.0 is not above 0"),
    ],
)
def test_values_out_of_range_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuning(**settings)


def test_more_frozen_stages_than_a_network_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 is not in 0\.\.4, the stages of ConvNeXt"):
        FineTuning(frozen_stages=5).apply(build_family("convnext"), 0)


def test_freezing_stages_of_a_network_without_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear does not define group_matcher"):
        FineTuning(frozen_stages=1).apply(nn.Linear(1, 1), 0)
