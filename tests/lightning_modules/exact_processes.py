"""Tests one model on 21, 5 and 1 images with WORLD processes; a script, since ddp starts itself."""

import json
import logging
import sys
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler

from datamodules import ImageDataModule, Table
from datamodules.preprocess import Preprocess
from lightning_modules import EnsembleModule, ImageClassifier
from lightning_modules.base import BaseModule

SIZES = (21, 5, 1)
CLASSES = ["none", "simple", "comminuted"]


class Padded(ImageDataModule):
    """The mutation: torch's own sampler, which repeats samples to even out the processes."""

    def test_dataloader(self) -> DataLoader:
        """The exact loader's data set behind torch's sampler."""
        exact = super().test_dataloader()
        data = exact.dataset
        place = {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
        pairs = [(0, i) for i in DistributedSampler(range(len(data)), shuffle=False, **place)]
        return DataLoader(data, batch_size=4, sampler=pairs, collate_fn=exact.collate_fn)


def main(world: int, folder: Path, mutation: str) -> None:
    """Writes the prediction tables and figures of every size to `folder`."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(0)
    single = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    members = sorted(str(path) for path in folder.parent.glob("member*.ckpt"))
    subjects: dict[str, BaseModule] = {"single": single}
    if members and not mutation:
        subjects["ensemble"] = EnsembleModule(CLASSES, members)
    figures = {}
    for size in SIZES:
        for name, module in subjects.items():
            kind = Padded if mutation else ImageDataModule
            source = Table(str(folder.parent / f"{size}.csv"), "patient", root=str(folder.parent))
            data = kind(source, CLASSES, Preprocess(size=32), batch_size=4, workers=0)
            trainer = L.Trainer(
                accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto",
                logger=False, enable_progress_bar=False, enable_model_summary=False,
                use_distributed_sampler=False, enable_checkpointing=False,
            )  # fmt: skip
            trainer.test(module, data, verbose=False)
            figures[f"{name}-{size}"] = {k: float(v) for k, v in trainer.callback_metrics.items()}
            if trainer.is_global_zero:
                module.tables["test"][""].write(folder / f"{name}-{size}.parquet")
    if trainer.is_global_zero:
        (folder / "figures.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
