"""Tests models on 21, 5 and 1 images with WORLD processes; a script."""

import json
import logging
import sys
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler

from datamodules import ImageDataModule, Table
from datamodules.preprocess import Preprocess
from datamodules.sources import Findings
from lightning_modules import EnsembleModule, ImageClassifier
from lightning_modules.base import BaseModule

SIZES = (21, 5, 1)
CLASSES = ["none", "simple", "comminuted"]
FINDINGS = ["fracture", "splinters"]


class PaddedDataModule(ImageDataModule):
    """Uses torch's DistributedSampler, which repeats samples to give every process as many."""

    def test_dataloader(self) -> DataLoader:
        """The dataset of the exact loader with torch's sampler."""
        exact = super().test_dataloader()
        dataset = exact.dataset
        process = {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
        sampler = DistributedSampler(range(len(dataset)), shuffle=False, **process)
        keys = [(0, i) for i in sampler]
        return DataLoader(dataset, batch_size=4, sampler=keys, collate_fn=exact.collate_fn)


def main(world: int, folder: Path, datamodule: str) -> None:
    """Writes the prediction tables and metrics of every size to `folder`."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(0)
    single = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    findings = ImageClassifier(FINDINGS, "test_resnet", image_size=32, head="multi_label")
    for module in (single, findings):
        torch.nn.init.normal_(module.net.get_classifier().weight)  # a new head is 0
    members = sorted(str(path) for path in folder.parent.glob("member*.ckpt"))
    modules: dict[str, BaseModule] = {"single": single, "findings": findings}
    if members and not datamodule:
        modules["ensemble"] = EnsembleModule(CLASSES, members)
    metrics = {}
    for size in SIZES:
        for name, module in modules.items():
            data_class = PaddedDataModule if datamodule else ImageDataModule
            several = Findings() if name == "findings" else None
            file, root = str(folder.parent / f"{size}.csv"), str(folder.parent)
            source = Table(file, "patient", root, attributes=[], findings=several)
            data = data_class(
                source, module.class_names, Preprocess(size=32), batch_size=4, num_workers=0
            )
            trainer = L.Trainer(
                accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto",
                logger=False, enable_progress_bar=False, enable_model_summary=False,
                use_distributed_sampler=False, enable_checkpointing=False,
            )  # fmt: skip
            trainer.test(module, data, verbose=False)
            metrics[f"{name}-{size}"] = {k: float(v) for k, v in trainer.callback_metrics.items()}
            if trainer.is_global_zero:
                module.tables["test"][""].write(folder / f"{name}-{size}.parquet")
    if trainer.is_global_zero:
        (folder / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
