"""Backbones by name: timm's networks, and ours, built at a given input size with given weights."""

import difflib

import timm
import torch
from torch import nn

from lightning_modules import pretrained as weights
from lightning_modules import residual_attention

OURS = [residual_attention.ResidualAttention]  # importing them tells timm their names
COMMERCIAL = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "cc-by-4.0")
SIZES = range(32, 513, 32)  # what the message lists when a backbone cannot take a size


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
    """The network ``name`` with ``num_classes`` logits, on images of ``image_size`` pixels.

    ``pretrained`` is False (no network access), True (timm downloads the weights of the name's
    tag) or the path of a weight file. ``image_size`` None is the size of the published weights;
    a network whose size is fixed is built for the size asked. ``options`` are timm's own
    (``drop_rate``, ``drop_path_rate``, ``in_chans``, ``pad_type``, ...). ``commercial_only``
    refuses published weights that may not be used commercially. ``compile`` compiles at the first
    call and leaves the names of the weights as they are.
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
        _recompute(name, net)
    if compile:
        net.compile()
    return net.to(memory_format=torch.channels_last) if channels_last else net


def nearest(name: str) -> list[str]:
    """Up to five known names closest to ``name``: tags of its architecture, else architectures."""
    architecture = name.split(".")[0]
    if timm.is_model(architecture):
        return difflib.get_close_matches(name, timm.list_pretrained(f"{architecture}.*"), 5, 0)
    return difflib.get_close_matches(architecture, timm.list_models(), 5, 0.5)


def input_size(name: str) -> int:
    """Side in pixels of the images that the published weights of ``name`` were made for."""
    _require_known(name)
    found = timm.models.get_pretrained_cfg(name)
    return int(found.input_size[-1]) if found else 224


def license(name: str) -> str:
    """License of the published weights of ``name``, as timm records it, or "unknown"."""
    _require_known(name)
    return str(timm.models.get_pretrained_cfg(name).license or "unknown")


def is_commercial(license: str) -> bool:
    """Whether a license is known to allow commercial use."""
    return license in COMMERCIAL


def sizes(name: str, **options: object) -> list[int]:
    """Multiples of 32 up to 512 that ``name`` takes as ``image_size``."""
    return [size for size in SIZES if _refusal(name, size, options) is None]


def _require_known(name: str) -> None:
    try:
        known = timm.is_model(name) and timm.models.get_pretrained_cfg(name) is not None
    except RuntimeError:  # the architecture exists, the tag behind the dot does not
        known = False
    if not known:
        close = ", ".join(nearest(name)) or "none; `consilium backbones` lists all"
        raise ValueError(f"backbone: unknown name {name!r}; the nearest are: {close}")


def _require_size(name: str, size: int, options: dict[str, object]) -> None:
    reason = _refusal(name, size, options)
    if reason is not None:
        fits = ", ".join(str(fit) for fit in sizes(name, **options)) or "none of those tried"
        raise ValueError(f"image_size: {name} cannot take {size} ({reason}); it takes {fits}")


def _refusal(name: str, size: int, options: dict[str, object]) -> str | None:
    """Why an image of ``size`` does not go through, tried without memory or arithmetic."""
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


def _recompute(name: str, net: nn.Module) -> None:
    switch = getattr(net, "set_grad_checkpointing", None)
    if switch is None:
        raise ValueError(f"grad_checkpointing: {name} has no stages to recompute; use false")
    switch(True)


def _download_error(name: str, error: Exception) -> ValueError:
    found = timm.models.get_pretrained_cfg(name)
    source = found.hf_hub_id or found.url
    if not source:
        return ValueError(f"pretrained: timm has no weights for {name!r}: {error}")
    return ValueError(
        f"pretrained: the weights of {name!r} could not be downloaded ({type(error).__name__}). "
        f"On a machine with network run `hf download {source} model.safetensors --local-dir .`, "
        f"then set pretrained: path/to/model.safetensors"
    )
