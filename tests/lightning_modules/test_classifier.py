"""Every kind of member through `consilium fit`: trained, evaluated, loaded, resumed."""

from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from consilium.cli.main import main
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from lightning_modules import ImageClassifier, checkpoints
from tests.conftest import Tiny

EMA = {"class_path": "callbacks.EMA", "init_args": {"decay": 0.9}}
OVO = {"model.class_path": "lightning_modules.OneVsOneClassifier"}
SIGMOID = {
    "data.init_args.source.init_args.kind": "pneumonia",
    "data.init_args.class_names": ["normal", "pneumonia"],
    "data.init_args.augment": "none",
    "model.init_args.head": "sigmoid",
    "model.init_args.loss": {"pos_weight": 2.0},
}
VARIANTS = {
    "ovo": OVO,
    "ovo_pair": {**OVO, "model.init_args.trunks": "pair"},
    "sigmoid": SIGMOID,
    "mixup": {"model.init_args.loss": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}},
    "ema": {"trainer.callbacks+": [EMA]},
    "grad_checkpointing": {"model.init_args.backbone_args": {"grad_checkpointing": True}},
    "unfreezing": {"model.init_args.fine_tuning": {"frozen_stages": 2, "unfreeze_epochs": [1]}},
    "plateau": {"model.init_args.lr_scheduler": {"name": "plateau", "patience": 1}},
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tiny: Tiny) -> tuple[str, Path]:
    name = str(request.param)
    return name, tiny.fit(name, tiny.root / "runs" / name, **VARIANTS[name])


def test_the_checkpoint_has_the_weights_that_were_tested(variant: tuple[str, Path]) -> None:
    name, run = variant
    module, block = checkpoints.load(run / "best.ckpt")
    table = PredictionTable.read(run / "predictions/test.parquet")
    assert block.weights == block.measured_weights == table.meta["weights"]
    assert not module.training
    assert np.isfinite(table.probabilities).all()
    if name == "sigmoid":
        assert (table.logits[:, 0] == 0).all()
    assert (table.pair_logits is not None) == name.startswith("ovo")


def test_results_have_metrics_of_pairs_for_pair_heads_only(variant: tuple[str, Path]) -> None:
    name, run = variant
    metrics = read_results(run / "results.json").metrics
    pairs = {"pair/none/simple", "pair/none/comminuted", "pair/simple/comminuted"}
    expected = pairs | {"pairs", "pairs_gap"} if name.startswith("ovo") else set()
    assert {key for key in metrics if key.startswith("pair")} == expected


def test_weights_that_differ_from_the_checkpoint_are_not_evaluated(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    averaging = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}
    configs = tiny.configs("averaging", **{"trainer.callbacks+": [averaging]})
    assert main(["fit", *configs, "--run", str(tmp_path), "--test", "true"]) != 0
    assert "not those of the checkpoint" in capsys.readouterr().err


class DoubledLossClassifier(ImageClassifier):
    """A subclass as a user might write it."""

    def compute_loss(self, outputs: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
        return 2 * super().compute_loss(outputs, target, class_weights)


def test_a_subclass_is_named_in_a_config(tiny: Tiny, tmp_path: Path) -> None:
    changes = {
        "model.class_path": f"{__name__}.DoubledLossClassifier",
        "trainer.max_epochs": 1,
        "trainer.logger": {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": str(tmp_path / "logs")},
        },
    }
    run = tiny.fit("subclass", tmp_path / "run", **changes)
    module, block = checkpoints.load(run / "best.ckpt")
    assert block.module == type(module).__name__ == "DoubledLossClassifier"
    assert "val/accuracy" in next((tmp_path / "logs").rglob("metrics.csv")).read_text()


class Interrupt(Callback):
    """Ends a fit after its first epoch by an exception."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, _: object) -> None:
        if trainer.current_epoch == 1:
            raise InterruptedError


def test_a_resumed_fit_equals_an_uninterrupted_one(
    variant: tuple[str, Path], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, run = variant
    monkeypatch.setattr("tests.conftest.INTERRUPT", Interrupt, raising=False)
    changes = dict(VARIANTS[name])
    callbacks = [*changes.get("trainer.callbacks+", []), {"class_path": "tests.conftest.INTERRUPT"}]
    interrupted = tiny.configs(
        f"{name}_interrupted", **{**changes, "trainer.callbacks+": callbacks}
    )
    assert main(["fit", *interrupted, "--run", str(tmp_path)]) != 0
    resume = ["--ckpt_path", str(tmp_path / "last.ckpt"), "--run", str(tmp_path)]
    assert main(["fit", *tiny.configs(name, **changes), *resume]) == 0
    expected, resumed = (torch.load(r / "last.ckpt", weights_only=True) for r in (run, tmp_path))
    for state in ("state_dict", "current_model_state"):
        for key, value in expected.get(state, {}).items():
            assert torch.equal(value, resumed[state][key]), (state, key)
