"""Packed weights: every bit of float16 is restored, and damaged files are refused."""

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
from tests.consilium.untrained import CLASSES, save_checkpoint


def bytes_of(tensor):
    return tensor.reshape(-1).contiguous().view(torch.uint8).tolist()


def sparsify(tensor):
    """The tensor with three quarters of its values +0, as masks set them."""
    return torch.where(torch.rand_like(tensor) < 0.25, tensor, 0.0)


def example_state():
    torch.manual_seed(0)
    sparse = sparsify(torch.randn(5, 7, 3))
    sparse.view(-1)[:4] = torch.tensor([-0.0, math.nan, 1e-8, -math.inf])
    return {
        "sparse": sparse, "full": torch.randn(9), "zero": torch.zeros(3, 5),
        "large": torch.tensor([1.0, 0.0, 7e4]), "count": torch.tensor(12345678901),
        "none": torch.zeros(0, 3), "half": torch.randn(6).half(),
        "bfloat16": torch.randn(4).bfloat16(), "scalar": torch.tensor(2.5),
        "bool": torch.tensor([True, False]),
    }  # fmt: skip


def test_every_bit_of_the_stored_precision_is_restored():
    state = example_state()
    packed, entries = packing.pack(state)
    restored = packing.unpack(packed, json.loads(json.dumps(entries)))
    stored = packing.to_stored_precision(state)
    for name, tensor in state.items():
        assert restored[name].dtype == tensor.dtype
        assert bytes_of(restored[name]) == bytes_of(stored[name].to(tensor.dtype)), name
    assert stored["sparse"].dtype == torch.float16
    assert torch.equal(restored["large"], state["large"])
    assert restored["count"] == 12345678901
    assert {e[0]: e[4] for e in entries}["sparse"] == "bitmap"
    assert {e[0]: e[4] for e in entries}["full"] == "dense"


def test_a_sparse_weight_takes_a_bitmap_and_its_values_in_float16():
    weight = sparsify(torch.randn(1_000_000))
    packed, _ = packing.pack({"w": weight})
    density = float((weight.half() != 0).float().mean())
    size = sum(tensor.numel() * tensor.element_size() for tensor in packed.values())
    entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) / 8
    minimum = 1e6 * (2 * density + entropy)
    assert minimum < size < 1.02 * minimum + 100


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with three quarters of the kernels' values 0."""
    torch.manual_seed(0)
    module = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = sparsify(parameter.data)
    return save_checkpoint(
        module, Preprocess(size=32), tmp_path_factory.mktemp("packing") / "member.ckpt"
    )


@pytest.fixture(scope="module")
def packed(checkpoint):
    """Its export in the packed format."""
    out = checkpoint.parent / "packed"
    assert main(["export", str(checkpoint), "--format", "packed", "-o", str(out)]) == 0
    return out / "member.packed.safetensors"


def test_a_packed_checkpoint_can_be_loaded_as_a_member(checkpoint, packed):
    block, weights = checkpoints.read(checkpoint)
    module, packed_block = checkpoints.load(packed)
    for name, tensor in module.state_dict().items():
        stored = weights[name].half().float() if tensor.is_floating_point() else weights[name]
        assert bytes_of(tensor) == bytes_of(stored), name
    assert packed_block.weights == checkpoints.weights_hash(module.state_dict()) != block.weights
    assert torch.equal(packed_block.train_ids, block.train_ids)
    assert packed_block.class_names == block.class_names
    assert packed.stat().st_size < checkpoint.stat().st_size / 4
    ensemble = EnsembleModule(CLASSES, [str(checkpoint), str(packed)])
    assert ensemble.blocks[1].weights == packed_block.weights


def test_a_packed_run_has_the_metrics_of_its_checkpoint(resnet, tmp_path):
    out = tmp_path / "packed"
    assert main(["export", str(resnet), "--format", "packed", "-o", str(out)]) == 0
    file = next(out.glob("*.packed.safetensors"))
    config = ["--config", str(resnet / "config.yaml"), "--ckpt_path", str(file)]
    assert main(["test", *config, "--run", str(tmp_path / "run")]) == 0
    expected, results = (read_results(r / "results.json") for r in (resnet, tmp_path / "run"))
    assert results.metrics["nll"].value == pytest.approx(expected.metrics["nll"].value, abs=2e-3)
    assert results.meta["weights"] == checkpoints.read(file)[0].weights


def test_a_changed_packed_weight_is_refused_by_test(resnet, tmp_path, capsys):
    assert main(["export", str(resnet), "--format", "packed", "-o", str(tmp_path)]) == 0
    file = next(tmp_path.glob("*.packed.safetensors"))
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    config = ["--config", str(resnet / "config.yaml"), "--ckpt_path", str(file)]
    assert main(["test", *config, "--run", str(tmp_path / "run")]) == 2
    assert "the weights do not have the hash that the file states" in capsys.readouterr().err


def test_training_cannot_resume_from_packed_weights(resnet, packed, tmp_path, capsys):
    config = ["--config", str(resnet / "config.yaml"), "--run", str(tmp_path / "run")]
    assert main(["fit", *config, "--ckpt_path", str(packed)]) == 2
    assert "a packed checkpoint has no optimizer state to resume from" in capsys.readouterr().err


def test_no_memory_is_allocated_for_missing_values():
    packed, entries = packing.pack({"w": sparsify(torch.randn(64))})
    for name, shape, reason in (("w", [10**13], "take 40,000,"), ("w", [65], "have not the 9")):
        with pytest.raises(ValueError, match=f"its (weights|bitmaps) {reason}"):
            packing.unpack(packed, [[name, *entries[0][1:2], shape, *entries[0][3:]]])
    packed, entries = packing.pack({"w": torch.randn(64)})
    with pytest.raises(ValueError, match="w has 65 values, the file has fewer"):
        packing.unpack(packed, [["w", *entries[0][1:2], [65], *entries[0][3:]]])
    with pytest.raises(ValueError, match="its weights take 40,000,000,000,000 bytes"):
        packing.unpack(packed, [["w", *entries[0][1:2], [10**13], *entries[0][3:]]])


def test_a_damaged_file_is_refused_by_name(packed, tmp_path):
    damaged = tmp_path / "damaged.packed.safetensors"
    damaged.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged\.packed\.safetensors: not a packed file"):
        checkpoints.load(damaged)
    with safe_open(packed, "pt") as file:
        header = json.loads(file.metadata()[packing.KEY])
    assert header["block"]["preprocess"]["size"] == 32
    data = packed.read_bytes()
    wrong = tmp_path / "wrong.packed.safetensors"
    wrong.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(ValueError, match=r"wrong\.packed"):
        checkpoints.load(wrong)


def change_dtype(header):
    header["weights"][0][1] = "float17"


def drop_block(header):
    del header["block"]


def block_as_text(header):
    header["block"] = "all"


@pytest.mark.parametrize(("damage", "dropped", "message"), [
    (change_dtype, "", ".* has the unknown dtype .float17"),
    (drop_block, "", "damaged .KeyError: 'block'"),
    (block_as_text, "", "damaged .TypeError"),
    (dict, "train_ids", "damaged .KeyError: 'train_ids'"),
])  # fmt: skip
def test_a_damaged_header_is_refused_by_name(packed, tmp_path, damage, dropped, message):
    with safe_open(packed, "pt") as file:
        header = json.loads(file.metadata()[packing.KEY])
    damage(header)
    tensors = {name: t for name, t in load_file(packed).items() if name != dropped}
    (tmp_path / "x.packed.safetensors").write_bytes(
        save(tensors, {packing.KEY: json.dumps(header)})
    )
    with pytest.raises(ValueError, match=rf"x\.packed\.safetensors: {message}"):
        checkpoints.load(tmp_path / "x.packed.safetensors")


def test_a_header_that_is_no_dictionary_is_refused(tmp_path):
    file = tmp_path / "list.packed.safetensors"
    file.write_bytes(save({"w": torch.zeros(1)}, {packing.KEY: "[1]"}))
    with pytest.raises(ValueError, match="no header, this version reads packed files of format 2"):
        checkpoints.load(file)
