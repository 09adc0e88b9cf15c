"""Backbones by name: networks of timm and of this project, at an input size, with weights."""

import difflib

import timm
import torch
from torch import nn

from lightning_modules import pretrained as weights
from lightning_modules import residual_attention

OWN_BACKBONES = [residual_attention.ResidualAttention]  # importing a module registers it in timm
COMMERCIAL_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "cc-by-4.0")
SIZES = range(32, 513, 32)  # tried to list the sizes that a backbone accepts


def build(
    name: str,
    num_classes: int,
    *,
    pretrained: bool | str = False,
    image_size: int | None = None,
    grad_checkpointing: bool = False,
    channels_last: bool = False,
    compile: bool = False,
    commercial_only: bool = False,
    **options: object,
) -> nn.Module:
    """A timm network with `num_classes` outputs for images of `image_size` pixels.

    `pretrained` is False (no network access), True (timm downloads the weights of the name's tag)
    or the path of a weight file. `image_size` None is the size of the published weights. `options`
    are arguments of the timm model (`drop_rate`, `drop_path_rate`, `in_chans`, `pad_type`, ...).
    `commercial_only` refuses published weights whose license forbids commercial use. `compile`
    compiles at the first call and does not change the names of the weights.
    """
    _require_known(name)
    if commercial_only and pretrained is not False and not is_commercial(license(name)):
        raise ValueError(f"commercial_only: the weights of {name} are under {license(name)!r}")
    if image_size is not None:
        _require_size(name, image_size, options)
    net = _create(name, num_classes, image_size, options, download=pretrained is True)
    if isinstance(pretrained, str):
        weights.load(net, pretrained)
    if grad_checkpointing:
        _enable_grad_checkpointing(name, net)
    if compile:
        net.compile()
    return net.to(memory_format=torch.channels_last) if channels_last else net


def nearest(name: str) -> list[str]:
    """Up to five known names closest to `name`: tags of its architecture, else architectures."""
    architecture = name.split(".")[0]
    if timm.is_model(architecture):
        return difflib.get_close_matches(name, timm.list_pretrained(f"{architecture}.*"), 5, 0)
    return difflib.get_close_matches(architecture, timm.list_models(), 5, 0.5)


def input_size(name: str) -> int:
    """Input size in pixels of the published weights of `name`."""
    _require_known(name)
    config = timm.models.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config else 224


def license(name: str) -> str:
    """License of the published weights of `name`, as timm records it, or "unknown"."""
    _require_known(name)
    return str(timm.models.get_pretrained_cfg(name).license or "unknown")


def is_commercial(license: str) -> bool:
    """Whether a license is known to allow commercial use."""
    return license in COMMERCIAL_LICENSES


def sizes(name: str, **options: object) -> list[int]:
    """Multiples of 32 up to 512 that `name` accepts as `image_size`."""
    return [size for size in SIZES if _size_error(name, size, options) is None]


def _require_known(name: str) -> None:
    try:
        known = timm.is_model(name) and timm.models.get_pretrained_cfg(name) is not None
    except RuntimeError:  # the architecture exists, the tag behind the dot does not
        known = False
    if not known:
        close = ", ".join(nearest(name)) or "none; `consilium backbones` lists all"
        raise ValueError(f"backbone: unknown name {name!r}; the nearest are: {close}")


def _require_size(name: str, size: int, options: dict[str, object]) -> None:
    reason = _size_error(name, size, options)
    if reason is not None:
        accepted = ", ".join(map(str, sizes(name, **options))) or "none of those tried"
        raise ValueError(
            f"image_size: {name} does not accept {size} ({reason}); it accepts {accepted}"
        )


def _size_error(name: str, size: int, options: dict[str, object]) -> str | None:
    """Error of a forward pass at `size` on the meta device, or None."""
    try:
        with torch.device("meta"), torch.no_grad():
            net = _create(name, 2, size, options, download=False).eval()
            channels = int(str(options.get("in_chans", 3)))
            net(torch.zeros(1, channels, size, size))
    except (RuntimeError, AssertionError, ZeroDivisionError) as error:
        return str(error).split("\n")[0] or type(error).__name__
    return None


def _create(
    name: str, num_classes: int, size: int | None, options: dict[str, object], download: bool
) -> nn.Module:
    fixed = timm.models.get_pretrained_cfg(name).fixed_input_size
    sized = {"img_size": size} if fixed and size is not None else {}
    arguments = {**sized, **options}
    try:
        net: nn.Module = timm.create_model(
            name, pretrained=download, num_classes=num_classes, **arguments
        )
    except TypeError as error:
        raise ValueError(f"backbone_args: {name} refuses {sorted(options)}: {error}") from error
    except (OSError, RuntimeError) as error:
        if not download:
            raise
        raise _download_error(name, error) from error
    return net


def _enable_grad_checkpointing(name: str, net: nn.Module) -> None:
    switch = getattr(net, "set_grad_checkpointing", None)
    if switch is None:
        raise ValueError(f"grad_checkpointing: {name} does not support it; use false")
    switch(True)


def _download_error(name: str, error: Exception) -> ValueError:
    config = timm.models.get_pretrained_cfg(name)
    source = config.hf_hub_id or config.url
    if not source:
        return ValueError(f"pretrained: timm has no weights for {name!r}: {error}")
    return ValueError(
        f"pretrained: the weights of {name!r} could not be downloaded ({type(error).__name__}). "
        f"On a machine with network run `hf download {source} model.safetensors --local-dir .`, "
        f"then set pretrained: path/to/model.safetensors"
    )
