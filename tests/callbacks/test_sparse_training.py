import importlib.util
import io
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from callbacks import TwoStageSparseTraining, WarmStart
from callbacks.sparse_training.masked_weights import MaskedWeights
from callbacks.sparse_training.stages import DensitySchedule, Recovery
from lightning_modules.optim import LRSchedulerConfig, OptimizerConfig
from tests.conftest import exhaustive_except

spec = importlib.util.spec_from_file_location(
    "sparse_runs", Path(__file__).with_name("sparse_runs.py")
)
runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runs)

PRUNABLE = 64 * 80 * 2  # values of `plain` and `second`
SCHEDULES = ["cosine", "onecycle", "step", "cyclic", "plateau", "none"]


def sparse(density=0.25, dense_epochs=1, sparse_epochs=2, **options):
    defaults = {"density_schedule": DensitySchedule(0.5, 4), "recovery": Recovery(lr=5e-3)}
    return TwoStageSparseTraining(density, dense_epochs, sparse_epochs, **(defaults | options))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("distribution", ["uniform", "erk", "global", "macs"])
def test_pruned_values_are_zero_at_every_step(optimizer, distribution, tmp_path):
    callback = sparse(distribution=distribution)
    recorder = runs.Recorder(callback)
    net = runs.Net(OptimizerConfig(optimizer, lr=1e-2, weight_decay=0.1))
    runs.run(tmp_path, callback, recorder, net=net, gradient_clip_val=1.0)
    assert recorder.unmasked == []
    assert len(recorder.densities) == 15
    assert recorder.densities[:5] == [1.0] * 5
    if distribution != "macs":
        assert recorder.densities[-1] == 0.25
        weights = (net.plain.weight, net.second.weight)
        assert sum(int(weight.count_nonzero()) for weight in weights) == PRUNABLE // 4
    assert sorted(recorder.densities, reverse=True) == recorder.densities


class Failure(runs.L.Callback):
    """Stops a fit with an error."""

    def on_train_epoch_end(self, trainer, pl_module):
        raise ValueError("stopped")


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_second_fit_of_the_same_objects_repeats_the_first(tmp_path, is_stopped):
    callback, net = sparse(), runs.Net(lr_scheduler=LRSchedulerConfig("cosine"))
    start = {name: value.clone() for name, value in net.state_dict().items()}
    if is_stopped:
        with pytest.raises(ValueError, match="stopped"):
            runs.run(tmp_path / "stopped", callback, Failure(), net=net)
    recorders, ends = [], []
    for name in ("first", "second"):
        net.load_state_dict(start)
        recorders.append(runs.Recorder(callback))
        runs.run(tmp_path / name, callback, recorders[-1], net=net)
        assert net.lr_scheduler == LRSchedulerConfig("cosine")
        ends.append({name: value.clone() for name, value in net.state_dict().items()})
    first, second = recorders
    assert first.rates == second.rates
    assert first.densities == second.densities
    assert first.densities[0] == 1.0 > first.densities[-1]
    assert runs.is_equal(*ends)


def test_the_macs_distribution_keeps_a_quarter_of_the_macs(tmp_path):
    """In two layers so different that a quarter of the values would be another fraction."""
    net, callback = runs.Net(), sparse(distribution="macs")
    net.second = torch.nn.Conv2d(80, 64, 3, stride=2, padding=1, bias=False)
    runs.run(tmp_path, callback, net=net)
    plain, second = (int(layer.weight.count_nonzero()) for layer in (net.plain, net.second))
    macs, dense = plain * 64 + second * 16, 64 * 80 * 64 + 64 * 720 * 16
    assert 0.25 * dense - (64 + 16) < macs <= 0.25 * dense  # less than one value per layer below
    assert (plain + second) / (64 * 80 + 64 * 720) < 0.15


class LargeGradients(runs.L.Callback):
    """Makes gradients so large that they are always clipped, and records their norm afterwards."""

    def __init__(self):
        self.norms = []

    def on_after_backward(self, trainer, pl_module):
        for weight in pl_module.parameters():
            weight.grad.mul_(1000)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        norms = [weight.grad.norm() for weight in pl_module.parameters()]
        self.norms.append(float(torch.stack(norms).norm()))


def test_masked_gradients_do_not_count_for_clipping(tmp_path):
    """Otherwise the norm of the others would be below the limit."""
    gradients = LargeGradients()
    runs.run(tmp_path, sparse(), gradients, gradient_clip_val=0.5)
    assert gradients.norms == pytest.approx([0.5] * 15, rel=1e-4)


def test_without_masked_optimizer_state_the_final_check_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedWeights, "mask_optimizer_state", lambda self, optimizer: None)
    callback = sparse()
    recorder = runs.Recorder(callback)
    with pytest.raises(ValueError, match="do not match the optimizer's state"):
        runs.run(tmp_path, callback, recorder)
    assert recorder.unmasked


def test_without_masked_weights_and_state_the_final_check_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedWeights, "mask_optimizer_state", lambda self, optimizer: None)
    monkeypatch.setattr(torch.optim.Optimizer, "register_step_post_hook", lambda *_: None)
    with pytest.raises(ValueError, match="do not match the weights"):
        runs.run(tmp_path, sparse())


def test_averages_and_checkpoints_have_the_same_zeros(tmp_path):
    callback, ema = sparse(), EMAWeightAveraging(decay=0.9)
    recorder = runs.Recorder(callback)
    runs.run(tmp_path, callback, ema, recorder)
    assert recorder.unmasked == []
    for name in ("best.ckpt", "last.ckpt"):
        content = torch.load(tmp_path / name, weights_only=True)
        for state in (content["state_dict"], content["current_model_state"]):
            weights = [state[f"{layer}.weight"] for layer in ("plain", "second")]
            assert [int(weight.count_nonzero()) for weight in weights] == [PRUNABLE // 8] * 2


def test_equal_weights_are_pruned_to_the_exact_density(tmp_path):
    net, callback = runs.Net(), sparse(0.3, 0, 2, density_schedule=DensitySchedule(0.0))
    torch.nn.init.constant_(net.plain.weight, 0.1)
    runs.run(tmp_path, callback, net=net)
    assert [int(mask.sum()) for mask in callback.masked.masks] == [1536, 1536]
    assert callback.masked.masks[0][:1536].all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_density_one_changes_nothing(schedule, tmp_path):
    """Not one bit, if the sparse stage has the learning rates of the model."""
    optimizer = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    scheduler = LRSchedulerConfig(schedule, warmup_epochs=1, step_size=1, patience=1)
    plain, _ = runs.run(tmp_path / "a", None, net=runs.Net(optimizer, scheduler), epochs=3)
    callback = sparse(1.0, 0, 3, recovery=Recovery(1e-2, schedule, 1))
    masked, _ = runs.run(tmp_path / "b", callback, net=runs.Net(optimizer, scheduler))
    assert runs.is_equal(plain.state_dict(), masked.state_dict())
    assert callback.has_final_density


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_sparse_stage_has_its_own_learning_rates(schedule, tmp_path):
    scheduler = LRSchedulerConfig(schedule, warmup_epochs=0.4, step_size=2, patience=2)
    callback = sparse(1.0, 2, 3, recovery=Recovery(4e-3, "cosine", 1))
    recorder = runs.Recorder(callback)
    runs.run(tmp_path, callback, recorder, net=runs.Net(lr_scheduler=scheduler))
    assert recorder.rates[9] == 0.0  # the rate of the first step of the sparse stage
    rising = [4e-3 * step / 5 for step in range(1, 5)]
    falling = [4e-3 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)]
    assert recorder.rates[10:] == pytest.approx(rising + falling, abs=1e-12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """5 dense and 40 sparse steps, with a checkpoint after each; the ramp takes 20."""
    folder = tmp_path_factory.mktemp("whole")
    callback = sparse(0.25, 1, 8, density_schedule=DensitySchedule(0.5, 6))
    runs.run(folder, callback, runs.Recorder(callback, set(range(3, 45))))
    return folder


@pytest.mark.parametrize("step", exhaustive_except([3, 5, 9, 10, 20, 44], range(3, 45)))
def test_resume_at_every_step_gives_the_same_bits(step, whole, tmp_path):
    if step <= 5:  # the best epoch of the dense stage is next to the checkpoint
        (tmp_path / "dense.ckpt").write_bytes((whole / "dense.ckpt").read_bytes())
    callback = sparse(0.25, 1, 8, density_schedule=DensitySchedule(0.5, 6))
    runs.run(tmp_path, callback, runs.Recorder(callback, {44}), ckpt=whole / f"{step}.ckpt")
    expected, resumed = (
        torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, tmp_path)
    )
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert runs.is_equal(expected[key], resumed[key]), key
    key = callback.state_key
    assert runs.is_equal(expected["callbacks"][key], resumed["callbacks"][key])


def test_history_has_density_macs_and_churn(whole):
    history = pd.read_csv(whole / "history.csv")
    assert history["sparse/stage"].tolist() == [1] + [2] * 8
    assert history["sparse/density"].iloc[-1] == 0.25
    macs = {"stem": 64 * 64 * 27, "plain": 64 * 5120, "deep": 64 * 720, "second": 64 * 5120,
            "squeeze": 4096, "head": 192}  # fmt: skip
    sparse_macs = sum(macs.values()) - 0.75 * (macs["plain"] + macs["second"])
    assert history["sparse/macs_theoretical"].iloc[-1] == sparse_macs
    ratio = history["sparse/macs_theoretical_ratio"]
    assert ratio.iloc[-1] == pytest.approx(sparse_macs / sum(macs.values()))
    assert history["sparse/churn"].sum() == pytest.approx(0.75)
    assert {"lr", "sparse/weights_zero_fraction"} <= set(history)


def test_best_has_the_final_density_and_the_best_dense_epoch_remains(whole):
    dense, best = (
        torch.load(whole / name, weights_only=True) for name in ("dense.ckpt", "best.ckpt")
    )
    assert dense["epoch"] == 0
    assert dense["state_dict"]["plain.weight"].count_nonzero() == 5120
    assert best["epoch"] >= 4
    assert best["state_dict"]["plain.weight"].count_nonzero() == 1280


def test_the_sparse_stage_starts_from_the_best_dense_epoch(tmp_path):
    """The first epoch is the best, since the weights are spoiled after it."""
    net = runs.Net(lr_scheduler=LRSchedulerConfig("step", step_size=1, gamma=0.999))
    largest = []

    class SpoilHead(runs.L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                torch.nn.init.constant_(pl_module.head.weight, 30.0)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 11:
                largest.append(pl_module.head.weight.detach().abs().max())

    runs.run(tmp_path, sparse(1.0, 2, 2), SpoilHead(), net=net)
    assert torch.load(tmp_path / "dense.ckpt", weights_only=True)["epoch"] == 0
    assert largest[0] < 5


class CopyDenseLast(runs.L.Callback):
    """Copies last.ckpt of the dense stage, from which a fit killed in the sparse stage resumes."""

    def on_train_epoch_start(self, trainer, pl_module):
        folder = Path(trainer.default_root_dir)
        if trainer.current_epoch == 1:
            (folder / "end.ckpt").write_bytes((folder / "last.ckpt").read_bytes())


def test_a_sparse_best_epoch_is_not_used_as_the_dense_one(tmp_path):
    """After a kill between best.ckpt and last.ckpt of the first sparse epoch."""
    schedule = DensitySchedule(0.2, 2)
    runs.run(tmp_path, sparse(density_schedule=schedule), CopyDenseLast())
    dense, last = ((tmp_path / name).read_bytes() for name in ("dense.ckpt", "last.ckpt"))
    runs.run(tmp_path, sparse(density_schedule=schedule), ckpt=tmp_path / "end.ckpt")
    assert (tmp_path / "dense.ckpt").read_bytes() == dense
    assert (tmp_path / "best.ckpt").is_file()
    expected = torch.load(io.BytesIO(last), weights_only=True)
    resumed = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert runs.is_equal(expected["state_dict"], resumed["state_dict"])


@pytest.mark.parametrize(("content", "message"), [
    (None, "wrong.ckpt: no such checkpoint"),
    (b"", "wrong.ckpt: truncated, or not a checkpoint"),
    (b"no zip", "wrong.ckpt: truncated, or not a checkpoint"),
    ({"epoch": 1}, "wrong.ckpt: contains no weights"),
])  # fmt: skip
def test_a_wrong_checkpoint_is_refused_before_anything_is_trained(content, message, tmp_path):
    file = tmp_path / "wrong.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        torch.save(content, file)
    callbacks = (sparse(dense_epochs=0, dense_checkpoint=str(file)), WarmStart(str(file)))
    for callback in callbacks:
        recorder = runs.Recorder(sparse())
        with pytest.raises(ValueError, match=message):
            runs.run(tmp_path, None, callback, recorder, epochs=2)
        assert recorder.rates == []


def test_random_masks_have_the_exact_density(tmp_path):
    callback = sparse(0.25, criterion="random")
    recorder = runs.Recorder(callback)
    net, _ = runs.run(tmp_path, callback, recorder)
    assert (recorder.unmasked, recorder.densities[-1]) == ([], 0.25)
    assert net.plain.weight.count_nonzero() == 1280


def test_regrowing_exchanges_values_at_the_same_density(tmp_path):
    """Without it the churn of the whole ramp, one update per epoch, is 0.75."""
    schedule = DensitySchedule(0.9, 4, regrow_fraction=0.3)
    callback = sparse(sparse_epochs=4, density_schedule=schedule)
    recorder = runs.Recorder(callback)
    runs.run(tmp_path, callback, recorder)
    assert recorder.unmasked == []
    assert recorder.densities[-1] == 0.25
    assert pd.read_csv(tmp_path / "history.csv")["sparse/churn"].sum() > 0.76


def test_churn_is_at_most_one_however_often_an_epoch_exchanges_values(tmp_path):
    """Each of the updates of an epoch exchanges up to nine tenths of the values."""
    callback = sparse(0.5, 0, 1, density_schedule=DensitySchedule(0.9, 8, regrow_fraction=0.9),
                      recovery=Recovery(lr=5e-3, warmup_epochs=0.5))  # fmt: skip
    recorder = runs.Recorder(callback)
    runs.run(tmp_path, callback, recorder)
    [churn] = pd.read_csv(tmp_path / "history.csv")["sparse/churn"]
    different = [int((~mask).sum()) for mask in callback.masked.masks]
    assert churn == sum(different) / sum(mask.numel() for mask in callback.masked.masks)


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"precision": "bf16-true"},
                                     {"accumulate_grad_batches": 2}])  # fmt: skip
def test_precision_and_accumulation(options, tmp_path):
    callback = sparse()
    recorder = runs.Recorder(callback)
    runs.run(tmp_path, callback, recorder, **options)
    assert (recorder.unmasked, recorder.densities[-1]) == ([], 0.25)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"density": 0}, "density: 0 is not above 0"),
    ({"density": 1.1}, "density: 1.1 is not above 0 and at most 1"),
    ({"dense_checkpoint": "x.ckpt"}, "dense_checkpoint: x.ckpt needs dense_epochs 0"),
    ({"dense_epochs": -1}, "dense_epochs: -1 is not at least 0"),
    ({"sparse_epochs": 0}, "sparse_epochs: 0 is not at least 1"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sparse(**arguments)


def test_a_trainer_with_another_max_epochs_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"max_epochs: 7 is not dense_epochs 1 \+ sparse_epochs 2 = 3"
    ):
        runs.run(tmp_path, sparse(), epochs=7)


def test_a_network_without_prunable_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no weight can be pruned: .*matches exclude"):
        runs.run(tmp_path, sparse(exclude=["plain", "second"]))


def test_masks_that_do_not_match_are_refused(whole, tmp_path):
    content = torch.load(whole / "30.ckpt", weights_only=True)
    content["state_dict"]["plain.weight"][:] = 1.0
    torch.save(content, tmp_path / "weights.ckpt")
    again = {"density_schedule": DensitySchedule(0.5, 6)}
    with pytest.raises(ValueError, match="do not match the weights"):
        runs.run(tmp_path, sparse(0.25, 1, 8, **again), ckpt=tmp_path / "weights.ckpt")
    content = torch.load(whole / "30.ckpt", weights_only=True)
    (key,) = [k for k in content["callbacks"] if "TwoStage" in k]
    content["callbacks"][key]["masks"][0][3] ^= 1
    torch.save(content, tmp_path / "bit.ckpt")
    with pytest.raises(ValueError, match="do not have the digest"):
        runs.run(tmp_path, sparse(0.25, 1, 8, **again), ckpt=tmp_path / "bit.ckpt")
    with pytest.raises(ValueError, match=r"density: 0.3 is not the 0.25 of the checkpoint"):
        runs.run(tmp_path, sparse(0.3, 1, 8, **again), ckpt=whole / "30.ckpt")
    del content["callbacks"][key]
    torch.save(content, tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="from the sparse stage and has no masks"):
        runs.run(tmp_path, sparse(0.25, 1, 8, **again), ckpt=tmp_path / "none.ckpt")
