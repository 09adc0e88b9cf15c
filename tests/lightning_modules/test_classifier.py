"""Every kind of member through `consilium fit`: trained, evaluated, loaded, resumed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from consilium.cli.main import main
from datamodules import ImageDataModule, Phantoms
from datamodules.preprocess import Preprocess
from datamodules.samplers import Balance
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from lightning_modules import ImageClassifier, OneVsOneClassifier, checkpoints
from lightning_modules.losses import LossConfig
from tests.conftest import Tiny, exhaustive_except

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
    "ordinal": {"model.init_args.head": "ordinal"},
    "mixup": {"model.init_args.loss": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}},
    "ema": {"trainer.callbacks+": [EMA]},
    "grad_checkpointing": {"model.init_args.backbone_args": {"grad_checkpointing": True}},
    "unfreezing": {"model.init_args.fine_tuning": {"frozen_stages": 2, "unfreeze_epochs": [1]}},
    "plateau": {"model.init_args.lr_scheduler": {"name": "plateau", "patience": 1}},
}


FAST = ["ovo_pair", "sigmoid", "ema", "unfreezing"]


@pytest.fixture(scope="module", params=exhaustive_except(FAST, VARIANTS))
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


@pytest.mark.exhaustive
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


class RecordGradient(Callback):
    """Records the gradient of the first optimizer step."""

    def on_before_optimizer_step(self, _: object, module: ImageClassifier, __: object) -> None:
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        self.gradient = torch.cat(gradients)


def first_gradient(
    build: Callable[..., ImageClassifier], tiny: Tiny, batch_size: int, class_weights: list[float]
) -> Tensor:
    """The gradient of 8 images in batches of `batch_size`."""
    source = Phantoms(root=str(tiny.root / "gradients"), num_patients=30, image_size=64)
    names = ["none", "simple", "comminuted"]
    data = ImageDataModule(source, names, Preprocess(size=32), batch_size=batch_size,
                           num_workers=0, balance=Balance(class_weights))  # fmt: skip
    torch.manual_seed(0)
    module, record = build(names, "test_convnext"), RecordGradient()  # it has no batch norms
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False,
             "enable_checkpointing": False, "limit_val_batches": 0}  # fmt: skip
    accumulate = {"accumulate_grad_batches": 8 // batch_size}
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, callbacks=[record], **accumulate, **quiet
    )
    trainer.fit(module, datamodule=data)
    return record.gradient


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize(
    "build",
    [
        ImageClassifier,
        partial(ImageClassifier, loss=LossConfig("focal", gamma=2.0, label_smoothing=0.1)),
        partial(OneVsOneClassifier, loss=LossConfig("focal", label_smoothing=0.1)),
    ],
    ids=["cross entropy", "focal", "pairs"],
)
def test_class_weights_act_alike_at_every_batch_size(
    build: Callable[..., ImageClassifier], tiny: Tiny
) -> None:
    weighted = [first_gradient(build, tiny, size, [0.1, 1.0, 10.0]) for size in (8, 2, 1)]
    equal = first_gradient(build, tiny, 1, [1.0, 1.0, 1.0])
    for gradient in weighted[1:]:
        assert torch.cosine_similarity(gradient, weighted[0], dim=0) >= 0.999
        assert torch.allclose(gradient.norm(), weighted[0].norm(), rtol=1e-3)
    assert torch.cosine_similarity(equal, weighted[0], dim=0) < 0.9


@pytest.mark.exhaustive
def test_grad_checkpointing_changes_no_weight_and_no_running_statistic(
    tiny: Tiny, tmp_path: Path
) -> None:
    states = []
    for enabled in (False, True):
        changes = {
            **OVO,
            "data.init_args.batch_size": 2,
            "model.init_args.backbone_args": {"drop_rate": 0.28, "grad_checkpointing": enabled},
            "trainer.accumulate_grad_batches": 4,
            "trainer.precision": "bf16-mixed",
            "trainer.max_epochs": 1,
        }
        configs = tiny.configs("checkpointing", **changes)
        assert main(["fit", *configs, "--run", str(tmp_path / str(enabled))]) == 0
        states.append(checkpoints.read(tmp_path / str(enabled) / "best.ckpt")[1])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


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
