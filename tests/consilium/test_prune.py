"""`consilium prune`: the pruned model is an ordinary member, measured next to the dense one."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from consilium.cli.main import main
from consilium.experiments.processes import start_fork
from consilium.inference.predictor import load_predictor
from datamodules.preprocess import Preprocess
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from lightning_modules import EnsembleModule, ImageClassifier, checkpoints
from lightning_modules.pruning.structure import layer_costs
from tests.conftest import ROOT
from tests.consilium.untrained import CLASSES, save_checkpoint

WITHOUT_TORCH_PRUNING = "import sys; sys.modules['torch_pruning'] = None\n"


@pytest.fixture(scope="session")
def pruned(resnet, tmp_path_factory):
    """The tiny member with about 0.6 of its MACs, fine-tuned for one epoch."""
    output = tmp_path_factory.mktemp("pruned") / "pruned"
    arguments = ["--macs", "0.6", "--epochs", "1", "--pairs", "3", "-o", str(output)]
    assert main(["prune", str(resnet), *arguments]) == 0
    return output


def macs_of(net, size):
    costs = layer_costs(net, torch.zeros(1, 3, size, size))
    return sum(cost.macs for cost in costs.values())


def test_the_checkpoint_has_the_measured_size(resnet, pruned):
    (dense, _), (module, block) = (checkpoints.load(run / "best.ckpt") for run in (resnet, pruned))
    ratio = macs_of(module.net, 32) / macs_of(dense.net, 32)
    assert 0.3 < ratio <= 0.6
    content = json.loads((pruned / "pruning.json").read_text())
    assert content["macs_theoretical_ratio"] == ratio
    assert block.structure == module.structure != {}
    for layer in module.net.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
            assert layer.out_channels % 16 == 0
    assert json.loads((pruned / "results.json").read_text())["measures"] == {
        "weights_zero_fraction": 0.0, "macs_theoretical_ratio": ratio,
        "latency_ratio_measured": content["latency"]["1"]["value"], "energy_ratio_measured": None,
    }  # fmt: skip
    assert "not requested" in content["energy"]["reason"]


def test_a_test_with_its_own_config_gives_the_same_metrics(pruned, tmp_path):
    config = ["--config", str(pruned / "config.yaml"), "--ckpt_path", str(pruned / "best.ckpt")]
    assert main(["test", *config, "--run", str(tmp_path / "again")]) == 0
    first, again = (read_results(r / "results.json") for r in (pruned, tmp_path / "again"))
    assert first.metrics == again.metrics


def test_it_can_join_an_ensemble_be_explained_and_exported(resnet, pruned, tmp_path):
    class_names = checkpoints.read(pruned / "best.ckpt")[0].class_names
    ensemble = EnsembleModule(class_names, [str(resnet), str(pruned)])
    assert [len(block.structure) > 0 for block in ensemble.blocks] == [False, True]
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        dense, smaller = (member(image) for member in ensemble.members)
    assert smaller.shape == dense.shape
    explanation = load_predictor(pruned).explain(np.zeros((64, 64), np.uint8))
    assert explanation.saliency_map.shape == (64, 64)
    arguments = ["--format", "safetensors", "-o", str(tmp_path / "export")]
    assert main(["export", str(pruned), *arguments]) == 0


@pytest.mark.exhaustive
def test_it_loads_without_torch_pruning(pruned):
    code = WITHOUT_TORCH_PRUNING + (
        "from lightning_modules import checkpoints\n"
        f"print(len(checkpoints.load({str(pruned / 'best.ckpt')!r})[1].structure))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 5


@pytest.mark.exhaustive
def test_a_killed_fine_tuning_is_resumed(resnet, tmp_path, capsys):
    output = tmp_path / "pruned"
    arguments = ["prune", str(resnet), "--macs", "0.6", "--pairs", "1", "-o", str(output)]
    with (tmp_path / "log.txt").open("wb") as log, (tmp_path / "lock").open("w") as lock:
        process = start_fork([*arguments, "--epochs", "3"], log, lock)
    while not (output / "last.ckpt").exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not (output / "results.json").exists()
    content = (output / "pruning.json").read_text()
    assert main([*arguments, "--epochs", "4"]) == 2
    assert "contains an unfinished run with other arguments" in capsys.readouterr().err
    assert main([*arguments, "--epochs", "3"]) == 0
    assert (output / "pruning.json").read_text() == content  # nothing was measured again
    assert pd.read_csv(output / "history.csv")["epoch"].tolist() == [0, 1, 2]
    last, best = (checkpoints.read(output / name)[0] for name in ("last.ckpt", "best.ckpt"))
    assert last.structure == best.structure != {}
    assert main([*arguments, "--epochs", "3"]) == 2
    assert "contains a finished run; give another -o" in capsys.readouterr().err


def test_the_report_compares_it_with_the_dense_run(resnet, pruned):
    text = (pruned / "report.html").read_text()
    for words in ("Layers with fewer channels", "accuracy, pruned minus dense",
                  "Changed decisions", "times as fast"):  # fmt: skip
        assert words in text
    tables = [PredictionTable.read(run / "predictions/test.parquet") for run in (pruned, resnet)]
    now, before = (table.probabilities.argmax(1) for table in tables)
    assert f"{int((now != before).sum())} of {len(now)} decisions changed" in text
    changed = pd.read_csv(pruned / "changed.csv", dtype=str)
    assert changed["id"].tolist() == tables[0].rows["id"][now != before].tolist()
    predicted = np.array(tables[0].class_names)[now[now != before]]
    assert changed["pruned_prediction"].tolist() == predicted.tolist()
    assert len(pd.read_csv(pruned / "history.csv")) == 1


def test_the_readme_names_the_pruned_channels_and_has_no_example_with_timm(resnet, pruned):
    readme = (pruned / "README.md").read_text()
    assert "Channels were pruned" in readme
    assert "timm.create_model" not in readme
    assert "timm.create_model" in (resnet / "README.md").read_text()


@pytest.mark.exhaustive
def test_a_pruned_model_can_be_pruned_again(pruned, tmp_path):
    output = tmp_path / "twice"
    arguments = ["--macs", "0.8", "--epochs", "1", "--pairs", "2", "--round-to", "4"]
    assert main(["prune", str(pruned), *arguments, "-o", str(output)]) == 0
    first, second = (checkpoints.load(run / "best.ckpt")[0] for run in (pruned, output))
    assert macs_of(second.net, 32) <= 0.8 * macs_of(first.net, 32)


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "give --macs, --latency or both"),
    (["--macs", "1.2"], "--macs: 1.2 is not between 0 and 1"),
    (["--latency", "0"], "--latency: 0.0 is not between 0 and 1"),
    (["--macs", "0.5", "--lr", "0"], "--lr: 0.0 is not above 0"),
    (["--macs", "0.5", "--round-to", "0"], "--round-to: 0 is not at least 1"),
    (["--macs", "0.5", "--cost-power", "-1"], "--cost-power: -1.0 is not at least 0"),
    (["--macs", "0.01"], "macs: 0.01 cannot be reached"),
    (["--latency", "0.0001", "--pairs", "1"], "latency: 0.0001 cannot be reached"),
])  # fmt: skip
def test_arguments_that_cannot_work_are_refused_in_one_line(
    arguments, message, resnet, tmp_path, capsys
):
    assert main(["prune", str(resnet), *arguments, "-o", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_model_without_an_argument_for_its_backbone_is_refused_in_one_line(tmp_path, capsys):
    class FixedBackbone(ImageClassifier):
        def __init__(self, class_names: list[str]) -> None:
            super().__init__(class_names, backbone="test_resnet")

    try:
        save_checkpoint(FixedBackbone(CLASSES), Preprocess(size=32), tmp_path / "best.ckpt")
        (tmp_path / "config.yaml").touch()
        assert main(["prune", str(tmp_path), "--macs", "0.5", "-o", str(tmp_path / "x")]) == 2
    finally:
        del checkpoints.REGISTRY["FixedBackbone"]
    reason = "only an ImageClassifier with an argument `backbone` can be pruned"
    error = f"consilium prune: RUN: {tmp_path} contains a FixedBackbone; {reason}\n"
    assert capsys.readouterr().err == error


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, capsys):
    assert main(["prune", str(tmp_path), "--macs", "0.5"]) == 2
    assert "has no best.ckpt" in capsys.readouterr().err
