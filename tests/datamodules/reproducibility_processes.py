"""Records the training images of several processes in two epochs; a script, as ddp restarts it."""

import hashlib
import json
import logging
import sys
from pathlib import Path

import lightning as L
import torch

from datamodules import ImageDataModule, Phantoms
from datamodules.preprocess import Preprocess


class Recorder(L.LightningModule):
    """Records (epoch, index, hash) of each training image; its training has no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.records: list[tuple[int, int, str]] = []

    def training_step(self, batch, batch_idx):
        for index, image in zip(batch["index"], batch["image"], strict=True):
            digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
            self.records.append((self.current_epoch, int(index), digest))
        return self.net(batch["image"].mean().view(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def main(world_size: int, num_workers: int, root: str, out: Path) -> None:
    """Writes the records of each process to `out`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    source = Phantoms(
        num_patients=24, images_per_patient=2, image_size=64, root=root, val=0.2, test=0.2
    )
    data = ImageDataModule(
        source, ["none", "simple", "comminuted"], Preprocess(size=32), "fracture", batch_size=4,
        num_workers=num_workers,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=world_size, strategy="ddp" if world_size > 1 else "auto",
        max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, enable_checkpointing=False, limit_val_batches=0,
    )  # fmt: skip
    module = Recorder()
    trainer.fit(module, data)
    file = out / f"{world_size}-{num_workers}-{trainer.global_rank}.json"
    file.write_text(json.dumps(module.records))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
