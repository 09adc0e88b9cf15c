import hashlib
import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file

from callbacks.model_card import (
    LOAD_EXAMPLE,
    SALIENCY_EXAMPLE,
    TIMM_EXAMPLE,
    describe_pretrained,
    readme,
)
from evaluation.predictions import PredictionTable
from lightning_modules import checkpoints

FILES = ("best.ckpt", "model.safetensors", "model.json", "config.yaml", "results.json",
         "history.csv")  # fmt: skip
MODEL = {
    "format": 1,
    "module": "ImageClassifier",
    "backbone": "test_resnet",
    "outputs": 3,
    "arguments": {"drop_rate": 0.2},
    "timm": True,
    "class_names": ["none", "simple", "comminuted"],
    "head": "softmax",
    "outputs_meaning": "the outputs are logits",
    "activation": "softmax(dim=1)",
    "cam_layer": {"name": "layer1", "layout": "NCHW", "side": 8},
    "structure": {},
    "pretrained": None,
}


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_describes_model_metrics_and_files(resnet):
    text = (resnet / "README.md").read_text()
    for words in ("test_resnet", "none, simple, comminuted", "`layer1`", "8 x 8", "Accuracy"):
        assert words in text
    for name in FILES:
        assert (resnet / name).is_file()
        assert f"`{name}`" in text
    assert not (resnet / "state_dict.pt").exists()
    assert str(resnet.parent) not in text


def test_the_examples_run_as_they_are(tiny, resnet, monkeypatch, capsys):
    table = PredictionTable.read(resnet / "predictions" / "test.parquet")
    name = table.rows["id"].iloc[0]
    image = next((tiny.root / "phantoms").glob(f"fracture-*/{name}"))
    monkeypatch.chdir(resnet)
    monkeypatch.setattr(sys, "argv", ["example.py", str(image)])
    load, timm_only, saliency = python_blocks((resnet / "README.md").read_text())
    variables = {}
    exec(compile(load, "README.md", "exec"), variables)
    output = capsys.readouterr().out
    for value in table.probabilities[0]:
        assert f"{value:.4f}"[:-1] in output
    exec(compile(saliency, "README.md", "exec"), variables)
    assert "map (32, 32)" in capsys.readouterr().out
    exec(compile(timm_only, "README.md", "exec"), {})
    assert "torch.Size([1, 3])" in capsys.readouterr().out


def test_the_loading_example_has_about_ten_lines():
    assert len([line for line in LOAD_EXAMPLE.splitlines() if line]) <= 10


def test_safetensors_and_checkpoint_have_the_same_weights(resnet):
    module, _ = checkpoints.load(resnet / "best.ckpt")
    state = load_file(resnet / "model.safetensors")
    assert state.keys() == module.net.state_dict().keys()
    for name, tensor in module.net.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_model_json_describes_the_network(resnet):
    model = json.loads((resnet / "model.json").read_text())
    preprocess = model.pop("preprocess")
    assert model == MODEL
    assert preprocess == checkpoints.read(resnet / "best.ckpt")[0].preprocess


def test_pretrained_weights_are_recorded_with_their_license(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"weights")
    of_file = describe_pretrained("test_resnet", str(tmp_path / "weights.pth"))
    assert of_file["weights"] == "weights.pth"
    assert of_file["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert describe_pretrained("resnet50.a1_in1k", True) == {
        "weights": "resnet50.a1_in1k of timm", "license": "apache-2.0"}  # fmt: skip
    assert describe_pretrained("test_resnet", False) is None
    text = readme(tmp_path, MODEL | {"preprocess": {"size": 32}, "pretrained": of_file}, None)
    assert "started from weights.pth; license: not recorded" in text


LOAD_WITH_SOFTMAX = LOAD_EXAMPLE.replace("{activation}", "softmax(dim=1)")


@pytest.mark.parametrize(("files", "examples"), [
    (("best.ckpt", "model.json"), [LOAD_WITH_SOFTMAX, TIMM_EXAMPLE, SALIENCY_EXAMPLE]),
    (("model.json",), [TIMM_EXAMPLE]),
    ((), []),
])  # fmt: skip
def test_examples_use_only_files_that_exist(files, examples, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    text = readme(tmp_path, MODEL | {"preprocess": {"size": 32}}, None)
    assert python_blocks(text) == examples
    assert ("explain . IMAGE" in text) == ("best.ckpt" in files)
