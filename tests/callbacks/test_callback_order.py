"""The order of callbacks does not matter; a user's own callback and logger work next to ours."""

import random
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
import yaml

from consilium.training.pruning import save_pruned
from evaluation.results import read_results
from lightning_modules import checkpoints
from lightning_modules.pruning.search import PruningTarget, choose_structure
from lightning_modules.pruning.structure import layer_costs, pruned_copy
from tests.conftest import ROOT

BASE_CALLBACKS = yaml.safe_load((ROOT / "configs/base.yaml").read_text())["trainer"]["callbacks"]
EMA = {"class_path": "callbacks.EMA", "init_args": {"decay": 0.9}}


class EpochCounter(L.Callback):
    """A callback that Consilium does not know."""

    def on_train_epoch_end(self, trainer, pl_module):
        file = Path(trainer.default_root_dir) / "epochs.txt"
        file.write_text(str(trainer.current_epoch + 1))


def weights_of(run, name="last.ckpt"):
    return checkpoints.read(run / name)[1]


def is_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def files_of(run):
    return sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.is_file())


@pytest.mark.parametrize("seed", [None, 0])
def test_shuffled_callbacks_give_the_same_weights_and_files(tiny, resnet, tmp_path, seed):
    """In reverse order, and in a random one."""
    callbacks = BASE_CALLBACKS[::-1]
    if seed is not None:
        random.Random(seed).shuffle(callbacks)
    run = tiny.fit("shuffled", tmp_path / "resnet", **{"trainer.callbacks": callbacks})
    assert files_of(run) == files_of(resnet)
    for name in ("best.ckpt", "last.ckpt"):
        assert is_equal(weights_of(run, name), weights_of(resnet, name))
    first, second = (read_results(folder / "results.json") for folder in (resnet, run))
    assert first.metrics == second.metrics
    histories = [pd.read_csv(folder / "history.csv") for folder in (resnet, run)]
    pd.testing.assert_frame_equal(*(history.drop(columns="seconds") for history in histories))
    assert (run / "README.md").read_text() == (resnet / "README.md").read_text()


@pytest.mark.exhaustive
def test_averages_start_from_a_pruned_checkpoint_in_any_order(tiny, resnet, tmp_path):
    module, block = checkpoints.load(resnet / "best.ckpt")
    image = torch.randn(2, 3, 32, 32)
    losses = [module.net(image).square().mean()]
    target = PruningTarget(macs=0.7)
    structure = choose_structure(module.net, image, "test_resnet", target, losses)
    save_pruned(tmp_path / "start.ckpt", block, pruned_copy(module.net, structure), structure)
    start = {"class_path": "callbacks.WarmStart",
             "init_args": {"checkpoint": str(tmp_path / "start.ckpt")}}  # fmt: skip
    states = []
    for i, callbacks in enumerate(([start, EMA], [EMA, start])):
        changes = {"trainer.callbacks+": callbacks, "trainer.max_epochs": 1}
        run = tiny.fit(f"averaged_{i}", tmp_path / str(i), **changes)
        states.append(weights_of(run))
    assert is_equal(*states)
    costs = layer_costs(checkpoints.load(run / "best.ckpt")[0].net, image)
    assert sum(cost.macs for cost in costs.values()) < 0.7 * sum(
        cost.macs for cost in layer_costs(module.net, image).values()
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_a_users_own_callback_and_logger_work(tiny, resnet, tmp_path, logger):
    packages = ("tensorboard", "tensorboardX")
    if logger == "TensorBoardLogger" and not any(map(find_spec, packages)):
        pytest.skip("needs tensorboard or tensorboardX")
    folder = tmp_path / "logs"
    settings = {"class_path": f"lightning.pytorch.loggers.{logger}",
                "init_args": {"save_dir": str(folder)}}  # fmt: skip
    own = {"class_path": f"{__name__}.{EpochCounter.__name__}"}
    changes = {"trainer.callbacks+": [own], "trainer.logger": settings}
    run = tiny.fit(f"own_{logger}", tmp_path / "run", **changes)
    assert (run / "epochs.txt").read_text() == "2"
    assert is_equal(weights_of(run), weights_of(resnet))
    assert any(file.stat().st_size for file in folder.rglob("*") if file.is_file())
