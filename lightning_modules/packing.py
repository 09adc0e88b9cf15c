"""Packed weights: a bitmap of the nonzero values, and those values in float16."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

FORMAT = 2
SUFFIX = ".packed.safetensors"
KEY = "consilium.packed"
IDS = ("train_ids", "val_ids")  # fields of a checkpoint's block that are tensors of their own
BITMAP, DENSE = "bitmap", "dense"
Weights = dict[str, Tensor]
Entry = list[Any]  # name, dtype in the network, shape, stored dtype, BITMAP or DENSE


def to_stored_precision(state: Weights) -> Weights:
    """`state` in the precision of a packed file: floating-point tensors in float16.

    A tensor with a value that float16 cannot represent (above 65,504) keeps its dtype.
    """
    stored = {}
    for name, tensor in state.items():
        half = tensor.half()
        fits = tensor.is_floating_point() and (half.isfinite() | ~tensor.isfinite()).all()
        stored[name] = half if fits else tensor
    return stored


def pack(state: Weights) -> tuple[Weights, list[Entry]]:
    """The tensors of a packed file, and one entry that describes each weight.

    All values of a dtype are in one tensor. All bitmaps are compressed in another, each from a new
    byte and its highest bit on. A weight has a bitmap if that is shorter. Only +0 counts as zero,
    so that every bit is restored.
    """
    entries: list[Entry] = []
    values: dict[str, list[Tensor]] = {}
    bitmaps = []
    for name, tensor in to_stored_precision(state).items():
        flat, dtype = tensor.detach().cpu().reshape(-1).contiguous(), _dtype_name(tensor)
        value_bytes = flat.view(torch.uint8).reshape(-1, flat.element_size())
        nonzero = (value_bytes != 0).any(dim=1)
        saved_bytes = (len(flat) - int(nonzero.sum())) * flat.element_size()
        has_bitmap = tensor.is_floating_point() and len(flat) / 8 < saved_bytes
        if has_bitmap:
            bitmaps.append(np.packbits(nonzero.numpy()).tobytes())
        values.setdefault(dtype, []).append(flat[nonzero] if has_bitmap else flat)
        layout = BITMAP if has_bitmap else DENSE
        entries.append([name, _dtype_name(state[name]), list(tensor.shape), dtype, layout])
    packed = {dtype: torch.cat(parts) for dtype, parts in values.items()}
    compressed = zlib.compress(b"".join(bitmaps), 9)
    packed["bitmaps"] = torch.frombuffer(bytearray(compressed), dtype=torch.uint8)
    return packed, entries


def unpack(packed: Weights, entries: Iterable[Entry]) -> Weights:
    """The packed state in the dtypes of the network; bit for bit that of `to_stored_precision`."""
    bitmaps = np.frombuffer(zlib.decompress(packed["bitmaps"].numpy().tobytes()), np.uint8)
    unread = dict(packed)  # by dtype, the values of the weights that are still to be unpacked
    state = {}
    for name, dtype, shape, stored_dtype, layout in entries:
        size, values = int(np.prod(shape)), unread[stored_dtype]
        length = -(-size // 8) if layout == BITMAP else 0
        if length > len(bitmaps) or (not length and size > len(values)):  # before allocation
            raise ValueError(f"{name} has {size} values, the file has fewer")
        nonzero = np.ones(size, bool)
        if layout == BITMAP:
            nonzero = np.unpackbits(bitmaps[:length], count=size).astype(bool)
        bitmaps, count = bitmaps[length:], int(nonzero.sum())
        flat = torch.zeros(size, dtype=getattr(torch, stored_dtype))
        flat[torch.from_numpy(nonzero)], unread[stored_dtype] = values[:count], values[count:]
        state[name] = flat.reshape(shape).to(getattr(torch, dtype))
    return state


def to_bytes(state: Weights, block: dict[str, Any], ids: Weights) -> bytes:
    """A safetensors file of packed weights and ids, with the plain values of `block` as header."""
    packed, entries = pack(state)
    header = {"format": FORMAT, "weights": entries, "block": block}
    return save(packed | ids, {KEY: json.dumps(header)})


def read(path: Path) -> tuple[dict[str, Any], Weights]:
    """The block and the state dict of a packed file; no code in it is run."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "null"))
            packed = {name: file.get_tensor(name) for name in list(file.keys())}
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a packed file ({error})") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        version = f"format {header.get('format')!r}" if isinstance(header, dict) else "no header"
        raise ValueError(f"{path}: {version}, this version reads packed files of format {FORMAT}")
    try:
        ids = {name: packed[name] for name in IDS}
        return header["block"] | ids, unpack(packed, header["weights"])
    except (zlib.error, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from None


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
