"""Every epoch draws from a seed of its own, so that a resumed run continues bit for bit."""

import os
import random

import lightning as L
import numpy as np
import torch


class Reseed(L.Callback):
    """Seeds every generator at the start of an epoch by (seed, epoch, process).

    Dropout and mixing then depend on nothing that a checkpoint would have to carry. The seed is
    the one given to `seed_everything`.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seeds torch, numpy and random."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        mixed = np.random.SeedSequence((seed, trainer.current_epoch, trainer.global_rank))
        value = int(mixed.generate_state(1)[0])
        torch.manual_seed(value)
        np.random.seed(value)
        random.seed(value)
