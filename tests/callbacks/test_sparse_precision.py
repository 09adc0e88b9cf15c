"""Masks under fp16 with loss scaling, accumulation and clipping; sharded weights refused."""

import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from callbacks import TwoStageSparseTraining
from callbacks.sparse_training.masked_weights import require_plain_weight
from callbacks.sparse_training.stages import DensitySchedule, Recovery

spec = importlib.util.spec_from_file_location(
    "sparse_runs", Path(__file__).with_name("sparse_runs.py")
)
runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runs)


def sparse(regrow_fraction=0.0):
    schedule = DensitySchedule(0.5, 4, regrow_fraction)
    return TwoStageSparseTraining(0.25, 1, 4, density_schedule=schedule, recovery=Recovery(lr=5e-3))


class InfiniteGradients(L.Callback):
    """Sets a gradient to infinity, as an overflow of fp16 does, at some steps of both stages."""

    def __init__(self, steps):
        self.steps, self.scales = steps, []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.scales.append(trainer.precision_plugin.scaler.get_scale())

    def on_after_backward(self, trainer, pl_module):
        if trainer.fit_loop.total_batch_idx in self.steps:
            pl_module.plain.weight.grad[0, 0] = math.inf


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("regrow_fraction", [0.0, 0.3])
def test_fp16_with_loss_scaling_accumulation_and_clipping(accumulate, regrow_fraction, tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    callback, overflows = sparse(regrow_fraction), InfiniteGradients({2, 7, 9, 16, 20})
    recorder = runs.Recorder(callback)
    net, _ = runs.run(tmp_path, callback, overflows, recorder, gradient_clip_val=0.5,
                      accumulate_grad_batches=accumulate,
                      plugins=[MixedPrecision("16-mixed", "cpu", scaler)])  # fmt: skip
    assert scaler.get_scale() == 2.0**10 * 0.5 ** len(overflows.steps)
    assert (recorder.unmasked, recorder.densities[-1]) == ([], 0.25)
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert int(state["plain.weight"].count_nonzero()) == 1280


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_shard_are_refused_before_anything_is_trained(strategy):
    trainer = SimpleNamespace(max_epochs=5, strategy=strategy())
    with pytest.raises(ValueError, match=f"{strategy.__name__} shards weights"):
        sparse().setup(trainer, runs.Net(), "fit")


def test_a_sharded_weight_is_refused_by_name():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        weight = torch.nn.Parameter(distribute_tensor(torch.randn(8, 8), mesh, [Shard(0)]))
        with pytest.raises(ValueError, match=r"net\.w: sharded or wrapped weights \(DTensor\)"):
            require_plain_weight("net.w", weight)
    finally:
        dist.destroy_process_group()
