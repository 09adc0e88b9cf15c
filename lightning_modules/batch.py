"""What modules and the data meet in: the batch, and a few public attributes."""

from typing import Any, Protocol, TypedDict

import numpy as np
import pandas as pd
from torch import Tensor


class Batch(TypedDict):
    """One batch: `image` is (B, 3, H, W), or one such tensor a view for an ensemble."""

    image: Tensor | dict[str, Tensor]
    label: Tensor
    index: Tensor


class Samples(Protocol):
    """The manifest, as far as a module looks at it."""

    @property
    def table(self) -> pd.DataFrame:
        """One row a sample; a batch's `index` is a position in it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings that every report must carry."""

    def digest(self) -> str:
        """Hash of who is in which split with which label."""


class Settings(Protocol):
    """The Preprocess, as far as a module looks at it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""


class Data(Protocol):
    """The data module, as far as a module looks at it."""

    manifest: Samples
    preprocess: Settings
    class_weights: list[float] | None
    predict_split: str

    def rows(self, split: str) -> np.ndarray:
        """Positions of a split's samples in the manifest."""

    def view_names(self, views: list[dict[str, Any]]) -> list[str]:
        """The view of each Preprocess; from now on batches carry all of them."""
