"""Validation, test and prediction that count every sample once on any number of processes."""

from typing import Any, TypedDict

import lightning as L
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor

from datamodules.datamodule import ImageDataModule
from evaluation.findings import AnyTable, MultiLabelTable, finding_metrics, label_columns
from evaluation.metrics.calibration import nll
from evaluation.metrics.compute import epoch_metrics
from evaluation.predictions import PredictionTable, require_ids
from lightning_modules.checkpoints import weights_hash
from lightning_modules.tta import Images, mean_logits, tta_notes

Tables = dict[str, AnyTable]  # by member; the own table of a module is under ""
Metadata = dict[str, Any]  # of a table
EPOCH_METRICS = (
    "loss", "accuracy", "balanced_accuracy", "kappa_quadratic", "auroc", "training_loss",
)  # fmt: skip


class Batch(TypedDict):
    """One batch; `image` is (B, C, H, W), or for an ensemble one such tensor per view name.

    `label` and `index` (row in the manifest) are (B,); labels of several findings are (B, K).
    """

    image: Images
    label: Tensor
    index: Tensor


class BaseModule(L.LightningModule):
    """A module whose validate, test and predict count every sample once on any number of processes.

    Processes exchange nothing within the loop, so each may have any number of samples, even none.
    After it the outputs are gathered, sorted by index and compared with the ids of the split.
    `tables[split]` then has the prediction table of the module under "" and those of an ensemble's
    members under their names. Without an `ImageDataModule` the index of a sample is its id.
    """

    class_names: list[str]
    #: names of the members in `member_logits`; a single model is its only member
    member_names: tuple[str, ...] = ("",)

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, Tables] = {}
        self.metrics: dict[str, dict[str, float]] = {}
        #: hash of the weights that the last loop evaluated
        self.measured_weights = ""
        #: hash in the loaded checkpoint, which the next loop must evaluate; "" during training
        self.checkpoint_weights = ""
        #: whether a checkpoint may be evaluated with another Preprocess than its own
        self.allow_other_preprocess = False
        #: how the Preprocess of the data differs from that of the loaded checkpoint
        self.preprocess_note = ""
        #: test-time augmentations of validate, test and predict (`lightning_modules.tta`)
        self.tta: list[str] = []
        self._outputs: list[tuple[Tensor, ...]] = []

    @property
    def datamodule(self) -> ImageDataModule | None:
        """The trainer's ImageDataModule, if it has one."""
        datamodule = getattr(self.trainer, "datamodule", None)
        return datamodule if isinstance(datamodule, ImageDataModule) else None

    def member_logits(self, images: Images) -> Tensor:
        """Logits of every member, (B, M, K), of a batch's images or views."""
        raise NotImplementedError

    def combine_tables(self, members: Tables, meta: Metadata) -> Tables:
        """All tables of a split, given those of the members; the module's own is under ""."""
        return members

    def make_table(self, rows: pd.DataFrame, logits: np.ndarray, meta: Metadata) -> AnyTable:
        """The prediction table of one member's logits, (n, K)."""
        return PredictionTable(rows, logits, self.class_names, meta)

    def metadata(self) -> Metadata:
        """Metadata of a prediction table that describe the weights behind it."""
        return {"module": type(self).__name__, "weights": self.measured_weights}

    def notes(self) -> list[str]:
        """Warnings about the model, which every report shows."""
        return [self.preprocess_note] if self.preprocess_note else []

    def training_metrics(self, table: AnyTable) -> dict[str, float]:
        """Additional metrics of val during a fit, by name; none by default."""
        return {}

    def split_ids(self, split: str) -> list[str]:
        """Ids of the samples of a split; empty without an ImageDataModule."""
        if self.datamodule is None:
            return []
        return list(self.datamodule.manifest.table["id"].iloc[self.datamodule.rows(split)])

    def evaluation_split(self, stage: str) -> str | None:
        """`val` or `test` if that is the split that a stage (validate, test, predict) evaluates."""
        predicted = self.datamodule.predict_split if self.datamodule else None
        split = {"validate": "val", "test": "test", "predict": predicted}.get(stage)
        return split if split in ("val", "test") else None

    def all_weights(self) -> dict[str, Tensor]:
        """All parameters and buffers that determine the predictions, by name."""
        return self.state_dict()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects index, label and logits (B, M, K) of one batch on the CPU."""
        logits = mean_logits(self.member_logits, batch["image"], self._tta_names())
        outputs = (batch["index"], batch["label"], logits.detach().float())
        self._outputs.append(tuple(output.cpu() for output in outputs))

    test_step = predict_step = validation_step

    def on_validation_epoch_start(self) -> None:
        """Sets the hash of the weights; ValueError if it is not that of the loaded checkpoint.

        It is computed here, as averaged weights are swapped out after the loop.
        """
        self._outputs.clear()  # an interrupted loop may have left some
        self.measured_weights = weights_hash(self.all_weights())
        if self.checkpoint_weights and self.measured_weights != self.checkpoint_weights:
            reason = "a callback changed them; average weights with callbacks.EMA"
            raise ValueError(f"the weights in use are not those of the checkpoint: {reason}")

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Computes the metrics of val."""
        if not self.trainer.sanity_checking:
            self._gather("val", self.trainer.limit_val_batches)
            self._compute_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Computes the metrics of test."""
        self._gather("test", self.trainer.limit_test_batches)
        self._compute_metrics("test")

    def on_predict_epoch_end(self) -> None:
        """Gathers the predicted split; its labels may be unknown, so there are no metrics."""
        split = self.datamodule.predict_split if self.datamodule else "predict"
        self._gather(split, self.trainer.limit_predict_batches)

    def _tta_names(self) -> list[str]:
        """Test-time augmentations; none in the validations of a fit."""
        return [] if self.trainer.state.fn == "fit" else self.tta

    def _compute_metrics(self, split: str) -> None:
        """Computes metrics on the first process, so that all processes act on the same values."""
        metrics: dict[str, float] = {}
        if self.trainer.is_global_zero:
            table = self.tables[split][""]
            if isinstance(table, MultiLabelTable):
                metrics = finding_metrics(table)
            else:  # the loss is that of the softmax, whatever loss was trained
                metrics["loss"] = float(nll(table).mean())
                metrics |= epoch_metrics(table.probabilities, table.labels)
            if self.trainer.state.fn == "fit":
                metrics |= self.training_metrics(table)
        self.metrics[split] = self.trainer.strategy.broadcast(metrics)
        logged = {f"{split}/{name}": value for name, value in self.metrics[split].items()}
        # after a fit, validate evaluates its best epoch, which loggers must not take for the last
        is_after_fit = self.trainer.state.fn == "validate" and self.current_epoch > 0
        self.log_dict(logged, prog_bar=True, logger=False if is_after_fit else None)

    def _gather(self, split: str, limit: float) -> None:
        """Sets `tables[split]`; ValueError if ids of the split are missing at `limit` 1.0."""
        index, label, logits = map(np.concatenate, zip(*self._gather_outputs(), strict=True))
        order = np.argsort(index, kind="stable")
        order = order[index[order] >= 0]  # -1: placeholder of a process that has no sample
        data, meta = self.datamodule, self._table_metadata()
        num_images = len(self.split_ids(split))
        if len(order) < num_images:
            note = f"{len(order):,} of {num_images:,} images of the {split} split were evaluated"
            meta["notes"].append(f"{note}: the number of batches is limited")
        if data is not None:
            rows = data.manifest.table.iloc[index[order]].drop(columns="path")
        else:
            columns = {"id": index[order].astype(str), "split": split}
            columns |= label_columns(label[order], self.class_names)
            rows = pd.DataFrame({**columns, "patient": "", "study": ""})
        by_member = zip(self.member_names, logits[order].swapaxes(0, 1), strict=True)
        members = {name: self.make_table(rows, values, meta) for name, values in by_member}
        is_whole = isinstance(limit, float) and limit == 1.0  # the integer 1 is one batch
        if is_whole and data is not None:
            require_ids(members[self.member_names[0]], self.split_ids(split))
        self.tables[split] = self.combine_tables(members, meta)

    def _gather_outputs(self) -> list[tuple[np.ndarray, ...]]:
        """For each process with samples: index (n,), labels (n,) and logits (n, M, K)."""
        own = tuple(torch.cat(part).numpy() for part in zip(*self._outputs, strict=True))
        self._outputs.clear()
        gathered: list[Any] = [own]
        if dist.is_available() and dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, own)
        return [outputs for outputs in gathered if outputs]

    def _table_metadata(self) -> Metadata:
        """Metadata of the prediction tables of this evaluation: weights, manifest, notes, TTA."""
        manifest, tta = self.datamodule.manifest if self.datamodule else None, self._tta_names()
        use = self.datamodule.clinical_use if self.datamodule else None
        return {
            **self.metadata(),
            "manifest_digest": manifest.digest() if manifest else "",
            "notes": [*(manifest.notes if manifest else ()), *tta_notes(tta), *self.notes()],
            "tta": tta,
            "precision": self.trainer.precision,
            **({"clinical_use": use} if use else {}),
        }
