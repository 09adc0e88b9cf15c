"""What is done about rare classes; everything is counted on the training split alone."""

import hashlib
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

ClassWeights = Literal["none", "inverse", "sqrt", "effective"]


@dataclass(frozen=True)
class Balance:
    """Class weights for the loss, the order of training samples, and a limit a class.

    Args:
        class_weights: ``inverse`` frequency, its square root, the inverse ``effective`` number of
            samples, or one value a class; the mean over the samples of the named ones is 1.
        sampler: ``shuffled`` sees each sample once an epoch, ``weighted`` draws with replacement
            so that classes are equally likely, ``balanced`` sees each class equally often.
        limit: The most training samples a class; null keeps all.
        beta: For ``effective``: near 0 all weights are equal, near 1 they are as ``inverse``.
    """

    class_weights: ClassWeights | list[float] = "none"
    sampler: Literal["shuffled", "weighted", "balanced"] = "shuffled"
    limit: int | None = None
    beta: float = 0.999

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it must be at least 1, or null for none")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is {self.beta}; it must be from 0 to below 1")
        if self.class_weights != "none" and self.sampler != "shuffled":
            warnings.warn(
                f"class_weights and the sampler {self.sampler!r} both lift the rare classes",
                stacklevel=2,
            )

    def weights(self, labels: np.ndarray, class_names: list[str]) -> list[float] | None:
        """One weight a class from the training labels; None when classes are not weighted."""
        if self.class_weights == "none":
            return None
        if isinstance(self.class_weights, list):
            return _given(self.class_weights, class_names)
        counts = np.bincount(labels, minlength=len(class_names)).astype(float)
        if not counts.all():
            absent = [name for name, n in zip(class_names, counts, strict=True) if not n]
            raise ValueError(f"class_weights is {self.class_weights!r}; train has none of {absent}")
        raw = {
            "inverse": 1 / counts,
            "sqrt": 1 / np.sqrt(counts),
            "effective": (1 - self.beta) / (1 - self.beta**counts),
        }[self.class_weights]
        return [float(w) for w in raw * counts.sum() / (raw * counts).sum()]

    def limited(self, rows: np.ndarray, labels: np.ndarray, ids: list[str]) -> np.ndarray:
        """At most ``limit`` rows a class, chosen by a hash of the id so that they stay the same."""
        if self.limit is None:
            return rows
        order = sorted(range(len(rows)), key=lambda k: hashlib.sha256(ids[k].encode()).digest())
        kept: list[int] = []
        for label in np.unique(labels):
            kept += [k for k in order if labels[k] == label][: self.limit]
        return rows[sorted(kept)]


def _given(weights: list[float], class_names: list[str]) -> list[float]:
    if len(weights) != len(class_names) or min(weights) < 0:
        raise ValueError(f"class_weights is {weights}; give one value from 0 up for {class_names}")
    return [float(weight) for weight in weights]
