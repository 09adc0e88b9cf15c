"""Which weights train, when, and at which rate: freezing and layer-wise learning rates."""

from dataclasses import dataclass, field

from timm.models import group_parameters
from torch import nn

from lightning_modules import pretrained


@dataclass(frozen=True)
class FineTuning:
    """What of a network trains; the neutral setting trains everything at one rate.

    Args:
        frozen_stages: the stem and so many stages after it (as timm groups them) are frozen.
        trainable_layers: only the last so many layers that own weights train, the head among them;
            null trains all.
        thaw_epochs: from each of these epochs on one frozen stage less, the deepest first and the
            stem with the last.
        layer_decay: multiplies the rate once for each layer group between a weight and the head.
        head_lr: multiplies the rate of the head.
    """

    frozen_stages: int = 0
    trainable_layers: int | None = None
    thaw_epochs: list[int] = field(default_factory=list)
    layer_decay: float = 1.0
    head_lr: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings outside their range or at odds."""
        if self.frozen_stages < 0:
            raise ValueError(f"tuning.frozen_stages: {self.frozen_stages} is not at least 0")
        if self.trainable_layers is not None and self.trainable_layers < 1:
            raise ValueError(f"tuning.trainable_layers: {self.trainable_layers} is not at least 1")
        if self.trainable_layers is not None and self.frozen_stages:
            raise ValueError("tuning: give frozen_stages or trainable_layers, not both")
        if len(self.thaw_epochs) > self.frozen_stages:
            raise ValueError(
                f"tuning.thaw_epochs: {self.thaw_epochs} thaws more than the "
                f"frozen_stages {self.frozen_stages}"
            )
        for name, value in (("layer_decay", self.layer_decay), ("head_lr", self.head_lr)):
            if value <= 0:
                raise ValueError(f"tuning.{name}: {value} is not above 0")

    def frozen(self, net: nn.Module, epoch: int) -> set[str]:
        """Names of the parameters that stand still in ``epoch``."""
        if self.trainable_layers is not None:
            return _all_but_last(net, self.trainable_layers)
        left = self.frozen_stages - sum(start <= epoch for start in self.thaw_epochs)
        if left == 0:
            return set()
        return {name for name, stage in stages(net, self.frozen_stages).items() if stage <= left}

    def never(self, net: nn.Module) -> set[str]:
        """Names of the parameters that stand still in every epoch."""
        return self.frozen(net, max([0, *self.thaw_epochs]))

    def hold(self, net: nn.Module, ddp: dict[str, object] | None) -> None:
        """Before training: what never trains needs no gradient, so no process waits for one.

        ``ddp`` are the arguments of DistributedDataParallel, None without it. It has to look for
        what is unused when some of the network trains only later.
        """
        if self.thaw_epochs and ddp is not None and not ddp.get("find_unused_parameters"):
            raise ValueError(
                f"tuning.thaw_epochs: {self.thaw_epochs} on several processes needs "
                "--trainer.strategy ddp_find_unused_parameters_true"
            )
        never = self.never(net)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in never)

    def apply(self, net: nn.Module, epoch: int) -> None:
        """Freeze and thaw ``net`` for training ``epoch``, whatever it was before."""
        first, now = self.frozen(net, -1), self.frozen(net, epoch)
        for name, parameter in net.named_parameters():
            if name in first:
                parameter.requires_grad_(name not in now)
        net.train()  # Lightning brings back the modes of before a validation, not of this epoch
        rest(net)

    def groups(self, net: nn.Module, lr: float, weight_decay: float) -> list[dict[str, object]]:
        """Optimizer groups of all that ever trains; norms and biases are not decayed."""
        never = self.never(net)
        shares, undecayed = self._shares(net), _undecayed(net)
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in net.named_parameters():
            if name not in never:
                decay = 0.0 if name in undecayed else weight_decay
                found.setdefault((shares[name] * lr, decay), []).append(parameter)
        return [{"params": p, "lr": r, "weight_decay": d} for (r, d), p in found.items()]

    def table(self, net: nn.Module, lr: float) -> list[tuple[str, int, int | None, float]]:
        """Rows (part, weights, epoch from which it trains, largest rate); None: it never trains."""
        shares, rows = self._shares(net), dict[str, tuple[int, int | None, float]]()
        parts, thaws = _parts(net), [0, *sorted(self.thaw_epochs)]
        frozen = {epoch: self.frozen(net, epoch) for epoch in thaws}
        for name, parameter in net.named_parameters():
            starts = [epoch for epoch in thaws if name not in frozen[epoch]]
            part = parts[name] if starts else f"{parts[name]} (frozen)"
            size, start, rate = rows.get(part, (0, None, 0.0))
            rate = max(rate, shares[name] * lr if starts else 0.0)
            rows[part] = (size + parameter.numel(), starts[0] if starts else start, rate)
        return [(part, *row) for part, row in rows.items()]

    def _shares(self, net: nn.Module) -> dict[str, float]:
        heads = tuple(f"{name}." for name in pretrained.head_names(net))
        names = [name for name, _ in net.named_parameters()]
        depths = dict.fromkeys(names, 0)
        if self.layer_decay != 1.0:
            depths = _grouped(net, coarse=False)
        last = max(depths.values())
        return {
            name: self.head_lr ** name.startswith(heads) * self.layer_decay ** (last - depths[name])
            for name in names
        }


def rest(net: nn.Module) -> None:
    """Put every layer whose own weights all stand still into evaluation mode.

    Called after each ``train()``: batch-norm statistics of frozen layers stay as they are.
    """
    for layer in net.modules():
        own = list(layer.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            layer.eval()


def stages(net: nn.Module, at_least: int = 0) -> dict[str, int]:
    """Stage of each parameter: 0 the stem, then 1, 2, ..., and last the head."""
    found = _grouped(net, coarse=True)
    most = max(found.values()) - 1
    if at_least > most:
        raise ValueError(
            f"tuning.frozen_stages: {at_least} is not in 0..{most}, "
            f"the stages of {type(net).__name__} before its head"
        )
    return found


def _grouped(net: nn.Module, *, coarse: bool) -> dict[str, int]:
    matcher = getattr(net, "group_matcher", None)
    if matcher is None:
        raise ValueError(f"tuning: {type(net).__name__} does not say its stages (group_matcher)")
    found: dict[str, int] = group_parameters(net, matcher(coarse=coarse), reverse=True)
    return found


def _parts(net: nn.Module) -> dict[str, str]:
    """Which stage each parameter belongs to, in words; its first name where there are none."""
    if not hasattr(net, "group_matcher"):
        return {name: name.split(".")[0] for name, _ in net.named_parameters()}
    of = _grouped(net, coarse=True)
    words = {0: "stem", max(of.values()): "head"}
    return {name: words.get(stage, f"stage {stage}") for name, stage in of.items()}


def _all_but_last(net: nn.Module, layers: int) -> set[str]:
    owners = [n for n, m in net.named_modules() if list(m.parameters(recurse=False))]
    last = set(owners[-layers:])
    return {name for name, _ in net.named_parameters() if name.rpartition(".")[0] not in last}


def _undecayed(net: nn.Module) -> set[str]:
    told: set[str] = getattr(net, "no_weight_decay", set)()
    small = {name for name, parameter in net.named_parameters() if parameter.ndim <= 1}
    return small | set(told)
