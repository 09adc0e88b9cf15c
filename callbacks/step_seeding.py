"""Every step draws from a seed of its own, so that a resumed run continues bit for bit."""

import os
import random

import lightning as L
import numpy as np
import torch


class StepSeeding(L.Callback):
    """Seeds every generator before a training step by (seed, step of the epoch, epoch, process).

    Dropout and mixing then depend on nothing that a checkpoint would have to carry, nor on what
    else drew random numbers before. The seed is the one given to `seed_everything`.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Seeds torch, numpy and random."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        place = (seed, batch_idx, trainer.current_epoch, trainer.global_rank)
        value = int(np.random.SeedSequence(place).generate_state(1)[0])
        torch.manual_seed(value)
        np.random.seed(value)
        random.seed(value)
