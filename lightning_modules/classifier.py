"""ImageClassifier: a timm backbone with a head, and its training."""

import inspect
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.plugins import TorchSyncBatchNorm
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from datamodules.preprocess import Preprocess, as_settings
from evaluation.findings import AnyTable
from evaluation.metrics.compute import recall_and_precision
from evaluation.metrics.confusion import pair_accuracies
from evaluation.predictions import PredictionTable
from lightning_modules import backbones, checkpoints
from lightning_modules.base import BaseModule, Batch, Metadata
from lightning_modules.batch_norm import InPlaceSyncBatchNorm
from lightning_modules.cam import Explainer
from lightning_modules.freezing import FineTuning
from lightning_modules.heads import create_head
from lightning_modules.losses import LossConfig
from lightning_modules.optim import LRSchedulerConfig, OptimizerConfig
from lightning_modules.pruning import structure
from lightning_modules.tta import Images

Plain = bool | int | float | str | list[int] | list[float] | list[str] | None


class ImageClassifier(BaseModule):
    """A timm backbone with one logit per class, (B, K), trained by a loss with class weights.

    Checkpoints of a subclass can be loaded once the subclass is imported. Checkpoints record the
    arguments of its constructor, which must be plain values or dataclasses of such.

    From Python, `loss`, `optimizer`, `lr_scheduler` and `fine_tuning` may also be dicts.

    Args:
        class_names: the classes in the order of the logits; taken from the data.
        backbone: a timm name; `consilium backbones PATTERN` lists them.
        pretrained: true downloads timm's weights, false starts from random ones, a path reads a
            weight file.
        image_size: side of the input in pixels; taken from the data.
        backbone_args: further arguments of the timm model, for instance {drop_rate: 0.3}.
        head: softmax (one output per class), sigmoid (one output for two classes), ordinal (for
            ordered classes such as grades), one_vs_one (one output per pair of classes),
            multi_label (one output per finding, for images with several labels), or another entry
            of `lightning_modules.heads.HEADS`.
        loss: cross entropy, focal loss or a loss of your own, label smoothing, Mixup and CutMix.
        optimizer: optimizer, learning rate and weight decay.
        lr_scheduler: course of the learning rate.
        fine_tuning: frozen layers, and how the learning rate decreases with depth.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet50",
        pretrained: bool | str = False,
        image_size: int | None = None,
        backbone_args: dict[str, Plain] | None = None,
        head: str = "softmax",
        loss: LossConfig = LossConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        lr_scheduler: LRSchedulerConfig = LRSchedulerConfig(),
        fine_tuning: FineTuning = FineTuning(),
    ) -> None:
        loss, optimizer = as_settings(LossConfig, loss), as_settings(OptimizerConfig, optimizer)
        lr_scheduler = as_settings(LRSchedulerConfig, lr_scheduler)
        fine_tuning = as_settings(FineTuning, fine_tuning)
        init_args = checkpoints.constructor_arguments(self, inspect.currentframe())
        super().__init__()
        self.init_args, self.class_names = init_args, class_names
        self.backbone, self.backbone_args, self.head_name = backbone, backbone_args or {}, head
        self.head = create_head(head, class_names, loss.create())
        self.loss, self.optimizer, self.lr_scheduler = loss, optimizer, lr_scheduler
        self.fine_tuning = fine_tuning
        self.class_weights: Tensor | None = None
        #: hashes of the images that the initial weights were trained on
        self.initial_train_ids = torch.empty(0, dtype=torch.int64)
        self.structure: structure.Structure = {}
        weights = {"pretrained": pretrained, "image_size": image_size}
        self.net = self.build_net(backbone, {**(backbone_args or {}), **weights})
        # validate_args would synchronize with the GPU at every step
        num_choices = self.head.num_choices
        self.train_accuracy = MulticlassAccuracy(num_choices, average="micro", validate_args=False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        checkpoints.register(cls)

    @property
    def hparams(self) -> AttributeDict:
        """The arguments of the constructor as plain values."""
        return AttributeDict(self.init_args)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: object, *args: Any, **kwargs: Any) -> Self:
        """The module of a checkpoint on the CPU and in eval mode; the file has all arguments."""
        if args or kwargs:
            given = ", ".join([*map(repr, args), *kwargs])
            raise ValueError(f"load_from_checkpoint takes a path only, not {given}")
        module, block = checkpoints.load(str(checkpoint_path))
        if not isinstance(module, cls):
            message = f"is of {block.module}, not {cls.__name__}"
            raise checkpoints.CheckpointError(f"{checkpoint_path}: {message}")
        return module

    def build_net(self, backbone: str, options: dict[str, Any]) -> nn.Module:
        """A network with as many outputs as the head needs."""
        return backbones.build(backbone, self.head.num_outputs, **options)

    def apply_structure(self, pruned: structure.Structure) -> None:
        """Prunes the network to the channels of `pruned`; ValueError if it is pruned otherwise."""
        if pruned == self.structure:
            return
        if self.structure:
            raise ValueError("structure: the network is already pruned to other channels")
        structure.prune_channels(self.net, pruned)
        self.structure = pruned

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of normalized images (B, C, H, W)."""
        return self.logits(self.net(image))

    def logits(self, outputs: Tensor) -> Tensor:
        """One logit per class, (B, K), of the network's outputs."""
        return self.head.logits(outputs)

    def compute_loss(self, outputs: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
        """Loss of the network's outputs and labels (B,) or class probabilities (B, K)."""
        return self.head.loss(outputs, target, class_weights)

    def notes(self) -> list[str]:
        """Warnings if preprocessing differs from that of the checkpoint or pretrained weights."""
        notes, name = super().notes(), self.init_args.get("backbone")
        if self.datamodule and name and self.init_args.get("pretrained"):
            both = Preprocess.from_backbone(name), self.datamodule.preprocess
            recorded, ours = (f"mean {list(p.mean)} and std {list(p.std)}" for p in both)
            if recorded != ours:
                text = f"timm records {recorded} for pretrained weights of {name}"
                notes.append(f"{text}; preprocess has {ours}.")
        return notes

    def training_metrics(self, table: AnyTable) -> dict[str, float]:
        """`training_loss`: the loss that is trained (class weights, ...) on the labeled rows."""
        labeled = table.labeled
        values = torch.tensor(labeled.stored_values, dtype=torch.float32, device=self.device)
        target = torch.tensor(labeled.labels, device=self.device)
        loss = self.compute_loss(self.head.outputs(values), target, self.class_weights)
        return {"training_loss": float(loss)}

    def member_logits(self, images: Images) -> Tensor:
        """Logits of this single member, (B, 1, K), or its outputs if the head stores them.

        These are pair logits (B, 1, P): test-time augmentation averages them before coupling.
        """
        outputs: Tensor = self.net(single_view(images))
        return (outputs if self.head.stores_outputs else self.logits(outputs)).unsqueeze(1)

    def make_table(self, rows: pd.DataFrame, logits: np.ndarray, meta: Metadata) -> AnyTable:
        """The table of logits (n, K), or of stored outputs (n, P), by the head."""
        return self.head.make_table(rows, logits, self.class_names, meta)

    def explainer(self, size: int, method: str = "GradCAM") -> Explainer:
        """An Explainer, which computes saliency maps, for images of `size` pixels."""
        if self.head.is_multi_label:
            raise ValueError("saliency maps need one label per image, not several findings")
        return Explainer(self, size, method)

    def setup(self, stage: str) -> None:
        """Takes the class weights of the data and freezes parameters that never train."""
        manifest = self.datamodule.manifest if self.datamodule else None
        if manifest and manifest.is_multi_label != self.head.is_multi_label:
            kinds = ("one label per image", "several findings per image")
            needed, given = kinds[self.head.is_multi_label], kinds[manifest.is_multi_label]
            raise ValueError(f"head: {self.head_name} is for {needed}, the data has {given}")
        if stage == "fit":
            checkpoints.require_plain(type(self).__name__, self.init_args)
            for note in self.notes():
                rank_zero_warn(note)
            weights = self.datamodule.class_weights if self.datamodule else None
            self.class_weights = None if weights is None else torch.tensor(weights)
            strategy = self.trainer.strategy
            self.fine_tuning.prepare(self.net, getattr(strategy, "_ddp_kwargs", None))
            if type(getattr(strategy, "_layer_sync", None)) is TorchSyncBatchNorm:
                vars(strategy)["_layer_sync"] = InPlaceSyncBatchNorm()

    def on_fit_start(self) -> None:
        """Moves tensors of the loss and the class weights to the device."""
        if isinstance(self.head.loss_function, nn.Module):
            self.head.loss_function.to(self.device)
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        image, label = single_view(batch["image"]), batch["label"]
        image, target = self.loss.mix(image, label, len(self.class_names))
        outputs: Tensor = self.net(image)
        loss = self.compute_loss(outputs, target, self.class_weights)
        self.train_accuracy(*self.head.decisions(self.logits(outputs.detach()), label))
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def on_validation_epoch_end(self) -> None:
        """Computes the metrics of val and steps a plateau schedule before checkpoints are saved."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            metrics = {f"val/{name}": value for name, value in self.metrics["val"].items()}
            self.lr_scheduler.step_plateau(self.trainer, metrics)

    def on_train_epoch_start(self) -> None:
        """Freezes layers by the epoch only, so that a resumed run freezes the same layers."""
        self.fine_tuning.apply(self.net, self.current_epoch)
        self.train()

    on_train_start = on_train_epoch_start  # a resume may skip the start of its first epoch

    def train(self, mode: bool = True) -> Self:
        """Sets training mode, except for frozen layers: their batch norms do not change."""
        super().train(mode)
        if mode:
            self.fine_tuning.set_frozen_layers_to_eval(self.net)
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and schedule of the config."""
        lr, weight_decay = self.optimizer.lr, self.optimizer.weight_decay
        optimizer = self.optimizer.create(self.fine_tuning.param_groups(self.net, lr, weight_decay))
        scheduler = self.lr_scheduler.create(optimizer, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the block that describes the checkpoint, its constructor arguments included."""
        checkpoint.pop(self.CHECKPOINT_HYPER_PARAMS_KEY, None)  # LightningCLI would prefer them
        data, by_class = self.datamodule, dict[str, float]()
        if "val" in self.tables:
            table = self.tables["val"][""]
            if isinstance(table, PredictionTable):
                by_class = recall_and_precision(table) | pair_accuracies(table)
        used = data.used_images() if data else (np.empty(0, np.int64),) * 2
        train_ids, val_ids = map(torch.from_numpy, used)
        checkpoints.write_block(
            checkpoint,
            module=type(self).__name__,
            init_args=self.init_args,
            class_names=list(self.class_names),
            preprocess=data.preprocess.to_dict() if data else {},
            manifest_digest=data.manifest.digest() if data else "",
            train_ids=torch.unique(torch.cat([train_ids, self.initial_train_ids])),
            val_ids=val_ids,
            metrics=self.metrics.get("val", {}) | by_class,
            measured_weights=self.measured_weights,
            epoch=self.current_epoch + 1,
            structure=self.structure,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses other classes, another network or manifest, and a test on training samples."""
        block = checkpoints.parse_block(checkpoint, "checkpoint")
        if block.class_names != list(self.class_names):
            raise ValueError(f"checkpoint has classes {block.class_names}, not {self.class_names}")
        checkpoints.require_same_network(block, type(self).__name__, self.init_args)
        if self.trainer.training:
            digest = self.datamodule.manifest.digest() if self.datamodule else ""
            if block.manifest_digest != digest:
                reason = "was trained on another manifest; its splits may leak into these"
                raise ValueError(f"checkpoint: {reason}")
            checkpoints.require_same_training(block, self.init_args)
        self._check_preprocess(block)
        self.apply_structure(block.structure)
        self.checkpoint_weights = "" if self.trainer.training else block.weights
        self.initial_train_ids = block.train_ids
        if split := self.evaluation_split(self.trainer.state.fn or ""):
            paths = self.datamodule.paths(split) if self.datamodule else []
            checkpoints.refuse_trained_samples(block, paths, split, f"split {split!r}")

    def _check_preprocess(self, block: checkpoints.Block) -> None:
        """ValueError if Preprocess is not the checkpoint's; if that is allowed, sets a note."""
        ours = self.datamodule.preprocess.to_dict() if self.datamodule else {}
        differing = checkpoints.differing_settings(block.preprocess, ours)
        if differing and not self.allow_other_preprocess:
            hint = "set data.init_args.preprocess alike, or --allow_other_preprocess true"
            raise ValueError(f"checkpoint: trained {differing}; {hint}")
        note = f"Preprocessing differs from the training: trained {differing}."
        self.preprocess_note = note if differing else ""


checkpoints.register(ImageClassifier)


def single_view(images: Images) -> Tensor:
    """The images of a batch, (B, C, H, W); ValueError if it has several views."""
    if isinstance(images, dict):
        raise ValueError(f"a single model takes one view, the batch has {sorted(images)}")
    return images
