"""Voters with their own weights for each value of an attribute, such as the body part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from evaluation.predictions import MIN_PROBABILITY, PredictionTable, safe_log
from evaluation.voters.learned import (
    SHRINKAGE_ROWS,
    WEIGHT_DECAY,
    fitting_data,
    min_nll_weights,
    refine_inverse_temperature,
    tempered_nll_gradients,
)
from evaluation.voters.simple import (
    check_member_count,
    normalized_weights,
)


@dataclass(frozen=True)
class PerGroup:
    """Weights (values, members) for each value of an attribute; other values get `common`.

    The weights of a group of n rows are s x its own + (1 - s) x common with s = n / (n + 100).
    """

    attribute: str
    values: list[str]
    weights: np.ndarray
    common: np.ndarray
    name: ClassVar[str] = "per_group"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", normalized_weights(self.weights))
        object.__setattr__(self, "common", normalized_weights(self.common))

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Pools each image by the weights of its group."""
        check_member_count(members, len(self.common))
        weights = self.weights_of(require_groups(self.attribute, groups))
        return np.asarray(np.einsum("nm,mnk->nk", weights, members))

    def weights_of(self, groups: np.ndarray) -> np.ndarray:
        """Weights (n, members) of the group of each image."""
        row = {value: i for i, value in enumerate(self.values)}
        table = np.vstack([self.weights, self.common])
        return np.asarray(table[[row.get(str(group), -1) for group in groups]])

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """The weights of the group of each image."""
        return self.weights_of(require_groups(self.attribute, groups))

    def weight_rows(self, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """One row per value of the attribute."""
        return dict(zip(self.values, self.weights, strict=True))


@dataclass(frozen=True)
class GroupAttention:
    """Weights from an attention layer for the named groups, those of `fallback` for all others.

    The layer scores member m of an image by `bias[m] + keys[m] . f`, f being that member's own
    centered log-probabilities and its entropy, and pools under the softmax of the scores.
    `bias` is (groups, members), `keys` (groups, members, K + 1).
    """

    groups: list[str]
    bias: np.ndarray
    keys: np.ndarray
    fallback: PerGroup
    name: ClassVar[str] = "group_attention"

    @property
    def attribute(self) -> str:
        """Attribute whose values are the groups."""
        return self.fallback.attribute

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Pools each image by the weights of its group's layer."""
        check_member_count(members, self.bias.shape[1])
        weights = self.weights_of(members, require_groups(self.attribute, groups))
        return np.asarray(np.einsum("nm,mnk->nk", weights, members))

    def weights_of(self, members: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Weights (n, members) of each image."""
        weights, names = self.fallback.weights_of(groups), groups.astype(str)
        for name, bias, keys in zip(self.groups, self.bias, self.keys, strict=True):
            inside = names == name
            weights[inside] = attention_weights(bias, keys, attention_features(members[:, inside]))
        return weights

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """The weights of each image, the same for each class."""
        return self.weights_of(members, require_groups(self.attribute, groups))

    def weight_rows(self, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """The rows of `fallback`: weights from attention differ from image to image."""
        return self.fallback.weight_rows(class_names)


def require_groups(attribute: str, groups: np.ndarray | None) -> np.ndarray:
    """The groups unchanged; ValueError if they are absent or a value is empty."""
    if groups is None:
        raise ValueError(f"this voter needs the attribute {attribute!r} of each image")
    empty = [row for row, group in enumerate(groups) if group is None or str(group) in ("", "nan")]
    if empty:
        raise ValueError(f"{len(empty)} images lack {attribute!r}, at rows {empty[:5]}")
    return groups


def attention_features(members: np.ndarray) -> np.ndarray:
    """Inputs (members, n, K + 1) of the attention layer: centered log-probabilities and entropy.

    Log-probabilities are clipped at -10, so that one confident member does not dominate.
    """
    clipped = np.maximum(safe_log(members), -10.0)
    entropy = -(members * safe_log(members)).sum(axis=2, keepdims=True)
    return np.concatenate([clipped - clipped.mean(axis=2, keepdims=True), entropy], axis=2)


def attention_weights(bias: np.ndarray, keys: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Softmax over members of the scores, (n, members)."""
    scores = bias[:, None] + np.einsum("mf,mnf->mn", keys, features)
    return np.asarray(softmax(scores, axis=0).T)


def fit_per_group(
    tables: Sequence[PredictionTable],
    attribute: str = "body_part",
    shrinkage: float = SHRINKAGE_ROWS,
) -> PerGroup:
    """Weights of least NLL for each value of the attribute, shrunk towards common weights."""
    members, table = fitting_data(tables, f"weights per {attribute}")
    if attribute not in table.attributes:
        raise ValueError(f"attribute {attribute!r} is not among {table.attributes}")
    column = table.rows[attribute].fillna("").astype(str).to_numpy(dtype=object)
    groups = require_groups(attribute, column)
    common, values = min_nll_weights(members, table.labels), sorted(set(groups))
    rows = []
    for value in values:
        inside = groups == value
        ratio = inside.sum() / (inside.sum() + shrinkage)
        own = min_nll_weights(members[:, inside], table.labels[inside])
        rows.append(ratio * own + (1 - ratio) * common)
    return PerGroup(attribute, [str(v) for v in values], np.stack(rows), common)


def fit_group_attention(
    tables: Sequence[PredictionTable],
    attended_groups: Sequence[str],
    attribute: str = "body_part",
    weight_decay: float = WEIGHT_DECAY,
) -> GroupAttention:
    """An attention layer for each attended group, initialized with the group's own weights."""
    fallback = fit_per_group(tables, attribute)
    missing = [group for group in attended_groups if group not in fallback.values]
    if missing:
        raise ValueError(
            f"{attribute} {missing[0]!r} has no validation image; has {fallback.values}"
        )
    members, table = fitting_data(tables, "an attention layer")
    groups = table.rows[attribute].astype(str).to_numpy(dtype=object)
    pooled = np.ascontiguousarray(safe_log(fallback(members, groups)).T)
    b = refine_inverse_temperature(pooled, table.labels, 1.0, steps=8)
    layers = []
    for group in attended_groups:
        inside, own = groups == group, fallback.weights_of(np.array([group]))[0]
        layers.append(_fit_layer(members[:, inside], table.labels[inside], own, b, weight_decay))
    bias, keys = (np.stack(arrays) for arrays in zip(*layers, strict=True))
    return GroupAttention(list(attended_groups), bias, keys, fallback)


def _fit_layer(
    members: np.ndarray, labels: np.ndarray, weights: np.ndarray, b: float, weight_decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bias and keys of least penalized NLL at the inverse temperature b of the whole ensemble."""
    features, n = attention_features(members), len(labels)
    start = np.column_stack([np.log(np.maximum(weights, 0.01)), np.zeros(features[:, 0].shape)])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        layer = flat.reshape(start.shape)
        w = attention_weights(layer[:, 0], layer[:, 1:], features).T
        pooled = np.maximum(np.einsum("mn,mnk->kn", w, members), MIN_PROBABILITY)
        tempered = tempered_nll_gradients(np.log(pooled), labels, b)
        by_weight = np.einsum("kn,mnk->mn", tempered.by_log / pooled, members)
        by_score = w * (by_weight - (w * by_weight).sum(axis=0))
        gradient = np.column_stack(
            [by_score.sum(axis=1), np.einsum("mn,mnf->mf", by_score, features)]
        )
        change = layer - start
        penalty = weight_decay / 2 * float((change**2).sum())
        return tempered.nll + penalty / n, (gradient + weight_decay * change).ravel() / n

    solution = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    layer = solution.x.reshape(start.shape)
    return layer[:, 0], layer[:, 1:]
