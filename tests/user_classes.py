"""A model, a loss and a callback as a user of the library would write them."""

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules import ImageClassifier


class ScaledClassifier(ImageClassifier):
    """An ImageClassifier that doubles its logits."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


def hinge_loss(
    logits: Tensor, target: Tensor, class_weights: Tensor | None, margin: float = 1.0
) -> Tensor:
    return functional.multi_margin_loss(logits, target, margin=margin, weight=class_weights)


class BatchCounter(L.Callback):
    """Counts training batches."""

    batches = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        BatchCounter.batches += 1
        assert isinstance(pl_module, ScaledClassifier)
        assert torch.is_tensor(batch["image"])
