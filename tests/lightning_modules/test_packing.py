"""Packed weights come back to the last bit of what float16 keeps."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from consilium.cli.main import main
from datamodules.preprocess import Preprocess
from evaluation.results import read_results
from lightning_modules import EnsembleModule, ImageClassifier, checkpoints, packing
from tests.consilium.saved import CLASSES, saved


def bits(tensor):
    return tensor.reshape(-1).contiguous().view(torch.uint8).tolist()


def thinned(tensor):
    """A quarter of it; the rest is +0, as masks leave it."""
    return torch.where(torch.rand_like(tensor) < 0.25, tensor, 0.0)


def state():
    torch.manual_seed(0)
    half_empty = thinned(torch.randn(5, 7, 3))
    half_empty.view(-1)[:4] = torch.tensor([-0.0, math.nan, 1e-8, -math.inf])
    return {
        "sparse": half_empty, "full": torch.randn(9), "zero": torch.zeros(3, 5),
        "large": torch.tensor([1.0, 0.0, 7e4]), "count": torch.tensor(12345678901),
        "none": torch.zeros(0, 3), "half": torch.randn(6).half(),
        "brain": torch.randn(4).bfloat16(), "one": torch.tensor(2.5),
        "truth": torch.tensor([True, False]),
    }  # fmt: skip


def test_every_bit_of_the_stored_precision_comes_back():
    given = state()
    packed, entries = packing.pack(given)
    found = packing.unpack(packed, json.loads(json.dumps(entries)))
    kept = packing.stored(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert bits(found[name]) == bits(kept[name].to(tensor.dtype)), name
    assert kept["sparse"].dtype == torch.float16
    assert torch.equal(found["large"], given["large"])
    assert found["count"] == 12345678901
    assert {e[0]: e[4] for e in entries}["sparse"] == "bitmap"
    assert {e[0]: e[4] for e in entries}["full"] == "whole"


def test_a_bitmap_and_float16_is_all_that_a_sparse_weight_takes():
    weight = thinned(torch.randn(1_000_000))
    packed, _ = packing.pack({"w": weight})
    share = float((weight.half() != 0).float().mean())
    size = sum(tensor.numel() * tensor.element_size() for tensor in packed.values())
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    least = 1e6 * (2 * share + entropy)
    assert least < size < 1.02 * least + 100


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A member with masks' zeros in it."""
    torch.manual_seed(0)
    module = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = thinned(parameter.data)
    return saved(module, Preprocess(size=32), tmp_path_factory.mktemp("packing") / "member.ckpt")


@pytest.fixture(scope="module")
def packed(checkpoint):
    """Its export."""
    out = checkpoint.parent / "packed"
    assert main(["export", str(checkpoint), "--format", "packed", "-o", str(out)]) == 0
    return out / "member.packed.safetensors"


def test_a_packed_checkpoint_is_a_member_again(checkpoint, packed):
    block, weights = checkpoints.read(checkpoint)
    module, again = checkpoints.load(packed)
    for name, tensor in module.state_dict().items():
        wanted = weights[name].half().float() if tensor.is_floating_point() else weights[name]
        assert bits(tensor) == bits(wanted), name
    assert again.weights == checkpoints.weights_hash(module.state_dict()) != block.weights
    assert torch.equal(again.train_ids, block.train_ids)
    assert again.class_names == block.class_names
    assert packed.stat().st_size < checkpoint.stat().st_size / 4
    ensemble = EnsembleModule(CLASSES, [str(checkpoint), str(packed)])
    assert ensemble.blocks[1].weights == again.weights


def test_a_packed_run_is_tested_like_its_checkpoint(resnet, tmp_path):
    out = tmp_path / "packed"
    assert main(["export", str(resnet), "--format", "packed", "-o", str(out)]) == 0
    file = next(out.glob("*.packed.safetensors"))
    config = ["--config", str(resnet / "config.yaml"), "--ckpt_path", str(file)]
    assert main(["test", *config, "--run", str(tmp_path / "run")]) == 0
    first, again = (read_results(r / "results.json") for r in (resnet, tmp_path / "run"))
    assert again.metrics["nll"].value == pytest.approx(first.metrics["nll"].value, abs=2e-3)
    assert again.meta["weights"] == checkpoints.read(file)[0].weights


def test_training_does_not_go_on_from_packed_weights(resnet, packed, tmp_path, capsys):
    config = ["--config", str(resnet / "config.yaml"), "--run", str(tmp_path / "run")]
    assert main(["fit", *config, "--ckpt_path", str(packed)]) == 2
    assert "a packed checkpoint holds no training to go on from" in capsys.readouterr().err


def test_no_room_is_made_for_numbers_that_are_not_there():
    packed, entries = packing.pack({"w": thinned(torch.randn(64))})
    for name, shape in (("w", [10**13]), ("w", [65])):
        with pytest.raises(ValueError, match="numbers, the file has not"):
            packing.unpack(packed, [[name, *entries[0][1:2], shape, *entries[0][3:]]])
    packed, entries = packing.pack({"w": torch.randn(64)})
    with pytest.raises(ValueError, match="w has 10000000000000 numbers"):
        packing.unpack(packed, [["w", *entries[0][1:2], [10**13], *entries[0][3:]]])


def test_what_is_not_packed_is_refused_by_name(packed, tmp_path):
    damaged = tmp_path / "damaged.packed.safetensors"
    damaged.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged\.packed\.safetensors: not a packed file"):
        checkpoints.load(damaged)
    with safe_open(packed, "pt") as file:
        header = json.loads(file.metadata()[packing.KEY])
    assert header["said"]["preprocess"]["size"] == 32
    data = packed.read_bytes()
    wrong = tmp_path / "wrong.packed.safetensors"
    wrong.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(ValueError, match=r"wrong\.packed"):
        checkpoints.load(wrong)


def other_type(header):
    header["weights"][0][1] = "float17"


def nothing_said(header):
    del header["said"]


def said_as_text(header):
    header["said"] = "all"


@pytest.mark.parametrize(("spoil", "left_out", "message"), [
    (other_type, "", "damaged .AttributeError: .*float17"),
    (nothing_said, "", "damaged .KeyError: 'said'"),
    (said_as_text, "", "damaged .TypeError"),
    (dict, "train_ids", "damaged .KeyError: 'train_ids'"),
])  # fmt: skip
def test_a_damaged_header_is_refused_by_name(packed, tmp_path, spoil, left_out, message):
    with safe_open(packed, "pt") as file:
        header = json.loads(file.metadata()[packing.KEY])
    spoil(header)
    kept = {name: t for name, t in load_file(packed).items() if name != left_out}
    (tmp_path / "x.packed.safetensors").write_bytes(save(kept, {packing.KEY: json.dumps(header)}))
    with pytest.raises(ValueError, match=rf"x\.packed\.safetensors: {message}"):
        checkpoints.load(tmp_path / "x.packed.safetensors")


def test_a_header_that_is_no_table_is_refused(tmp_path):
    file = tmp_path / "list.packed.safetensors"
    file.write_bytes(save({"w": torch.zeros(1)}, {packing.KEY: "[1]"}))
    with pytest.raises(ValueError, match="no packed file, this reads packed files of format 1"):
        checkpoints.load(file)
