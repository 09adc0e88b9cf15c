"""A random seed for every training step, so that a resumed fit continues bit for bit."""

import os
import random

import lightning as L
import numpy as np
import torch


class StepSeeding(L.Callback):
    """Seeds torch, numpy and random before a step by (seed, step in the epoch, epoch, process).

    The random numbers of a step (dropout, Mixup) then depend neither on state that a checkpoint
    would have to store nor on earlier random numbers. The seed is that of `seed_everything`.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Seeds the global random number generators."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        entropy = (seed, batch_idx, trainer.current_epoch, trainer.global_rank)
        step_seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.manual_seed(step_seed)
        np.random.seed(step_seed)
        random.seed(step_seed)
