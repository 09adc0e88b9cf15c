import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file

from evaluation.table import PredictionTable
from lightning_modules import checkpoints

FILES = ("best.ckpt", "model.safetensors", "state_dict.pt", "model.json", "config.yaml",
         "results.json", "history.csv")  # fmt: skip


def blocks(readme):
    return re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)


def test_the_folder_explains_itself(resnet):
    said = (resnet / "README.md").read_text()
    for words in ("test_resnet", "none, simple, comminuted", "`layer1`", "8 x 8", "accuracy"):
        assert words in said
    for name in FILES:
        assert (resnet / name).is_file()
        assert f"`{name}`" in said
    assert str(resnet.parent) not in said


def test_the_examples_run_as_they_stand(tiny, resnet, monkeypatch, capsys):
    table = PredictionTable.read(resnet / "predictions" / "test.parquet")
    name = table.rows["id"].iloc[0]
    film = next((tiny.root / "phantoms").glob(f"fracture-*/{name}"))
    monkeypatch.chdir(resnet)
    monkeypatch.setattr(sys, "argv", ["example.py", str(film)])
    first, second = blocks((resnet / "README.md").read_text())
    exec(compile(first, "README.md", "exec"), {})
    said = capsys.readouterr().out
    for value in table.probabilities[0]:
        assert f"{value:.4f}"[:-1] in said
    assert "map (32, 32)" in said
    exec(compile(second, "README.md", "exec"), {})
    assert "torch.Size([1, 3])" in capsys.readouterr().out


def test_every_format_holds_the_same_weights(resnet):
    module, _ = checkpoints.load(resnet / "best.ckpt")
    plain = torch.load(resnet / "state_dict.pt", weights_only=True)
    safe = load_file(resnet / "model.safetensors")
    for key, value in module.net.state_dict().items():
        assert torch.equal(value, plain[key])
        assert torch.equal(value, safe[key])


@pytest.mark.parametrize("key", ["backbone", "class_names", "preprocess", "cam_layer", "head"])
def test_model_json_says_what_the_weights_are_of(resnet, key):
    about = json.loads((resnet / "model.json").read_text())
    wanted = {
        "backbone": "test_resnet",
        "class_names": ["none", "simple", "comminuted"],
        "cam_layer": {"name": "layer1", "layout": "NCHW", "side": 8},
        "head": "softmax",
    }
    assert about["preprocess"]["size"] == 32
    assert about[key] == wanted.get(key, about[key])
