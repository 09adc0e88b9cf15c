import importlib.util
import io
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from callbacks import TwoStageSparseTraining, WarmStart
from callbacks.sparse_training.density_schedule import DensitySchedule
from callbacks.sparse_training.masked_weights import MaskedWeights
from callbacks.sparse_training.stages import Recovery
from lightning_modules.optim import Optimization

spec = importlib.util.spec_from_file_location(
    "sparse_runs", Path(__file__).with_name("sparse_runs.py")
)
runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runs)

TOTAL = 64 * 80 * 2  # plain and second; the rest is stem, depthwise, squeeze-excite, head


def sparse(density=0.25, dense=1, epochs=2, **more):
    more = {"ramp": DensitySchedule(0.5, 4), "recovery": Recovery(lr=5e-3)} | more
    return TwoStageSparseTraining(density, dense, epochs, **more)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("split", ["uniform", "erk", "global", "macs"])
def test_pruned_numbers_are_zero_at_every_step(optimizer, split, tmp_path):
    callback = sparse(split=split)
    watch = runs.Watch(callback)
    way = Optimization(optimizer=optimizer, lr=1e-2, weight_decay=0.1)
    net, _ = runs.run(tmp_path, callback, watch, net=runs.Net(way), gradient_clip_val=1.0)
    assert watch.strays == []
    assert len(watch.densities) == 15
    assert watch.densities[:5] == [1.0] * 5
    if split != "macs":
        assert watch.densities[-1] == 0.25
        assert (
            sum(int(p.count_nonzero()) for p in (net.plain.weight, net.second.weight)) == TOTAL // 4
        )
    assert sorted(watch.densities, reverse=True) == watch.densities


def test_split_by_macs_spends_a_quarter_of_them(tmp_path):
    """Two layers so unlike that a quarter of the numbers would be another share."""
    net, callback = runs.Net(), sparse(split="macs")
    net.second = torch.nn.Conv2d(80, 64, 3, stride=2, padding=1, bias=False)
    runs.run(tmp_path, callback, net=net)
    kept = [int(layer.weight.count_nonzero()) for layer in (net.plain, net.second)]
    spent, whole = kept[0] * 64 + kept[1] * 16, 64 * 80 * 64 + 64 * 720 * 16
    assert 0.25 * whole - (64 + 16) < spent <= 0.25 * whole  # less than one number a layer short
    assert sum(kept) / (64 * 80 + 64 * 720) < 0.15


class Steep(runs.L.Callback):
    """Gradients that are always clipped, and the norm of those that the optimizer was given."""

    def __init__(self):
        self.norms = []

    def on_after_backward(self, trainer, pl_module):
        for weight in pl_module.parameters():
            weight.grad.mul_(1000)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        norms = [weight.grad.norm() for weight in pl_module.parameters()]
        self.norms.append(float(torch.stack(norms).norm()))


def test_what_is_clipped_are_the_gradients_of_kept_numbers(tmp_path):
    """Clipped with those of pruned numbers, the others would fall short of the norm."""
    steep = Steep()
    runs.run(tmp_path, sparse(), steep, gradient_clip_val=0.5)
    assert steep.norms == pytest.approx([0.5] * 15, rel=1e-4)


def test_without_state_masking_numbers_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedWeights, "hold_state", lambda self, optimizer: None)
    callback = sparse()
    watch = runs.Watch(callback)
    with pytest.raises(ValueError, match="do not match the optimizer's state"):
        runs.run(tmp_path, callback, watch)
    assert watch.strays


def test_without_projection_and_state_masking_weights_drift(tmp_path, monkeypatch):
    monkeypatch.setattr(MaskedWeights, "hold_state", lambda self, optimizer: None)
    monkeypatch.setattr(TwoStageSparseTraining, "_after_step", lambda self, *_: None)
    with pytest.raises(ValueError, match="do not match the weights"):
        runs.run(tmp_path, sparse())


def test_averages_and_files_hold_the_same_zeros(tmp_path):
    callback, ema = sparse(), EMAWeightAveraging(decay=0.9)
    watch = runs.Watch(callback)
    runs.run(tmp_path, callback, ema, watch)
    assert watch.strays == []
    for name in ("best.ckpt", "last.ckpt"):
        content = torch.load(tmp_path / name, weights_only=True)
        for state in (content["state_dict"], content["current_model_state"]):
            kept = [int(state[f"{layer}.weight"].count_nonzero()) for layer in ("plain", "second")]
            assert kept == [TOTAL // 8] * 2


def test_all_equal_weights_are_pruned_exactly(tmp_path):
    net, callback = runs.Net(), sparse(0.3, dense=0, epochs=2, ramp=DensitySchedule(0.0))
    torch.nn.init.constant_(net.plain.weight, 0.1)
    runs.run(tmp_path, callback, net=net)
    assert [int(mask.sum()) for mask in callback.held.kept] == [1536, 1536]
    assert callback.held.kept[0][:1536].all()


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "step", "cyclic", "plateau", "none"])
def test_density_one_changes_nothing(schedule, tmp_path):
    """Not one bit, when stage 2 has the module's own rates."""
    way = Optimization(lr=1e-2, weight_decay=0.1, schedule=schedule, warmup_epochs=1, every=1)
    plain, _ = runs.run(tmp_path / "a", None, net=runs.Net(way), epochs=3)
    callback = sparse(1.0, 0, 3, recovery=Recovery(1e-2, schedule, 1))
    masked, _ = runs.run(tmp_path / "b", callback, net=runs.Net(way))
    assert runs.same(plain.state_dict(), masked.state_dict())
    assert callback.final


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "step", "cyclic", "plateau", "none"])
def test_stage_two_has_rates_of_its_own(schedule, tmp_path):
    way = Optimization(lr=1e-2, schedule=schedule, warmup_epochs=0.4, every=2)
    callback = sparse(1.0, 2, 3, recovery=Recovery(4e-3, "cosine", 1))
    watch = runs.Watch(callback)
    runs.run(tmp_path, callback, watch, net=runs.Net(way))
    assert watch.rates[9] == 0.0  # the rate of the first step of stage 2
    rise = [4e-3 * step / 5 for step in range(1, 5)]
    fall = [4e-3 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)]
    assert watch.rates[10:] == pytest.approx(rise + fall, abs=1e-12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """40 steps of stage 2 after 5 of stage 1, with a checkpoint after each; the ramp takes 20."""
    folder = tmp_path_factory.mktemp("whole")
    callback = sparse(0.25, 1, 8, ramp=DensitySchedule(0.5, 6))
    runs.run(folder, callback, runs.Watch(callback, set(range(3, 45))))
    return folder


@pytest.mark.parametrize("step", range(3, 45))
def test_resume_at_every_step_gives_the_same_bits(step, whole, tmp_path):
    if step <= 5:  # the best of stage 1 is beside the checkpoint
        (tmp_path / "dense.ckpt").write_bytes((whole / "dense.ckpt").read_bytes())
    callback = sparse(0.25, 1, 8, ramp=DensitySchedule(0.5, 6))
    runs.run(tmp_path, callback, runs.Watch(callback, {44}), ckpt=whole / f"{step}.ckpt")
    one, other = (
        torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, tmp_path)
    )
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert runs.same(one[key], other[key]), key
    key = callback.state_key
    assert runs.same(one["callbacks"][key], other["callbacks"][key])


def test_history_says_what_was_kept(whole):
    history = pd.read_csv(whole / "history.csv")
    assert history["sparse/stage"].tolist() == [1] + [2] * 8
    assert history["sparse/activation_rate"].iloc[-1] == 0.25
    macs = {"stem": 64 * 64 * 27, "plain": 64 * 5120, "deep": 64 * 720, "second": 64 * 5120,
            "squeeze": 4096, "head": 192}  # fmt: skip
    sparse_macs = sum(macs.values()) - 0.75 * (macs["plain"] + macs["second"])
    assert history["sparse/macs_theoretical"].iloc[-1] == sparse_macs
    ratio = history["sparse/macs_theoretical_ratio"]
    assert ratio.iloc[-1] == pytest.approx(sparse_macs / sum(macs.values()))
    assert history["sparse/churn"].sum() == pytest.approx(0.75)
    assert {"lr", "sparse/weights_zero_fraction"} <= set(history)


def test_best_is_of_the_final_density_and_the_dense_best_is_kept(whole):
    dense, best = (
        torch.load(whole / name, weights_only=True) for name in ("dense.ckpt", "best.ckpt")
    )
    assert dense["epoch"] == 0
    assert dense["state_dict"]["plain.weight"].count_nonzero() == 5120
    assert best["epoch"] >= 4
    assert best["state_dict"]["plain.weight"].count_nonzero() == 1280


def test_stage_two_starts_from_the_best_of_stage_one(tmp_path):
    """Weights that are spoilt after the first epoch make it the best."""
    way = Optimization(lr=1e-2, schedule="step", every=1, factor=0.999)
    net, seen = runs.Net(way), []

    class Spoil(runs.L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                torch.nn.init.constant_(pl_module.head.weight, 30.0)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 11:
                seen.append(pl_module.head.weight.detach().abs().max())

    runs.run(tmp_path, sparse(1.0, 2, 2), Spoil(), net=net)
    assert torch.load(tmp_path / "dense.ckpt", weights_only=True)["epoch"] == 0
    assert seen[0] < 5


class KeepLast(runs.L.Callback):
    """The last.ckpt of stage 1, as a training that is killed in stage 2 would find it."""

    def on_train_epoch_start(self, trainer, pl_module):
        folder = Path(trainer.default_root_dir)
        if trainer.current_epoch == 1:
            (folder / "end.ckpt").write_bytes((folder / "last.ckpt").read_bytes())


def test_a_sparse_best_is_not_taken_for_the_dense_one(tmp_path):
    """Killed behind the best.ckpt of the first sparse epoch, in front of its last.ckpt."""
    runs.run(tmp_path, sparse(ramp=DensitySchedule(0.2, 2)), KeepLast())
    dense, last = ((tmp_path / name).read_bytes() for name in ("dense.ckpt", "last.ckpt"))
    runs.run(tmp_path, sparse(ramp=DensitySchedule(0.2, 2)), ckpt=tmp_path / "end.ckpt")
    assert (tmp_path / "dense.ckpt").read_bytes() == dense
    assert (tmp_path / "best.ckpt").is_file()
    one, other = (torch.load(io.BytesIO(last), weights_only=True),
                  torch.load(tmp_path / "last.ckpt", weights_only=True))  # fmt: skip
    assert runs.same(one["state_dict"], other["state_dict"])


@pytest.mark.parametrize(("content", "message"), [
    (None, "start: no checkpoint at .*wrong.ckpt"),
    (b"", "wrong.ckpt is no checkpoint, or damaged"),
    (b"no zip", "wrong.ckpt is no checkpoint, or damaged"),
    ({"epoch": 1}, "wrong.ckpt holds no weights of a checkpoint"),
])  # fmt: skip
def test_a_wrong_start_is_refused_before_anything_is_trained(content, message, tmp_path):
    file = tmp_path / "wrong.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        torch.save(content, file)
    for callback in (sparse(dense=0, start=str(file)), WarmStart(str(file))):
        watch = runs.Watch(sparse())
        with pytest.raises(ValueError, match=message):
            runs.run(tmp_path, None, callback, watch, epochs=2)
        assert watch.rates == []


def test_random_masks_ignore_the_weights(tmp_path):
    callback = sparse(0.25, choice="random")
    watch = runs.Watch(callback)
    net, _ = runs.run(tmp_path, callback, watch)
    assert (watch.strays, watch.densities[-1]) == ([], 0.25)
    assert net.plain.weight.count_nonzero() == 1280


def test_regrowing_exchanges_numbers_and_keeps_the_density(tmp_path):
    still, moving = sparse(), sparse(ramp=DensitySchedule(0.5, 4, regrow=0.3))
    watch = runs.Watch(moving)
    runs.run(tmp_path / "a", still)
    runs.run(tmp_path / "b", moving, watch)
    assert watch.strays == []
    assert watch.densities[-1] == 0.25
    assert pd.read_csv(tmp_path / "b/history.csv")["sparse/churn"].sum() > 0.76


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"precision": "bf16-true"},
                                     {"accumulate_grad_batches": 2}])  # fmt: skip
def test_precision_and_accumulation(options, tmp_path):
    callback = sparse()
    watch = runs.Watch(callback)
    runs.run(tmp_path, callback, watch, **options)
    assert (watch.strays, watch.densities[-1]) == ([], 0.25)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"density": 0}, "density: 0 is not above 0"),
    ({"density": 1.1}, "density: 1.1 is not above 0 and at most 1"),
    ({"start": "x.ckpt"}, "start: x.ckpt needs dense_epochs 0"),
    ({"epochs": 0}, "sparse_epochs: 0 is not at least 1"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sparse(**arguments)


def test_a_training_of_another_length_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"max_epochs: 7 is not dense_epochs 1 \+ sparse_epochs 2 = 3"
    ):
        runs.run(tmp_path, sparse(), epochs=7)


def test_nothing_left_to_prune_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nothing is left to prune: .*matches exclude"):
        runs.run(tmp_path, sparse(exclude=["plain", "second"]))


def test_masks_that_do_not_match_are_refused(whole, tmp_path):
    content = torch.load(whole / "30.ckpt", weights_only=True)
    content["state_dict"]["plain.weight"][:] = 1.0
    torch.save(content, tmp_path / "weights.ckpt")
    again = {"ramp": DensitySchedule(0.5, 6)}
    with pytest.raises(ValueError, match="do not match the weights"):
        runs.run(tmp_path, sparse(0.25, 1, 8, **again), ckpt=tmp_path / "weights.ckpt")
    content = torch.load(whole / "30.ckpt", weights_only=True)
    (key,) = [k for k in content["callbacks"] if "TwoStage" in k]
    content["callbacks"][key]["masks"][0][3] ^= 1
    torch.save(content, tmp_path / "bit.ckpt")
    with pytest.raises(ValueError, match="do not have the hash"):
        runs.run(tmp_path, sparse(0.25, 1, 8, **again), ckpt=tmp_path / "bit.ckpt")
    with pytest.raises(ValueError, match=r"density: 0.3 is not the 0.25 of the checkpoint"):
        runs.run(tmp_path, sparse(0.3, 1, 8, **again), ckpt=whole / "30.ckpt")
    del content["callbacks"][key]
    torch.save(content, tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="from stage 2 and holds none"):
        runs.run(tmp_path, sparse(0.25, 1, 8, **again), ckpt=tmp_path / "none.ckpt")
