"""Records what WORLD processes see in two training epochs; a script, since ddp starts itself."""

import hashlib
import json
import logging
import sys
from pathlib import Path

import lightning as L
import torch

from datamodules import ImageDataModule, Phantoms
from datamodules.preprocess import Preprocess


class Watcher(L.LightningModule):
    """Learns nothing that matters; keeps a hash of each picture by epoch and index."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, int, str]] = []

    def training_step(self, batch, batch_idx):
        for index, image in zip(batch["index"], batch["image"], strict=True):
            digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
            self.seen.append((self.current_epoch, int(index), digest))
        return self.net(batch["image"].mean().view(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def main(world: int, workers: int, root: str, out: Path) -> None:
    """Writes what each process saw to `out`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    source = Phantoms(patients=24, films=2, root=root, val=0.2, test=0.2)
    names = ["none", "simple", "comminuted"]
    view = Preprocess(size=32)
    data = ImageDataModule(source, names, view, "fracture", batch_size=4, workers=workers)
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_epochs=2,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, enable_checkpointing=False, limit_val_batches=0,
    )  # fmt: skip
    module = Watcher()
    trainer.fit(module, data)
    (out / f"{world}-{workers}-{trainer.global_rank}.json").write_text(json.dumps(module.seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
