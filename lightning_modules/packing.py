"""Packed weights: a bitmap of the nonzero values, and those values in float16."""

import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from evaluation.files import naming

FORMAT = 2
SUFFIX = ".packed.safetensors"
KEY = "consilium.packed"
IDS = ("train_ids", "val_ids")  # fields of `checkpoints.Block` that are tensors
BITMAP, DENSE = "bitmap", "dense"
MAX_GROWTH = 200  # memory of a network over the size of its file, at one weight of 100 not 0
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


def memory_limit(file_size: int) -> int:
    """Most bytes that the network of a file may need; more is a damaged file or an attack."""
    return MAX_GROWTH * file_size + (64 << 20)


def unpack(packed: Weights, entries: Iterable[Entry]) -> Weights:
    """The state dict that was packed, in its dtypes; values as after `to_stored_precision`.

    Memory is allocated only for as many values as the entries state and the file can have.
    """
    weights = [_parse_entry(*entry) for entry in entries]
    file_size = sum(tensor.nbytes for tensor in packed.values())
    needed = sum(math.prod(shape) * dtype.itemsize for _, shape, dtype, *_ in weights)
    if needed > memory_limit(file_size):  # before allocation
        raise ValueError(f"its weights take {needed:,} bytes, the file has only {file_size:,}")
    length = sum(bitmap_bytes for *_, bitmap_bytes in weights)
    compressed = packed["bitmaps"].numpy().tobytes()
    bitmaps = np.frombuffer(zlib.decompressobj().decompress(compressed, length + 1), np.uint8)
    if len(bitmaps) != length:
        raise ValueError(f"its bitmaps have not the {length:,} bytes of its weights")
    unread = dict(packed)  # by dtype, the values of the weights that are still to be unpacked
    state = {}
    for name, shape, dtype, stored_dtype, bitmap_bytes in weights:
        size, values = math.prod(shape), unread[stored_dtype]
        nonzero = np.ones(size, bool)
        if bitmap_bytes:
            nonzero = np.unpackbits(bitmaps[:bitmap_bytes], count=size).astype(bool)
        bitmaps, count = bitmaps[bitmap_bytes:], int(nonzero.sum())
        if count > len(values):
            raise ValueError(f"{name} has {count} values, the file has fewer")
        flat = torch.zeros(size, dtype=values.dtype)
        flat[torch.from_numpy(nonzero)], unread[stored_dtype] = values[:count], values[count:]
        state[name] = flat.reshape(shape).to(dtype)
    return state


def _parse_entry(
    name: str, dtype: str, shape: list[int], stored_dtype: str, layout: str
) -> tuple[str, list[int], torch.dtype, str, int]:
    """Name, shape, dtype, stored dtype and bytes of the bitmap; ValueError if invalid."""
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"{name} has the unknown dtype {dtype!r}")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"{name} has the shape {shape}")
    return name, shape, kind, stored_dtype, -(-math.prod(shape) // 8) if layout == BITMAP else 0


def to_bytes(state: Weights, block: dict[str, Any], ids: dict[str, Tensor]) -> bytes:
    """The bytes of a safetensors file with `state` packed (nonzero bitmap + float16).

    `block` is metadata, stored in the header; `ids` are hashes of training and val images.
    """
    packed, entries = pack(state)
    header = {"format": FORMAT, "weights": entries, "block": block}
    return save(packed | ids, {KEY: json.dumps(header)})


def read(path: Path) -> tuple[dict[str, Any], Weights]:
    """The block (metadata, see `to_bytes`) and the state dict of a packed file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "null"))
            packed = {name: file.get_tensor(name) for name in list(file.keys())}
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a packed file ({error})") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        version = f"format {header.get('format')!r}" if isinstance(header, dict) else "no header"
        raise ValueError(f"{path}: {version}, this version reads packed files of format {FORMAT}")
    with naming(path):
        ids = {name: packed[name] for name in IDS}
        return header["block"] | ids, unpack(packed, header["weights"])


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
