"""LinearProbe: fits the head to frozen features of the backbone before the first epoch."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from callbacks.weights import averages
from datamodules.datamodule import ImageDataModule
from datamodules.manifest import labels_of
from datamodules.samplers import Balance
from datamodules.splits import fold_of_patient
from lightning_modules.classifier import ImageClassifier
from lightning_modules.features import FeatureExtractor
from lightning_modules.freezing import require

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
MAX_ITERATIONS = 300


class LinearProbe(L.Callback):
    """Fits the head to frozen features before the first epoch.

    Minimizes the module's own loss, with its class weights and label smoothing, plus an L2 penalty
    on the weights of the standardized features; L-BFGS finds the optimum. The penalty is the one
    with the lowest negative log-likelihood in cross-validation by patients of the training split.
    With `recipe/probe.yaml` the fit ends there; `recipe/probe_then_finetune.yaml` trains on.

    Args:
        cache_dir: folder of the stored features; null keeps them in memory.
        augmented: number of augmented copies of each training image, used with the image itself.
        folds: number of parts of the patients, each of which is held out once.
        penalties: L2 penalties to choose from.
    """

    def __init__(
        self, cache_dir: str | None = "data/cache", augmented: int = 0, folds: int = 5,
        penalties: Sequence[float] = PENALTIES,
    ) -> None:  # fmt: skip
        require("LinearProbe.augmented", augmented, augmented >= 0, "at least 0")
        require("LinearProbe.folds", folds, folds >= 2, "at least 2")
        is_valid = len(penalties) > 0 and min(penalties) > 0
        require("LinearProbe.penalties", penalties, is_valid, "a list of numbers above 0")
        self.cache_dir, self.augmented, self.folds = cache_dir, augmented, folds
        self.penalties = sorted(penalties, reverse=True)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fits the head, except in a resumed fit, whose checkpoint has it."""
        if trainer.ckpt_path:
            return
        data = pl_module.datamodule if isinstance(pl_module, ImageClassifier) else None
        if not isinstance(pl_module, ImageClassifier) or data is None:
            raise ValueError("LinearProbe needs an ImageClassifier and an ImageDataModule")
        folder = None if self.cache_dir is None else Path(self.cache_dir)
        extractor = FeatureExtractor(pl_module, data, folder)
        with first_process_first(trainer):
            features, rows = self._training_features(extractor, data)
        start = time.monotonic()
        problem = HeadProblem.of_module(pl_module, data, features, rows)
        penalty, nll = problem.choose_penalty(self.penalties, self.folds)
        problem.fit(penalty).copy_to(extractor.head)
        for average in averages(trainer):
            average.module.load_state_dict(pl_module.state_dict())
        if trainer.is_global_zero:
            images, size, seconds = *features.shape, time.monotonic() - start
            chosen = f"penalty {penalty:g} (NLL {nll:.3f} of held-out patients)"
            print(f"linear probe: {images:,} images, {size:,} features, {chosen}, {seconds:.1f} s")

    def _training_features(
        self, extractor: FeatureExtractor, data: ImageDataModule
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, D) of the training images and their copies, and their manifest rows (n,)."""
        rows = data.rows("train")
        epochs = [None, *range(self.augmented)]
        features = [extractor.features(rows, epoch) for epoch in epochs]
        return np.concatenate(features), np.tile(rows, len(epochs))


class LinearHead(NamedTuple):
    """Weight (outputs, D) and bias (outputs,) of a linear layer."""

    weight: Tensor
    bias: Tensor

    def copy_to(self, layer: nn.Linear) -> None:
        """Sets weight and bias of `layer` to these values."""
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)


@dataclass(frozen=True)
class HeadProblem:
    """The fit of a module's head to features of its training images, a convex problem."""

    module: ImageClassifier
    features: Tensor  # (n, D), standardized
    mean: Tensor  # (D,) of the features before they were standardized
    scale: Tensor  # (D,) that they were divided by
    labels: Tensor  # (n,), or (n, K) of several findings
    class_weights: Tensor | None  # (K,), or (K, 2)
    patients: list[str]  # of all images, also in a problem of some rows

    @classmethod
    def of_module(
        cls, module: ImageClassifier, data: ImageDataModule, features: np.ndarray, rows: np.ndarray
    ) -> "HeadProblem":
        """The problem of raw features (n, D) of manifest rows (n,)."""
        table, values = data.manifest.table.iloc[rows], torch.from_numpy(features)
        std, mean = torch.std_mean(values, dim=0, correction=0)
        # what varies little is not magnified: its weights would be so large that the first steps
        # of fine-tuning destroy the head, and it is worse on patients that were held out
        scale = torch.maximum(std, std.square().mean().sqrt())
        scale = torch.where(scale > 0, scale, 1.0)
        labels = labels_of(table).astype(np.int64)
        weights = data.class_weights
        if data.balance.sampler != "shuffled":  # which favors rare classes as these weights do
            weights = Balance("inverse").compute_class_weights(labels, data.class_names)
        return cls(
            module, (values - mean) / scale, mean, scale, torch.from_numpy(labels),
            None if weights is None else torch.tensor(weights), table["patient"].tolist(),
        )  # fmt: skip

    def choose_penalty(self, penalties: Sequence[float], num_folds: int) -> tuple[float, float]:
        """The penalty with the lowest mean negative log-likelihood of held-out patients, and that.

        Tries penalties in order, starting at the heads of the one before, until two in a row are
        not better.
        """
        fold_of_row = np.array([fold_of_patient(patient, num_folds) for patient in self.patients])
        folds = [torch.from_numpy(fold_of_row == fold) for fold in np.unique(fold_of_row)]
        heads, nlls = dict[int, LinearHead](), list[float]()
        for penalty in penalties:
            for k, fold in enumerate(folds):
                heads[k] = self._of_rows(~fold).minimize(penalty, heads.get(k))
            nlls.append(sum(self._nll(heads[k], fold) for k, fold in enumerate(folds)))
            if sorted(nlls[-3:]) == nlls[-3:] and len(nlls) > 2:
                break
        best = int(np.argmin(nlls))
        return penalties[best], nlls[best] / len(self.labels)

    def _of_rows(self, rows: Tensor) -> "HeadProblem":
        """The problem with the features and labels of some rows only, (n,) bool."""
        return replace(self, features=self.features[rows], labels=self.labels[rows])

    def fit(self, penalty: float) -> LinearHead:
        """The head that `minimize` finds, converted to features that are not standardized."""
        weight, bias = self.minimize(penalty)
        weight = weight / self.scale
        return LinearHead(weight, bias - weight @ self.mean)

    def minimize(self, penalty: float, start: LinearHead | None = None) -> LinearHead:
        """The head of standardized features that minimizes loss + penalty / 2 * ||weight||^2."""
        shape = (self.module.head.num_outputs, self.features.shape[1])
        head = start or LinearHead(torch.zeros(shape), torch.zeros(shape[0]))
        parameters = [value.clone().requires_grad_() for value in head]
        optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
            parameters, max_iter=MAX_ITERATIONS, tolerance_grad=1e-5, history_size=20,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> float:
            """The penalized loss; sets the gradients of `parameters`."""
            optimizer.zero_grad()
            outputs = functional.linear(self.features, *parameters)
            loss = self.module.compute_loss(outputs, self.labels, self.class_weights)
            loss = loss + penalty / 2 * parameters[0].square().sum()
            torch.autograd.backward(loss)
            return float(loss.detach())

        with torch.enable_grad():
            optimizer.step(closure)
        return LinearHead(*(value.detach() for value in parameters))

    def _nll(self, head: LinearHead, rows: Tensor) -> float:
        """Sum of the negative log-likelihoods of some rows, (n,) bool."""
        logits = self.module.logits(functional.linear(self.features[rows], *head))
        decisions = self.module.head.decisions(logits, self.labels[rows])
        return float(functional.cross_entropy(*decisions, reduction="sum"))


@contextmanager
def first_process_first(trainer: L.Trainer) -> Iterator[None]:
    """Context that other processes enter after the first one has left it and filled the cache."""
    if not trainer.is_global_zero:
        trainer.strategy.barrier()
    yield
    if trainer.is_global_zero:
        trainer.strategy.barrier()
