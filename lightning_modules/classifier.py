"""One backbone and its training: K classes, one logit each."""

from typing import Any, Literal, Self

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from evaluation import one_vs_one
from evaluation.metrics.compute import by_class
from lightning_modules import backbones, checkpoints, same_network
from lightning_modules.base import BaseModule
from lightning_modules.batch import Batch
from lightning_modules.cam import Explainer
from lightning_modules.freezing import FineTuning, rest
from lightning_modules.losses import Loss, binary_logits
from lightning_modules.mixup import Mixing
from lightning_modules.optim import Optimization
from lightning_modules.pruning import structure

Plain = bool | int | float | str | list[int] | list[float] | list[str] | None


@checkpoints.register
class ImageClassifier(BaseModule):
    """A timm backbone that gives one logit a class, (B, K), and learns by a weighted loss.

    Args:
        class_names: the classes in the order of the logits; linked from the data.
        backbone: a timm name; `consilium backbones PATTERN` lists them.
        pretrained: true fetches timm's weights, false starts from random ones, a path reads a file.
        image_size: side of the input in pixels; linked from the data.
        backbone_args: further arguments of the timm model, drop_rate for instance.
        loss: focal loss, class weights and smoothing.
        optimization: optimizer and schedule.
        tuning: what is frozen, and how the learning rate falls with depth.
        head: softmax over K logits, or for two classes one logit z and its sigmoid; the logits
            are then [0, z].
        mixing: Mixup and CutMix of training batches.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet50",
        pretrained: bool | str = False,
        image_size: int | None = None,
        backbone_args: dict[str, Plain] | None = None,
        loss: Loss = Loss(),
        optimization: Optimization = Optimization(),
        tuning: FineTuning = FineTuning(),
        head: Literal["softmax", "sigmoid"] = "softmax",
        mixing: Mixing = Mixing(),
    ) -> None:
        init_args = checkpoints.plain(locals())
        super().__init__()
        self.init_args = init_args
        self.class_names = class_names
        self.loss, self.optimization, self.tuning = loss, optimization, tuning
        self.head, self.mixing = head, mixing
        self.class_weights: Tensor | None = None
        self.learnt = torch.empty(0, dtype=torch.int64)  # ids that its first weights were made of
        self.structure: structure.Kept = {}
        options: dict[str, Any] = dict(backbone_args or {})
        options |= {"pretrained": pretrained, "image_size": image_size}
        self.net = self.build_net(backbone, options)
        self.train_accuracy = MulticlassAccuracy(
            len(class_names),
            average="micro",
            validate_args=False,  # which would wait for the GPU
        )

    def build_net(self, backbone: str, options: dict[str, Any]) -> nn.Module:
        """The network behind `forward`, with as many outputs as `head` needs."""
        outputs = len(self.class_names)
        if self.head == "sigmoid" and outputs != 2:
            raise ValueError(f"head: sigmoid is for two classes, not {self.class_names}")
        return backbones.build(backbone, 1 if self.head == "sigmoid" else outputs, **options)

    def restructure(self, kept: structure.Kept) -> None:
        """Leaves of each layer the channels that `kept` names; once, for good."""
        if kept == self.structure:
            return
        if self.structure:
            raise ValueError("structure: other channels of this network are pruned already")
        structure.narrow(self.net, kept)
        self.structure = kept

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of normalized images (B, 3, H, W)."""
        return self.logits(self.net(image))

    def logits(self, outputs: Tensor) -> Tensor:
        """One logit a class, (B, K), of the network's outputs."""
        return binary_logits(outputs) if self.head == "sigmoid" else outputs

    def cost(self, outputs: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """The loss of the network's outputs, given labels (B,) or class shares (B, K)."""
        return self.loss(self.logits(outputs), target, weights)

    def votes(self, batch: Batch) -> Tensor:
        """Its own logits as those of one member, (B, 1, K)."""
        logits: Tensor = self(one_view(batch))
        return logits.unsqueeze(1)

    def explainer(self, size: int, method: str = "GradCAM") -> Explainer:
        """What says where in images of `size` pixels its answers come from."""
        return Explainer(self, size, method)

    def setup(self, stage: str) -> None:
        """Takes the class weights of the training split and freezes what never trains."""
        if stage == "fit":
            weights = self.data.class_weights
            self.class_weights = None if weights is None else torch.tensor(weights)
            self.tuning.hold(self.net, getattr(self.trainer.strategy, "_ddp_kwargs", None))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        image, target = self.mixing(one_view(batch), batch["label"], len(self.class_names))
        outputs: Tensor = self.net(image)
        weights = None if self.class_weights is None else self.class_weights.to(outputs.device)
        loss = self.cost(outputs, target, weights)
        self.train_accuracy(self.logits(outputs.detach()), batch["label"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def on_validation_epoch_end(self) -> None:
        """Measures val, and tells a plateau schedule before checkpoints are written."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            figures = {f"val/{name}": value for name, value in self.figures["val"].items()}
            self.optimization.observe(self.trainer, figures)

    def on_train_start(self) -> None:
        """Freezes: after a resume Lightning may leave out the start of the first epoch."""
        self._freeze()

    def on_train_epoch_start(self) -> None:
        """Freezes and thaws."""
        self._freeze()

    def _freeze(self) -> None:
        """What stands still is a function of the epoch alone, so it is the same after a resume."""
        self.tuning.apply(self.net, self.current_epoch)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Train mode, but for frozen layers: their batch norms stay as they are."""
        super().train(mode)
        if mode:
            rest(self.net)
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and schedule that `optimization` names."""
        return self.optimization.configure(self.net, self.trainer, self.tuning)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the block by which the checkpoint describes itself."""
        data = self.data
        checkpoints.write_block(
            checkpoint,
            module=type(self).__name__,
            init_args=self.init_args,
            class_names=list(self.class_names),
            preprocess=data.preprocess.to_dict(),
            manifest_digest=data.manifest.digest(),
            train_ids=torch.unique(
                torch.cat([checkpoints.id_hashes(self.ids("train")), self.learnt])
            ),
            val_ids=checkpoints.id_hashes(self.ids("val")),
            metrics=self.figures.get("val", {}) | self._details(),
            measured_weights=self.measured,
            epoch=self.current_epoch + 1,
            structure=self.structure,
        )

    def _details(self) -> dict[str, float]:
        """Figures of each class and of each pair of heads on val."""
        if "val" not in self.tables:
            return {}
        table = self.tables["val"][""]
        return by_class(table) | one_vs_one.accuracies(table)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another's classes and splits, and to be tested on what it was trained on."""
        block = checkpoints.read_block(checkpoint, "checkpoint")
        if block.class_names != list(self.class_names):
            raise ValueError(f"checkpoint has classes {block.class_names}, not {self.class_names}")
        same_network.require(block, type(self).__name__, self.init_args)
        if self.trainer.training and block.manifest_digest != self.data.manifest.digest():
            raise ValueError(
                "checkpoint: was trained on another manifest; its splits may leak into these"
            )
        self.restructure(block.structure)
        self.stated = "" if self.trainer.training else block.weights
        self.learnt = block.train_ids
        if split := self.held_out(self.trainer.state.fn or ""):
            checkpoints.refuse_seen(block, self.ids(split), split, f"split {split!r}")


def one_view(batch: Batch) -> Tensor:
    """The images of a batch for a single model, (B, C, H, W)."""
    image = batch["image"]
    if isinstance(image, dict):
        raise ValueError(f"a single model takes one view, the batch holds {sorted(image)}")
    return image
