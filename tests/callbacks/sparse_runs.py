"""A network that trains in milliseconds, and fits of it, for the tests of sparse training."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from callbacks import BestAndLastCheckpoint, HistoryWriter, StepSeeding, TwoStageSparseTraining
from lightning_modules.freezing import FineTuning
from lightning_modules.optim import LRSchedulerConfig, OptimizerConfig

NUM_BATCHES, BATCH_SIZE = 5, 8


class Net(L.LightningModule):
    """Layers of every kind: stem, plain, depthwise and squeeze-excite convolutions, and a head."""

    def __init__(
        self,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-2),
        lr_scheduler: LRSchedulerConfig = LRSchedulerConfig(),
    ) -> None:
        super().__init__()
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
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
        """Trains on images drawn from the seed of the step, so that a resume draws the same."""
        label = torch.randint(3, (BATCH_SIZE,))
        image = torch.randn(BATCH_SIZE, 3, 16, 16)
        image[:, 0] += label[:, None, None].float() - 1
        return cross_entropy(self(image.to(batch["image"])), label)

    def validation_step(self, batch, batch_idx):
        loss = cross_entropy(self(batch["image"] + batch_idx), torch.full((BATCH_SIZE,), batch_idx))
        self.log("val/loss", loss, sync_dist=True)

    def configure_optimizers(self):
        lr, weight_decay = self.optimizer.lr, self.optimizer.weight_decay
        optimizer = self.optimizer.create(FineTuning().param_groups(self, lr, weight_decay))
        scheduler = self.lr_scheduler.create(optimizer, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Recorder(L.Callback):
    """After every step: weights whose pruned values are not 0, densities and learning rates.

    Saves a checkpoint after the steps of `save_at`.
    """

    def __init__(self, sparse: TwoStageSparseTraining, save_at: set[int] = frozenset()) -> None:
        self.sparse, self.save_at = sparse, save_at
        self.unmasked: list[str] = []
        self.densities: list[float] = []
        self.rates: list[float] = []
        self.steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        masked, optimizer = self.sparse.masked, trainer.optimizers[0]
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.unmasked += masked.unmasked_names(masked.tensors)
        if trainer.global_step > self.steps:  # gradients are still accumulated otherwise
            self.unmasked += masked.unmasked_names([tensor.grad for tensor in masked.tensors])
        self.steps = trainer.global_step
        for name in {name for state in optimizer.state.values() for name in state} - {"step"}:
            states = [optimizer.state.get(tensor, {}).get(name) for tensor in masked.tensors]
            self.unmasked += masked.unmasked_names(states)
        self.densities.append(masked.sparsity_metrics(pl_module)["density"])
        if trainer.global_step in self.save_at:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.global_step}.ckpt")


def run(
    folder: Path, sparse: TwoStageSparseTraining | None, *others: L.Callback,
    net: Net | None = None,
    ckpt: Path | None = None, epochs: int | None = None,
    **options,
):  # fmt: skip
    """Fits a Net and returns (module, trainer)."""
    net = net or Net()
    epochs = epochs or sparse.dense_epochs + sparse.sparse_epochs
    callbacks = [
        StepSeeding(),
        HistoryWriter(),
        BestAndLastCheckpoint(),
        *([sparse] if sparse else []),
        *others,
    ]
    options = {"accelerator": "cpu", "devices": 1, "logger": False} | options
    trainer = L.Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=callbacks,
                        enable_progress_bar=False, enable_model_summary=False,
                        num_sanity_val_steps=0, use_distributed_sampler=False,
                        **options)  # fmt: skip
    batch = {"image": torch.zeros(BATCH_SIZE, 3, 16, 16)}
    train, val = (DataLoader([batch] * n, batch_size=None) for n in (NUM_BATCHES, 2))
    trainer.fit(net, train, val, ckpt_path=ckpt, weights_only=True)
    return net, trainer


def is_equal(first: object, second: object) -> bool:
    """Whether two values are equal to the bit, including those in dicts and lists."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        same_keys = first.keys() == second.keys()
        return same_keys and all(is_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(is_equal, first, second))
    return first == second
