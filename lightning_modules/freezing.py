"""Which parameters train, from which epoch and at which learning rate."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_modules import backbones

ParamGroup = dict[str, object]  # of an optimizer


@dataclass(frozen=True)
class FineTuning:
    """Frozen layers and layer-wise learning rates; the defaults train everything at one rate.

    Args:
        frozen_stages: number of stages (as timm groups them) that are frozen, with the stem.
        trainable_layers: train only the last layers that own weights, this many, the head
            included; null trains all layers.
        unfreeze_epochs: epochs at which one more frozen stage starts to train, the deepest first;
            the stem follows with the last stage.
        layer_decay: factor of the learning rate per layer group, counted from the head down.
        head_lr_ratio: learning rate of the head divided by `lr`.
        frozen_statistics: whether batch norms keep their running statistics and use them in
            training as well: those of small batches would differ from the pretrained ones, for
            which a fitted head is made. Their weights train.
    """

    frozen_stages: int = 0
    trainable_layers: int | None = None
    unfreeze_epochs: list[int] = field(default_factory=list)
    layer_decay: float = 1.0
    head_lr_ratio: float = 1.0
    frozen_statistics: bool = False

    def __post_init__(self) -> None:
        stages, layers = self.frozen_stages, self.trainable_layers
        require("fine_tuning.frozen_stages", stages, stages >= 0, "at least 0")
        require("fine_tuning.trainable_layers", layers, layers is None or layers >= 1, "at least 1")
        if layers is not None and stages:
            raise ValueError("fine_tuning: give frozen_stages or trainable_layers, not both")
        if len(self.unfreeze_epochs) > stages:
            problem = f"{self.unfreeze_epochs} has more entries than frozen_stages ({stages})"
            raise ValueError(f"fine_tuning.unfreeze_epochs: {problem}")
        for name in ("layer_decay", "head_lr_ratio"):
            require(f"fine_tuning.{name}", getattr(self, name), getattr(self, name) > 0, "above 0")

    def frozen_parameters(self, net: nn.Module, epoch: float = math.inf) -> set[str]:
        """Names of the parameters that are frozen in an epoch, or by default in all epochs."""
        if self.trainable_layers is not None:
            layers = [n for n, m in net.named_modules() if list(m.parameters(recurse=False))]
            last, names = layers[-self.trainable_layers :], dict(net.named_parameters())
            return {name for name in names if name.rpartition(".")[0] not in last}
        frozen = self.frozen_stages - sum(start <= epoch for start in self.unfreeze_epochs)
        if frozen == 0:
            return set()
        stages = parameter_stages(net)
        count, most = self.frozen_stages, max(stages.values()) - 1
        allowed = f"in 0..{most}, the stages of {type(net).__name__} before its head"
        require("fine_tuning.frozen_stages", count, count <= most, allowed)
        return {name for name, stage in stages.items() if stage <= frozen}

    def prepare(self, net: nn.Module, ddp_kwargs: dict[str, object] | None) -> None:
        """Disables gradients of parameters that never train; call it before DDP wraps `net`.

        `ddp_kwargs` are None on one process. ValueError if parameters that unfreeze later need
        `find_unused_parameters=True` in them.
        """
        finds_unused = ddp_kwargs is None or ddp_kwargs.get("find_unused_parameters")
        if self.unfreeze_epochs and not finds_unused:
            setting = f"fine_tuning.unfreeze_epochs: {self.unfreeze_epochs} on several processes"
            raise ValueError(f"{setting} needs --trainer.strategy ddp_find_unused_parameters_true")
        frozen = self.frozen_parameters(net)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in frozen)

    def apply(self, net: nn.Module, epoch: int) -> None:
        """Sets which parameters of `net` are frozen in a training epoch, whatever it was before."""
        initially, now = self.frozen_parameters(net, -1), self.frozen_parameters(net, epoch)
        for name, parameter in net.named_parameters():
            if name in initially:
                parameter.requires_grad_(name not in now)
        net.train()  # after a validation Lightning restores the modes of the epoch before
        self.set_frozen_layers_to_eval(net)

    def set_frozen_layers_to_eval(self, net: nn.Module) -> None:
        """Puts layers whose own parameters are all frozen into evaluation mode, batch norms too.

        With `frozen_statistics`, all other batch norms as well.
        """
        for layer in net.modules():
            own = list(layer.parameters(recurse=False))
            is_frozen = own and not any(parameter.requires_grad for parameter in own)
            if is_frozen or (self.frozen_statistics and isinstance(layer, _BatchNorm)):
                layer.eval()

    def param_groups(self, net: nn.Module, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimizer groups of all parameters that ever train; norms and biases have no decay.

        Not timm's `param_groups_layer_decay`: it omits parameters that are frozen now but train
        later, and its `lr_scale` has an effect with timm's own schedulers only.
        """
        frozen, ratios = self.frozen_parameters(net), self._lr_ratios(net)
        without_decay: set[str] = getattr(net, "no_weight_decay", set)()
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in net.named_parameters():
            if name not in frozen:
                has_decay = parameter.ndim > 1 and name not in without_decay
                decay = weight_decay if has_decay else 0.0
                groups.setdefault((ratios[name] * lr, decay), []).append(parameter)
        return [{"params": p, "lr": r, "weight_decay": d} for (r, d), p in groups.items()]

    def summary(self, net: nn.Module, lr: float) -> list[tuple[str, int, int | None, float]]:
        """Rows (part, parameters, first epoch that trains it or None, largest learning rate)."""
        ratios, parts = self._lr_ratios(net), _part_names(net)
        rows: dict[str, tuple[int, int | None, float]] = {}
        epochs = [0, *sorted(self.unfreeze_epochs)]
        frozen = [(epoch, self.frozen_parameters(net, epoch)) for epoch in epochs]
        for name, parameter in net.named_parameters():
            first = next((epoch for epoch, names in frozen if name not in names), None)
            part = parts[name] if first is not None else f"{parts[name]} (frozen)"
            count, _, rate = rows.get(part, (0, None, 0.0))
            rate = max(rate, 0.0 if first is None else ratios[name] * lr)
            rows[part] = (count + parameter.numel(), first, rate)
        return [(part, *row) for part, row in rows.items()]

    def _lr_ratios(self, net: nn.Module) -> dict[str, float]:
        """Learning rate of each parameter divided by the base rate."""
        heads = tuple(f"{name}." for name in backbones.head_names(net))
        if self.layer_decay == 1:
            depths = {name: 0 for name, _ in net.named_parameters()}
        else:
            depths = parameter_stages(net, coarse=False)
        last = max(depths.values())
        ratios = {name: self.layer_decay ** (last - depth) for name, depth in depths.items()}
        return {n: r * self.head_lr_ratio if n.startswith(heads) else r for n, r in ratios.items()}


def require(name: str, value: object, is_valid: bool, allowed: str) -> None:
    """ValueError that names a setting, its value and what is allowed, unless it is valid."""
    if not is_valid:
        raise ValueError(f"{name}: {value} is not {allowed}")


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode and afterwards restores the mode of every layer."""
    modes = [(layer, layer.training) for layer in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for layer, is_training in modes:
            layer.training = is_training


def parameter_stages(net: nn.Module, coarse: bool = True) -> dict[str, int]:
    """Stage (or with `coarse` False block) of each parameter: 0 is the stem, the last the head."""
    matcher = getattr(net, "group_matcher", None)
    if matcher is None:
        raise ValueError(f"fine_tuning: {type(net).__name__} does not define group_matcher")
    return dict(group_parameters(net, matcher(coarse=coarse), reverse=True))


def _part_names(net: nn.Module) -> dict[str, str]:
    """Part of each parameter: stem, stage N or head; without stages its top-level module."""
    if getattr(net, "group_matcher", None) is None:
        return {name: name.split(".")[0] for name, _ in net.named_parameters()}
    stages = parameter_stages(net)
    ends = {0: "stem", max(stages.values()): "head"}
    return {name: ends.get(stage, f"stage {stage}") for name, stage in stages.items()}
