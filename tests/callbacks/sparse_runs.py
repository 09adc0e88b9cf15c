"""A network that trains in milliseconds, and trainings of it, for the tests of sparse training."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from callbacks import BestAndLastCheckpoint, HistoryWriter, StepSeeding, TwoStageSparseTraining
from lightning_modules.optim import Optimization

BATCHES, BATCH = 5, 8


class Net(L.LightningModule):
    """Convolutions of every kind: stem, plain, depthwise, squeeze-excite, linear, head."""

    def __init__(self, optimization: Optimization = Optimization(lr=1e-2)) -> None:
        super().__init__()
        self.optimization = optimization
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.plain = nn.Conv2d(64, 80, 1)
        self.deep = nn.Conv2d(80, 80, 3, padding=1, groups=80)
        self.second = nn.Conv2d(80, 64, 1, bias=False)
        self.squeeze = nn.Conv2d(64, 64, 1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(64, 3)

    def forward(self, image):
        x = self.norm(self.stem(image)).relu()
        x = self.second(self.deep(self.plain(x).relu())).relu()
        x = x * self.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()
        return self.head(self.drop(x.mean((2, 3))))

    def training_step(self, batch, batch_idx):
        """What is learned is drawn from the seed of the step, so it is the same after a resume."""
        label = torch.randint(3, (BATCH,))
        image = torch.randn(BATCH, 3, 16, 16)
        image[:, 0] += label[:, None, None].float() - 1
        return cross_entropy(self(image.to(batch["image"])), label)

    def validation_step(self, batch, batch_idx):
        loss = cross_entropy(self(batch["image"] + batch_idx), torch.full((BATCH,), batch_idx))
        self.log("val/loss", loss, sync_dist=True)

    def configure_optimizers(self):
        return self.optimization.configure(self, self.trainer)


class Watch(L.Callback):
    """After every optimizer step: what is left where the masks say 0; and a snapshot on request."""

    def __init__(self, sparse: TwoStageSparseTraining, save_at: set[int] = frozenset()) -> None:
        self.sparse, self.save_at = sparse, save_at
        self.strays: list[str] = []
        self.densities: list[float] = []
        self.rates: list[float] = []
        self.steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        held, optimizer = self.sparse.held, trainer.optimizers[0]
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.strays += held.strays(held.weights)
        if trainer.global_step > self.steps:  # in between gradients are still being summed
            self.strays += held.strays([weight.grad for weight in held.weights])
        self.steps = trainer.global_step
        for kind in {k for s in optimizer.state.values() for k in s} - {"step"}:
            self.strays += held.strays([optimizer.state.get(w, {}).get(kind) for w in held.weights])
        self.densities.append(self.sparse.account(pl_module)["activation_rate"])
        if trainer.global_step in self.save_at:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.global_step}.ckpt")


def run(
    folder: Path, sparse: TwoStageSparseTraining | None, *more: L.Callback, net: Net | None = None,
    ckpt: Path | None = None, epochs: int | None = None,
    **options,
):  # fmt: skip
    """Trains and returns (module, trainer)."""
    net = net or Net()
    epochs = epochs or sparse.dense_epochs + sparse.sparse_epochs
    callbacks = [
        StepSeeding(),
        HistoryWriter(),
        BestAndLastCheckpoint(),
        *([sparse] if sparse else []),
        *more,
    ]
    options = {"accelerator": "cpu", "devices": 1, "logger": False} | options
    trainer = L.Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=callbacks,
                        enable_progress_bar=False, enable_model_summary=False,
                        num_sanity_val_steps=0, use_distributed_sampler=False,
                        **options)  # fmt: skip
    batch = {"image": torch.zeros(BATCH, 3, 16, 16)}
    train, val = (DataLoader([batch] * n, batch_size=None) for n in (BATCHES, 2))
    trainer.fit(net, train, val, ckpt_path=ckpt, weights_only=True)
    return net, trainer


def same(one: object, other: object) -> bool:
    """Equal to the bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
