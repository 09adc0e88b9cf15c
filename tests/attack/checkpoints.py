"""Malformed checkpoints, made from an intact one and its packed export."""

import io
import json
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from lightning_modules import packing
from lightning_modules.checkpoints import KEY, block_with_digest

Change = Callable[[dict[str, Any]], Any]
HUGE = 10**9


class Command:
    """Runs a shell command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


class Allocation:
    """Allocates memory when it is unpickled, by a function that torch allows."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function

    def __reduce__(self):
        return self.function, (HUGE * 30,)


def nested(depth: int) -> list[Any]:
    """Lists whose size doubles with each level, although they take no memory."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


def network(**values: object) -> Change:
    """Changes constructor arguments."""
    return lambda block: block["init_args"].update(values)


def preprocess(**values: object) -> Change:
    return lambda block: block["preprocess"].update(values)


def field(**values: object) -> Change:
    return lambda block: block.update(values)


BLOCK: dict[str, Change] = {
    "format": field(format=99),
    "missing-field": lambda block: block.pop("class_names"),
    "unknown-field": field(extra=1),
    "module-number": field(module=1),
    "module-unknown": field(module="Exec"),
    "module-list": field(module=["ImageClassifier"]),
    "init-args-list": field(init_args=[1]),
    "init-args-unknown": network(colour=1),
    "init-args-numbered": lambda block: block["init_args"].update({1: 2}),
    "init-args-doubling": network(backbone_args=nested(60)),
    "backbone-unknown": network(backbone="resnet999"),
    "backbone-number": network(backbone=3.5),
    "backbone-deep": network(backbone="vit_tiny_patch16_224", backbone_args={"depth": HUGE}),
    "backbone-deeper": network(backbone="vit_tiny_patch16_224", backbone_args={"depth": 90_000}),
    "backbone-wide": network(
        backbone="vit_tiny_patch16_224", backbone_args={"embed_dim": 96_000, "depth": 1}
    ),
    "image-size-negative": network(image_size=-5),
    "image-size-text": network(image_size="wide"),
    "head-unknown": network(head="hydra"),
    "loss-text": network(loss="focal"),
    "optimizer-unknown": network(optimizer={"velocity": 1}),
    "classes-text": field(class_names="abc"),
    "classes-none": field(class_names=[]),
    "classes-twice": field(class_names=["a", "a", "b"]),
    "classes-numbers": field(class_names=[1, 2, 3]),
    "preprocess-list": field(preprocess=[224]),
    "preprocess-negative": preprocess(size=-1),
    "preprocess-nan": preprocess(size=math.nan),
    "preprocess-huge": preprocess(size=HUGE),
    "preprocess-text": preprocess(size="large"),
    "preprocess-grid": preprocess(clahe=2.0, grid=10_000),
    "preprocess-mean": preprocess(mean=(math.nan, 0.0, 0.0)),
    "preprocess-std": preprocess(std=(0.1,)),
    "preprocess-unknown": preprocess(blur=1),
    "ids-list": field(train_ids=[1, 2]),
    "ids-matrix": field(train_ids=torch.zeros(2, 2)),
    "ids-expanded": field(val_ids=torch.zeros(1, dtype=torch.int64).expand(HUGE * 10)),
    "classes-of-others": network(class_names=["a", "b", "c"]),
    "metrics-text": field(metrics={"accuracy": "high"}),
    "structure-list": field(structure=[1]),
    "structure-unknown": field(structure={"net.nowhere": {"out": [0]}}),
    "structure-negative": field(structure={"conv1.0": {"out": [-1]}}),
    "epoch-text": field(epoch="last"),
    "versions-none": field(versions=None),
    "weights-number": field(weights=7),
}


ENDLESS = "init-args-doubling"  # whose digest takes too long to compute
SLOW = ("backbone-deeper", "image-size-negative")  # networks are built, at several sizes


def first_weight(content: dict[str, Any]) -> str:
    return next(name for name, value in content["state_dict"].items() if value.ndim == 4)


def replace_weight(change: Callable[[torch.Tensor], object]) -> Change:
    def apply(content: dict[str, Any]) -> None:
        name = first_weight(content)
        content["state_dict"][name] = change(content["state_dict"][name])

    return apply


CONTENT: dict[str, Change] = {
    "no-block": lambda content: content.pop(KEY),
    "block-list": lambda content: content.update({KEY: [1]}),
    "no-weights": lambda content: content.pop("state_dict"),
    "weights-list": lambda content: content.update(state_dict=[1]),
    "weight-missing": lambda content: content["state_dict"].pop(first_weight(content)),
    "weight-numbered": lambda content: content["state_dict"].update({1: torch.zeros(1)}),
    "weight-number": replace_weight(lambda _: 3),
    "weight-shape": replace_weight(lambda w: w.flatten()),
    "weight-changed": replace_weight(lambda w: w + 1),
    "weight-nan": replace_weight(lambda w: w * math.nan),
    "weight-expanded": replace_weight(lambda _: torch.zeros(1).expand(HUGE, 100)),
    "weight-sparse": replace_weight(lambda w: w.to_sparse()),
    "weight-meta": replace_weight(lambda w: w.to("meta")),
    "allocation": lambda content: content.update(extra=Allocation(bytearray)),
    "weight-allocated": replace_weight(lambda _: Allocation(torch.FloatTensor)),
    "code": lambda content: content.update(extra=Command()),
}


def rezip(data: bytes, compression: int, change: Callable[[str, bytes], bytes]) -> bytes:
    """The archive with changed records."""
    stream = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(data))
    with zipfile.ZipFile(stream, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return stream.getvalue()


def lie_about_storage(name: str, data: bytes) -> bytes:
    """A pickle whose first storage claims to be larger than its record."""
    if not name.endswith("data.pkl"):
        return data
    start = data.index(b"cpu", data.index(b"Storage"))
    number = data.index(b"K", start)
    return data[:number] + b"J" + struct.pack("<i", 1 << 28) + data[number + 2 :]


def files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Damaged archives."""
    yield "empty", b""
    yield "text", b"weights"
    yield "half", data[: len(data) // 2]
    yield "cut", data[:-100]
    yield "zeroed", data[:500] + bytes(2000) + data[2500:]
    yield "no-records", rezip(data, zipfile.ZIP_STORED, lambda name, record: b"")
    yield "pickle-only", pickle.dumps({"state_dict": {}})

    def inflated(name: str, record: bytes) -> bytes:
        return bytes(1 << 28) if name.endswith("/data/0") else record

    yield "zip-bomb", rezip(data, zipfile.ZIP_DEFLATED, inflated)
    yield "storage-lie", rezip(data, zipfile.ZIP_STORED, lie_about_storage)


def packed_files(packed: Path) -> Iterator[tuple[str, bytes]]:
    """Packed files with wrong headers and sizes."""
    data = packed.read_bytes()
    with safe_open(packed, "pt") as file:
        header = json.loads(file.metadata()[packing.KEY])
    tensors = load_file(packed)

    def packed_with(change: Change = lambda header: None, **changed: torch.Tensor) -> bytes:
        own = json.loads(json.dumps(header))
        change(own)
        return save(tensors | changed, {packing.KEY: json.dumps(own)})

    def entry(position: int, value: object) -> bytes:
        return packed_with(lambda own: own["weights"][0].__setitem__(position, value))

    zeros = zlib.compressobj(1)
    bomb = b"".join(zeros.compress(bytes(1 << 20)) for _ in range(1 << 10)) + zeros.flush()
    yield (
        "packed-zip-bomb",
        packed_with(bitmaps=torch.frombuffer(bytearray(bomb), dtype=torch.uint8)),
    )
    yield "packed-shape", entry(2, [10**13])
    yield "packed-negative", entry(2, [-3, 4])
    yield "packed-shape-text", entry(2, "wide")
    yield "packed-dtype", entry(1, "load")
    yield "packed-stored", entry(3, "float128")
    yield "packed-entries", packed_with(lambda own: own.update(weights=[1, 2]))
    yield "packed-format", packed_with(lambda own: own.update(format=None))
    yield "packed-list", save(tensors, {packing.KEY: "[1]"})
    yield "packed-nested", save(tensors, {packing.KEY: "[" * 100_000})
    yield "packed-cut", data[:-100]
    yield "packed-length", struct.pack("<Q", 1 << 60) + data[8:]
    yield "packed-text", b"weights"


def malformed_checkpoints(
    checkpoint: Path, packed: Path, folder: Path, slow: bool = True
) -> Iterator[Path]:
    """Writes malformed files into `folder`, each of another kind, and yields their paths.

    Without `slow` those that take seconds are left out.
    """
    data = checkpoint.read_bytes()
    changes = [(name, lambda content, f=f: f(content[KEY])) for name, f in BLOCK.items()
               if slow or name not in SLOW]  # fmt: skip
    for name, change in [*changes, *CONTENT.items()]:
        content = torch.load(checkpoint, weights_only=True)
        change(content)
        with suppress(Exception):  # who changes a file can also compute its digest
            content[KEY] = content[KEY] if name == ENDLESS else block_with_digest(content[KEY])
        torch.save(content, folder / f"{name}.ckpt")
        yield folder / f"{name}.ckpt"
    for suffix, cases in ((".ckpt", files(data)), (packing.SUFFIX, packed_files(packed))):
        for name, content in cases:
            (folder / f"{name}{suffix}").write_bytes(content)
            yield folder / f"{name}{suffix}"


REPLACEMENTS = (None, [], {}, "", "../../x", -1, 1e308, True, [[]], {"a": 1})


def malformed_json(content: object) -> Iterator[Any]:
    """Copies of a JSON value in which one value, at any depth, is removed or replaced."""
    if not isinstance(content, dict | list):
        return
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield copy_without(content, key)
        for replacement in REPLACEMENTS:
            yield copy_with(content, key, replacement)
        for inner in malformed_json(content[key]):
            yield copy_with(content, key, inner)


def copy_with(content: Any, key: Any, value: object) -> Any:
    copied = content.copy()
    copied[key] = value
    return copied


def copy_without(content: Any, key: Any) -> Any:
    copied = content.copy()
    del copied[key]
    return copied
