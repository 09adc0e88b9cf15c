import inspect
import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file

from callbacks.model_card import BARE, EXAMPLE, OURS, text
from evaluation.predictions import PredictionTable
from lightning_modules import backbones, checkpoints

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


WHAT = {
    "format": 1,
    "module": "ImageClassifier",
    "backbone": "test_resnet",
    "outputs": 3,
    "arguments": {"drop_rate": 0.2},
    "timm": True,
    "class_names": ["none", "simple", "comminuted"],
    "head": "softmax",
    "cam_layer": {"name": "layer1", "layout": "NCHW", "side": 8},
    "structure": {},
}


def test_model_json_says_what_the_weights_are_of(resnet):
    about = json.loads((resnet / "model.json").read_text())
    preprocess = about.pop("preprocess")
    assert about == WHAT
    assert preprocess == checkpoints.read(resnet / "best.ckpt")[0].preprocess


def test_no_argument_of_ours_is_said_to_be_one_of_timms():
    of_build = inspect.signature(backbones.build).parameters.values()
    assert set(OURS) == {one.name for one in of_build if one.kind is one.KEYWORD_ONLY}


@pytest.mark.parametrize(("files", "examples"), [
    (("best.ckpt", "model.json"), [EXAMPLE, BARE]), (("model.json",), [BARE]), ((), []),
])  # fmt: skip
def test_only_files_that_are_there_are_used(files, examples, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    said = text(tmp_path, WHAT | {"preprocess": {"size": 32}}, None)
    assert blocks(said) == examples
    assert ("explain . IMAGE" in said) == ("best.ckpt" in files)
