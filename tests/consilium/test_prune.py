"""A member without some of its channels is a member like any other."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from consilium.cli.main import main
from consilium.inference.predictor import load
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from lightning_modules import EnsembleModule, backbones, checkpoints
from lightning_modules.pruning import groups as dependencies
from lightning_modules.pruning import importance, search
from lightning_modules.pruning.narrow import Wanted, by_macs, by_time, choose
from lightning_modules.pruning.search import Candidate
from tests.conftest import ROOT

NO_TORCH_PRUNING = "import sys; sys.modules['torch_pruning'] = None\n"


@pytest.fixture(scope="session")
def slim(resnet, tmp_path_factory):
    """The tiny member with about 0.6 of its multiply-accumulates, fine-tuned for an epoch."""
    out = tmp_path_factory.mktemp("slim") / "slim"
    arguments = ["--macs", "0.6", "--epochs", "1", "--pairs", "3", "-o", str(out)]
    assert main(["prune", str(resnet), *arguments]) == 0
    return out


def macs_of(net, size):
    """Counted anew, from the layers as they are."""
    with torch.device("cpu"):
        price = dependencies.costs(net, torch.zeros(1, 3, size, size))
    return sum(cost.macs for cost in price.values())


def test_the_checkpoint_is_loaded_as_it_was_measured(resnet, slim):
    (dense, _), (small, block) = (checkpoints.load(run / "best.ckpt") for run in (resnet, slim))
    ratio = macs_of(small.net, 32) / macs_of(dense.net, 32)
    assert 0.3 < ratio <= 0.6
    said = json.loads((slim / "pruning.json").read_text())
    assert said["macs_theoretical_ratio"] == ratio
    assert block.structure == small.structure != {}
    for layer in small.net.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
            assert layer.out_channels % 16 == 0
    assert json.loads((slim / "results.json").read_text())["measures"] == {
        "weights_zero_fraction": 0.0, "macs_theoretical_ratio": ratio,
        "latency_ratio_measured": said["latency"]["1"]["value"], "energy_ratio_measured": None,
    }  # fmt: skip
    assert "not asked for" in said["energy"]["reason"]


def test_its_own_config_gives_the_same_figures_again(slim, tmp_path):
    config = ["--config", str(slim / "config.yaml"), "--ckpt_path", str(slim / "best.ckpt")]
    assert main(["test", *config, "--run", str(tmp_path / "again")]) == 0
    first, again = (read_results(r / "results.json") for r in (slim, tmp_path / "again"))
    assert first.metrics == again.metrics


def test_it_sits_in_a_ensemble_and_is_explained(resnet, slim, tmp_path):
    classes = checkpoints.read(slim / "best.ckpt")[0].class_names
    ensemble = EnsembleModule(classes, [str(resnet), str(slim)])
    assert [len(block.structure) > 0 for block in ensemble.blocks] == [False, True]
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        said = [member(image) for member in ensemble.members]
    assert said[1].shape == said[0].shape
    looked = load(slim).look(np.zeros((64, 64), np.uint8))
    assert looked.heat.shape == (64, 64)
    arguments = ["--format", "safetensors", "-o", str(tmp_path / "export")]
    assert main(["export", str(slim), *arguments]) == 0


def test_it_loads_without_torch_pruning(slim):
    code = NO_TORCH_PRUNING + (
        "from lightning_modules import checkpoints\n"
        f"print(len(checkpoints.load({str(slim / 'best.ckpt')!r})[1].structure))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


def test_a_killed_fine_tuning_is_gone_on_with(resnet, tmp_path, capsys):
    out = tmp_path / "slim"
    words = ["prune", str(resnet), "--macs", "0.6", "--pairs", "1", "-o", str(out)]
    run = subprocess.Popen([sys.executable, "-m", "consilium", *words, "--epochs", "3"], cwd=ROOT,
                           start_new_session=True, stdout=subprocess.DEVNULL)  # fmt: skip
    while not (out / "last.ckpt").exists():
        time.sleep(0.02)
        assert run.poll() is None
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (out / "results.json").exists()
    said = (out / "pruning.json").read_text()
    assert main([*words, "--epochs", "4"]) == 2
    assert "holds an unfinished run of another command" in capsys.readouterr().err
    assert main([*words, "--epochs", "3"]) == 0
    assert (out / "pruning.json").read_text() == said  # nothing was measured anew
    assert pd.read_csv(out / "history.csv")["epoch"].tolist() == [0, 1, 2]
    last, best = (checkpoints.read(out / name)[0] for name in ("last.ckpt", "best.ckpt"))
    assert last.structure == best.structure != {}
    assert main([*words, "--epochs", "3"]) == 2
    assert "holds a finished run; give another -o" in capsys.readouterr().err


def test_the_report_stands_beside_the_dense_run(resnet, slim):
    text = (slim / "report.html").read_text()
    for words in ("Layers with fewer channels", "accuracy, pruned minus dense",
                  "Changed decisions", "times as fast"):  # fmt: skip
        assert words in text
    tables = [PredictionTable.read(run / "predictions/test.parquet") for run in (slim, resnet)]
    now, then = (table.probabilities.argmax(1) for table in tables)
    assert f"{int((now != then).sum())} of {len(now)} decisions changed" in text
    changed = pd.read_csv(slim / "changed.csv", dtype=str)
    assert changed["id"].tolist() == tables[0].rows["id"][now != then].tolist()
    assert (
        changed["pruned_said"].tolist()
        == np.array(tables[0].class_names)[now[now != then]].tolist()
    )
    assert len(pd.read_csv(slim / "history.csv")) == 1
    said = (slim / "README.md").read_text()
    assert "Channels were pruned" in said
    assert "timm.create_model" not in said
    assert "timm.create_model" in (resnet / "README.md").read_text()


def test_pruning_again_composes(slim, tmp_path):
    out = tmp_path / "twice"
    arguments = ["--macs", "0.8", "--epochs", "1", "--pairs", "2", "--round_to", "4"]
    assert main(["prune", str(slim), *arguments, "-o", str(out)]) == 0
    modules = [checkpoints.load(run / "best.ckpt")[0] for run in (slim, out)]
    assert macs_of(modules[1].net, 32) <= 0.8 * macs_of(modules[0].net, 32)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--macs", "1.2"], "--macs: 1.2 is not between 0 and 1"),
    (["--latency", "0"], "--latency: 0.0 is not between 0 and 1"),
    (["--macs", "0.5", "--lr", "0"], "--lr: 0.0 is not above 0"),
    (["--macs", "0.5", "--round_to", "0"], "--round_to: 0 is not at least 1"),
    (["--macs", "0.01"], "--macs: 0.01 is out of reach"),
    (["--latency", "0.0001", "--pairs", "1"], "--latency: 0.0001 is out of reach"),
])  # fmt: skip
def test_what_cannot_be_reached_is_one_line(arguments, message, resnet, tmp_path, capsys):
    assert main(["prune", str(resnet), *arguments, "-o", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("share", "found"), [(0.95, 0.9), (0.5, 0.5), (0.31, 0.3), (0.11, 0.1)])
def test_the_largest_choice_that_is_fast_enough_is_taken(share, found):
    choices = [Candidate(i / 10, []) for i in range(9, 0, -1)]
    assert by_time(choices, share, 16, lambda one: one.macs).macs == found
    assert by_macs(choices, share, 16).macs == found


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["prune", str(tmp_path), "--macs", "0.5"]) == 2
    assert "holds no best.ckpt" in capsys.readouterr().err


def together(net, image, price):
    """Channels that go together."""
    return list(dependencies.groups(net, image[:1], price))


def losses(net, image):
    """The loss of one part."""
    yield net(image).square().mean()


class Twisted(nn.Module):
    """Its channels are averaged behind the back of a graph of layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.next = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 2)

    def forward(self, image):
        x = self.stem(image).relu()
        x = self.next(x - x.mean(1, keepdim=True))
        return self.head(x.mean((2, 3)))


def test_what_would_compute_otherwise_is_noticed():
    net, image = Twisted(), torch.randn(2, 3, 8, 8)
    price = dependencies.costs(net, image)
    groups = importance.weighed(net, together(net, image, price), price, losses(net, image))
    staying = [torch.arange(len(g.scores)) < len(g.scores) // 2 for g in groups]
    assert staying
    kept = search.kept(groups, staying, price)
    assert not search.computes_the_same(net, kept, image)
    with pytest.raises(ValueError, match="twisted cannot be pruned by channels: what is left"):
        choose(net, image, "twisted", Wanted(macs=0.6), losses(net, image))
    image = torch.randn(2, 3, 64, 64)
    for name in ("test_mambaout", "test_coatnet"):
        net = backbones.build(name, 3, image_size=64).eval()
        with pytest.raises(ValueError, match=f"{name} cannot be pruned by channels: none can go"):
            choose(net, image, name, Wanted(macs=0.6), losses(net, image))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_vit", "densenet121",
                                  "residual_attention"])  # fmt: skip
def test_families_compute_what_is_left_of_them(name):
    """Norms over channels, heads and groups are left alone; the rest is cut exactly."""
    torch.manual_seed(0)
    size = 160 if name == "test_vit" else 64
    net, image = backbones.build(name, 3, image_size=size).eval(), torch.randn(2, 3, size, size)
    price = dependencies.costs(net, image)
    groups = importance.weighed(net, together(net, image, price), price, losses(net, image))
    found = search.candidates(groups, price, 8)
    kept = search.kept(groups, found[len(found) // 2].staying, price)
    assert search.computes_the_same(net, kept, image)
    small = search.narrowed(net, kept)
    assert macs_of(small, size) == pytest.approx(found[len(found) // 2].macs * macs_of(net, size))
