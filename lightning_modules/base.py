"""Every sample once: what a module says of a split, gathered over processes, then measured."""

from typing import Any, cast

import lightning as L
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor

from evaluation.metrics.compute import epoch_metrics, nll
from evaluation.predictions import PredictionTable, require_ids
from lightning_modules.batch import Batch, Data
from lightning_modules.checkpoints import weights_hash
from lightning_modules.tta import averaged, looks

FIGURES = ("loss", "accuracy", "balanced_accuracy", "auroc")  # the names of what follows


def measured(table: PredictionTable) -> dict[str, float]:
    """Figures of each epoch; `loss` is the mean negative log-likelihood, whatever was trained."""
    return {"loss": float(nll(table).mean()), **epoch_metrics(table.probabilities, table.labels)}


def is_all(limit: float) -> bool:
    """Whether a limit of batches is none: 1.0 are all of them, the number 1 is one batch."""
    return isinstance(limit, float) and limit == 1.0


class BaseModule(L.LightningModule):
    """A module whose validate, test and predict count every sample once on any number of processes.

    Nothing is exchanged inside the loop: a process may have any number of samples, none included.
    After the loop rows are gathered by their true lengths, ordered by index and held against the
    split. `tables[split]` then holds the prediction table of the module under "" and those of a
    ensemble's members under their names. A subclass says `votes(batch)`, (B, M, K).
    """

    class_names: list[str]
    #: the members whose votes are asked for; a single model is its own and only member
    member_names: tuple[str, ...] = ("",)

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, dict[str, PredictionTable]] = {}
        self.figures: dict[str, dict[str, float]] = {}
        self.measured = ""
        self.stated = ""  # the weights that a checkpoint said it gave; "" while they may change
        #: how a picture is looked at once more, outside fit; nothing of it is kept in a checkpoint
        self.tta: list[str] = []
        self._seen: list[tuple[Tensor, Tensor]] = []

    @property
    def data(self) -> Data:
        """The trainer's data module, of which only these public attributes are used."""
        data: Data = cast(Any, self.trainer).datamodule
        return data

    def votes(self, batch: Batch) -> Tensor:
        """Logits of every member, (B, M, K)."""
        raise NotImplementedError

    def combine(
        self, members: dict[str, PredictionTable], meta: dict[str, Any]
    ) -> dict[str, PredictionTable]:
        """All tables to keep, given those of the members; the module's own stands under ""."""
        return members

    def member_meta(self, name: str, meta: dict[str, Any]) -> dict[str, Any]:
        """What a member's table says of itself; `meta` is what the module's own says."""
        return meta

    def tabulate(
        self, rows: pd.DataFrame, votes: np.ndarray, meta: dict[str, Any]
    ) -> PredictionTable:
        """The prediction table of one member's gathered votes."""
        return PredictionTable(rows, votes, self.class_names, meta)

    def ids(self, split: str) -> list[str]:
        """The ids of a split, as the data module has them."""
        return list(self.data.manifest.table["id"].iloc[self.data.rows(split)])

    def held_out(self, stage: str) -> str | None:
        """The split of a stage that nobody may have learnt from; None of the others."""
        splits = {"validate": "val", "test": "test", "predict": self.data.predict_split}
        split = splits.get(stage)
        return split if split in ("val", "test") else None

    def weights(self) -> dict[str, Tensor]:
        """Everything that decides the votes, by name."""
        return self.state_dict()

    def describe(self) -> dict[str, Any]:
        """What a prediction table says of the weights behind it."""
        return {"module": type(self).__name__, "weights": self.measured}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects one batch of the val split."""
        self._collect(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects one batch of the test split."""
        self._collect(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects one batch of the split to predict."""
        self._collect(batch)

    def on_validation_epoch_start(self) -> None:
        """Starts with the weights as they are now, and with no votes."""
        self._start()

    def on_test_epoch_start(self) -> None:
        """Starts with the weights as they are now, and with no votes."""
        self._start()

    def on_predict_epoch_start(self) -> None:
        """Starts with the weights as they are now, and with no votes."""
        self._start()

    def on_validation_epoch_end(self) -> None:
        """Measures the whole val split."""
        if self.trainer.sanity_checking:
            return
        self._gather("val", whole=is_all(self.trainer.limit_val_batches))
        self._measure("val")

    def on_test_epoch_end(self) -> None:
        """Measures the whole test split."""
        self._gather("test", whole=is_all(self.trainer.limit_test_batches))
        self._measure("test")

    def on_predict_epoch_end(self) -> None:
        """Gathers the predicted split; labels may be unknown, so nothing is measured."""
        self._gather(self.data.predict_split, whole=is_all(self.trainer.limit_predict_batches))

    def _start(self) -> None:
        self._seen.clear()  # an interrupted loop may have left some
        self.measured = weights_hash(self.weights())  # averaged weights are gone after the loop
        if self.stated and self.measured != self.stated:
            raise ValueError(
                "the weights in use are not those of the checkpoint: a callback changed them; "
                "average weights with callbacks.EMA"
            )

    def _collect(self, batch: Batch) -> None:
        votes = averaged(
            lambda seen: self.votes({**batch, "image": seen}), batch["image"], self._changes()
        )
        votes = votes.detach().float().cpu()
        self._seen.append((batch["index"].cpu(), votes))

    def _changes(self) -> list[str]:
        """How pictures are looked at once more; not at all between the epochs of a fit."""
        return [] if self.trainer.state.fn == "fit" else self.tta

    def _measure(self, split: str) -> None:
        """Figures are computed once, on the first process, so that all act on the same."""
        figures = measured(self.tables[split][""]) if self.trainer.is_global_zero else {}
        self.figures[split] = self.trainer.strategy.broadcast(figures)
        logged = {f"{split}/{k}": v for k, v in self.figures[split].items()}
        # after a fit they are of the best epoch and no part of the history
        kept = None if self.trainer.state.fn == "fit" else False
        self.log_dict(logged, prog_bar=True, logger=kept)

    def _gather(self, split: str, whole: bool) -> None:
        index, votes = (np.concatenate(part) for part in zip(*self._everyone(), strict=True))
        order = np.argsort(index, kind="stable")
        order = order[index[order] >= 0]  # -1: the stand-in of a process that has no sample
        rows = self.data.manifest.table.iloc[index[order]].drop(columns="path")
        meta = self._meta()
        members = {
            name: self.tabulate(rows, votes[order, m], self.member_meta(name, meta))
            for m, name in enumerate(self.member_names)
        }
        if whole:
            require_ids(members[self.member_names[0]], self.ids(split))
        self.tables[split] = self.combine(members, meta)

    def _everyone(self) -> list[tuple[np.ndarray, ...]]:
        """This process's rows, and those of all others, in the order of their ranks."""
        mine = tuple(torch.cat(part).numpy() for part in zip(*self._seen, strict=True))
        self._seen.clear()
        everyone: list[Any] = [mine]
        if dist.is_available() and dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
        return [rows for rows in everyone if rows]

    def _meta(self) -> dict[str, Any]:
        manifest = self.data.manifest
        notes = [*manifest.notes, *looks(self._changes())]
        known = {"manifest_digest": manifest.digest(), "notes": notes}
        return {**self.describe(), **known, "tta": self._changes()}
