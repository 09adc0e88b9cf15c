"""Fits a partly frozen model on two processes; a script."""

import json
import logging
import sys
from pathlib import Path

import lightning as L
import torch

from datamodules import ImageDataModule, Phantoms
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from lightning_modules.checkpoints import weights_hash
from lightning_modules.freezing import FineTuning, parameter_stages

CLASSES = ["none", "simple", "comminuted"]


class RecordHashes(L.Callback):
    """Records after each epoch the hash of the first stage and of the whole network."""

    def __init__(self) -> None:
        self.hashes: list[list[str]] = []

    def on_train_epoch_end(self, trainer, pl_module):
        net, stages = pl_module.net, parameter_stages(pl_module.net)
        first = {name: p for name, p in net.named_parameters() if stages[name] <= 1}
        self.hashes.append([weights_hash(first), weights_hash(dict(net.named_parameters()))])


def main(strategy: str, unfreeze_epochs: list[int], root: str, out: Path) -> None:
    """Writes the hashes of each process to `out`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = Phantoms(num_patients=16, images_per_patient=2, root=root, val=0.2, test=0.2)
    data = ImageDataModule(source, CLASSES, Preprocess(size=32), batch_size=8, num_workers=0)
    fine_tuning = FineTuning(frozen_stages=1, unfreeze_epochs=unfreeze_epochs)
    module = ImageClassifier(CLASSES, "test_resnet", image_size=32, fine_tuning=fine_tuning)
    record = RecordHashes()
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=3, callbacks=[record],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    record.hashes.append([str(float(trainer.callback_metrics["train/loss"])), "loss"])
    (out / f"{trainer.global_rank}.json").write_text(json.dumps(record.hashes))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
