"""Every kind of member through the very command a person runs: trained, measured, read back."""

from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from consilium.cli.main import main
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from lightning_modules import checkpoints
from tests.conftest import Tiny

EMA = {"class_path": "callbacks.EMA", "init_args": {"decay": 0.9}}
OVO = {"model.class_path": "lightning_modules.OneVsOneClassifier"}
TWO = {
    "data.init_args.source.init_args.kind": "pneumonia",
    "data.init_args.class_names": ["normal", "pneumonia"],
    "data.init_args.augment": "none",
    "model.init_args.head": "sigmoid",
    "model.init_args.loss": {"pos_weight": 2.0},
}
KINDS = {
    "ovo": OVO,
    "ovo_pair": {**OVO, "model.init_args.trunks": "pair"},
    "sigmoid": TWO,
    "mixed": {"model.init_args.mixing": {"mixup": 0.2, "cutmix": 1.0}},
    "averaged": {"trainer.callbacks+": [EMA]},
    "recomputed": {"model.init_args.backbone_args": {"grad_checkpointing": True}},
    "thawing": {"model.init_args.tuning": {"frozen_stages": 2, "thaw_epochs": [1]}},
    "plateau": {"model.init_args.optimization": {"schedule": "plateau", "every": 1}},
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tiny: Tiny) -> tuple[str, Path]:
    name = str(request.param)
    return name, tiny.fit(name, tiny.root / "runs" / name, **KINDS[name])


def test_what_was_tested_comes_back_from_the_file(kind: tuple[str, Path]) -> None:
    name, run = kind
    module, block = checkpoints.load(run / "best.ckpt")
    table = PredictionTable.read(run / "predictions/test.parquet")
    assert block.weights == block.measured_weights == table.meta["weights"]
    assert not module.training
    assert np.isfinite(table.probabilities).all()
    if name == "sigmoid":
        assert (table.logits[:, 0] == 0).all()
    assert (table.pairs is not None) == name.startswith("ovo")


def test_pairs_stand_in_the_results(kind: tuple[str, Path]) -> None:
    name, run = kind
    found = read_results(run / "results.json").metrics
    pairs = {"pair/none/simple", "pair/none/comminuted", "pair/simple/comminuted"}
    wanted = pairs | {"pairs", "pairs_gap"} if name.startswith("ovo") else set()
    assert {key for key in found if key.startswith("pair")} == wanted


def test_other_weights_than_the_checkpoints_are_not_measured(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lightnings = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}
    configs = tiny.configs("lightnings", **{"trainer.callbacks+": [lightnings]})
    assert main(["fit", *configs, "--run", str(tmp_path)]) != 0
    assert "not those of the checkpoint" in capsys.readouterr().err


class Kill(Callback):
    """Ends a fit after its first epoch as a kill would: nothing of its end is done."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, _: object) -> None:
        if trainer.current_epoch == 1:
            raise InterruptedError


def test_a_resumed_fit_is_the_uninterrupted_one(
    kind: tuple[str, Path], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, run = kind
    monkeypatch.setattr("tests.conftest.KILL", Kill, raising=False)
    changes = dict(KINDS[name])
    more = [*changes.get("trainer.callbacks+", []), {"class_path": "tests.conftest.KILL"}]
    killed = tiny.configs(f"{name}_killed", **{**changes, "trainer.callbacks+": more})
    assert main(["fit", *killed, "--run", str(tmp_path)]) != 0
    resume = ["--ckpt_path", str(tmp_path / "last.ckpt"), "--run", str(tmp_path)]
    assert main(["fit", *tiny.configs(name, **changes), *resume]) == 0
    whole, part = (torch.load(r / "last.ckpt", weights_only=True) for r in (run, tmp_path))
    for state in ("state_dict", "current_model_state"):
        for key, value in whole.get(state, {}).items():
            assert torch.equal(value, part[state][key]), (state, key)
