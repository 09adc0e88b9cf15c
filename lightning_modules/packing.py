"""Weights in little space: a bitmap of what is not 0, and the numbers themselves in float16."""

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

FORMAT = 1
SUFFIX = ".packed.safetensors"
KEY = "consilium.packed"
IDS = ("train_ids", "val_ids")  # hashes, tensors of their own; early files have no val_ids
BITMAP, WHOLE = "bitmap", "whole"
DAMAGE = (zlib.error, AttributeError, KeyError, TypeError, ValueError, RuntimeError)
Weights = dict[str, Tensor]
Entry = list[Any]  # name, type in the network, shape, type in the file, bitmap or whole


def stored(state: Weights) -> Weights:
    """What of `state` a packed file keeps: floating numbers in float16, all others as they are.

    A tensor with a number that float16 cannot hold (above 65,504) stays as it is.
    """
    return {name: _stored(tensor) for name, tensor in state.items()}


def pack(state: Weights) -> tuple[Weights, list[Entry]]:
    """The tensors of a packed file, and what they are, one entry a weight.

    All numbers of a type lie in one tensor, all bitmaps (first entry in the highest bit of a byte,
    each weight from a new byte on) deflated in another. A weight has a bitmap where that is
    shorter. Only +0 counts as 0, so that nothing is lost to the last bit.
    """
    entries: list[Entry] = []
    numbers: dict[str, list[Tensor]] = {}
    bitmaps = []
    for name, tensor in stored(state).items():
        flat, kind = tensor.detach().cpu().reshape(-1), str(tensor.dtype).removeprefix("torch.")
        there = _bits(flat)
        short = tensor.is_floating_point() and _is_shorter(there, flat)
        if short:
            bitmaps.append(np.packbits(there))
        numbers.setdefault(kind, []).append(flat[torch.from_numpy(there)] if short else flat)
        was = str(state[name].dtype).removeprefix("torch.")
        entries.append([name, was, list(tensor.shape), kind, BITMAP if short else WHOLE])
    packed = {kind: torch.cat(parts) for kind, parts in numbers.items()}
    deflated = zlib.compress(b"".join(bits.tobytes() for bits in bitmaps), 9)
    return packed | {"bitmaps": torch.frombuffer(bytearray(deflated), dtype=torch.uint8)}, entries


def unpack(packed: Weights, entries: Iterable[Entry]) -> Weights:
    """The state that was packed, in the network's own types; equal to `stored` bit for bit."""
    bits = np.frombuffer(zlib.decompress(packed["bitmaps"].numpy().tobytes()), np.uint8)
    at: dict[str, int] = {}
    state, read = {}, 0
    for name, was, shape, kind, how in entries:
        size = int(np.prod(shape))
        length = -(-size // 8) if how == BITMAP else 0
        if read + length > len(bits) or (not length and size > len(packed[kind])):
            raise ValueError(f"{name} has {size} numbers, the file has not")  # before making room
        there = np.ones(size, bool)
        if how == BITMAP:
            there = np.unpackbits(bits[read : read + length], count=size).astype(bool)
            read += length
        start, count = at.get(kind, 0), int(there.sum())
        flat = torch.zeros(size, dtype=getattr(torch, kind))
        flat[torch.from_numpy(there)] = packed[kind][start : start + count]
        at[kind] = start + count
        state[name] = flat.reshape(shape).to(getattr(torch, was))
    return state


def dump(state: Weights, said: dict[str, Any], ids: Weights) -> bytes:
    """A safetensors file: packed weights, ids, and what else is said, plain, in its header."""
    packed, entries = pack(state)
    header = {"format": FORMAT, "weights": entries, "said": said}
    return save(packed | ids, {KEY: json.dumps(header)})


def read(path: Path) -> tuple[dict[str, Any], Weights]:
    """What a packed file says, and its weights in the network's own types; no code is run."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {}).get(KEY, "null"))
            packed = {name: file.get_tensor(name) for name in list(file.keys())}
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a packed file ({error})") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        found = f"format {said.get('format')!r}" if isinstance(said, dict) else "no packed file"
        raise ValueError(f"{path}: {found}, this reads packed files of format {FORMAT}")
    try:
        weights = unpack(packed, said["weights"])
        ids = {name: packed[name] for name in IDS if name in packed or name == "train_ids"}
        return said["said"] | ids, weights
    except DAMAGE as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from None


def is_packed(path: Path) -> bool:
    """Whether a file's name says that it is packed."""
    return path.name.endswith(SUFFIX)


def _stored(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if bool((half.isfinite() | ~tensor.isfinite()).all()) else tensor


def _bits(flat: Tensor) -> np.ndarray:
    """Which numbers have any bit set."""
    if not len(flat):
        return np.zeros(0, bool)
    wide = flat.contiguous().view(torch.uint8).reshape(len(flat), -1)
    return np.asarray((wide != 0).any(dim=1).numpy())


def _is_shorter(there: np.ndarray, flat: Tensor) -> bool:
    return len(there) / 8 < (len(there) - int(there.sum())) * flat.element_size()
