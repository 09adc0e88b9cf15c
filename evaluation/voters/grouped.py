"""Voters with their own weights for each value of an attribute, such as the body part."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import softmax

from evaluation.metrics.calibration import minimize_penalized_nll
from evaluation.predictions import MIN_PROBABILITY, PredictionTable, safe_log
from evaluation.voters import learned
from evaluation.voters.simple import Voter, attribute_values, check_member_count, normalized_weights


@dataclass(frozen=True)
class PerGroup(Voter):
    """Weights (values, members) for each value of an attribute; other values get `common`."""

    attribute: str = field()  # required, unlike in other voters
    values: list[str]
    weights: np.ndarray
    common: np.ndarray
    name = "per_group"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", normalized_weights(self.weights))
        object.__setattr__(self, "common", normalized_weights(self.common))

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Weighted mean of the members, with the weights of each image."""
        check_member_count(members, len(self.common))
        return np.asarray(np.einsum("nm,mnk->nk", self.image_weights(members, groups), members))

    def image_weights(self, members: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Weights (n, members) of the group of each image; ValueError if a group is missing."""
        if groups is None:
            raise ValueError(f"this voter needs the attribute {self.attribute!r} of each image")
        is_empty = [group is None or str(group) in ("", "nan") for group in groups]
        if empty := np.flatnonzero(is_empty).tolist():
            raise ValueError(f"{len(empty)} images lack {self.attribute!r}, at rows {empty[:5]}")
        row = {value: i for i, value in enumerate(self.values)}
        table = np.vstack([self.weights, self.common])
        return np.asarray(table[[row.get(str(group), -1) for group in groups]])

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """The weights (n, members) of each image, the same for each class."""
        return self.image_weights(members, groups)

    def weight_rows(self, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """One row per value of the attribute."""
        return dict(zip(self.values, self.weights, strict=True))


@dataclass(frozen=True)
class GroupAttention(PerGroup):
    """Weights from an attention layer for the attended values, those of `PerGroup` for all others.

    The layer scores member m of an image by `bias[m] + keys[m] . f`, f being that member's own
    centered log-probabilities and its entropy, and pools under the softmax of the scores.
    `bias` is (attended, members), `keys` (attended, members, K + 1).
    """

    attended: list[str]
    bias: np.ndarray
    keys: np.ndarray
    name = "group_attention"

    def image_weights(self, members: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Weights (n, members) of each image."""
        weights = super().image_weights(members, groups)
        for name, bias, keys in zip(self.attended, self.bias, self.keys, strict=True):
            inside = np.asarray(groups).astype(str) == name
            weights[inside] = attention_weights(bias, keys, attention_features(members[:, inside]))
        return weights


def attention_features(members: np.ndarray) -> np.ndarray:
    """Centered log-probabilities and entropy, (members, n, K + 1), of probabilities `members`."""
    # without the limit, one confident member would dominate
    clipped = np.maximum(safe_log(members), -10.0)
    entropy = -(members * safe_log(members)).sum(axis=2, keepdims=True)
    return np.concatenate([clipped - clipped.mean(axis=2, keepdims=True), entropy], axis=2)


def attention_weights(bias: np.ndarray, keys: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Softmax over members of the scores, (n, members)."""
    scores = bias[:, None] + np.einsum("mf,mnf->mn", keys, features)
    return np.asarray(softmax(scores, axis=0).T)


def fit_per_group(tables: Sequence[PredictionTable], attribute: str = "body_part") -> PerGroup:
    """The voter with weights of least NLL for each value, shrunk towards common weights."""
    members, table = learned.fitting_data(tables, f"weights per {attribute}")
    groups = attribute_values(table, attribute, PerGroup.name)
    common, values = learned.min_nll_weights(members, table.labels), sorted(set(groups))
    rows = []
    for inside in (groups == value for value in values):
        own = learned.min_nll_weights(members[:, inside], table.labels[inside])
        rows.append(learned.shrink(own, common, int(inside.sum())))
    return PerGroup(attribute, values, np.stack(rows), common)


def fit_group_attention(
    tables: Sequence[PredictionTable], attended: Sequence[str], attribute: str = "body_part"
) -> GroupAttention:
    """Fits an attention layer for each attended value, on the labeled rows of val.

    Each starts from the value's weights by `fit_per_group`; other values keep theirs.
    """
    base = fit_per_group(tables, attribute)
    if missing := [value for value in attended if value not in base.values]:
        raise ValueError(f"{attribute} {missing[0]!r} has no validation image; has {base.values}")
    members, table = learned.fitting_data(tables, "an attention layer")
    groups = attribute_values(table, attribute, GroupAttention.name)
    pooled = np.ascontiguousarray(safe_log(base(members, groups)).T)
    b = learned.refine_inverse_temperature(pooled, table.labels, 1.0, steps=8)
    layers = []
    for value in attended:
        inside, own = groups == value, base.weights[base.values.index(value)]
        layers.append(_fit_layer(members[:, inside], table.labels[inside], own, b))
    bias, keys = (np.stack(arrays) for arrays in zip(*layers, strict=True))
    return GroupAttention(**vars(base), attended=list(attended), bias=bias, keys=keys)


def _fit_layer(
    members: np.ndarray, labels: np.ndarray, own: np.ndarray, b: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bias (members,), keys (members, K + 1) of least penalized NLL at inverse temperature b."""
    features = attention_features(members)

    def nll(layer: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean NLL of bias and keys (members, K + 2), and the gradient of the sum."""
        w = attention_weights(layer[:, 0], layer[:, 1:], features).T
        pooled = np.maximum(np.einsum("mn,mnk->kn", w, members), MIN_PROBABILITY)
        loss, by_log, _, _ = learned.tempered_nll_gradients(np.log(pooled), labels, b)
        by_weight = np.einsum("kn,mnk->mn", by_log / pooled, members)
        by_score = w * (by_weight - (w * by_weight).sum(axis=0))
        by_keys = np.einsum("mn,mnf->mf", by_score, features)
        return loss, np.column_stack([by_score.sum(axis=1), by_keys])

    start = np.column_stack([np.log(np.maximum(own, 0.01)), np.zeros(features[:, 0].shape)])
    layer = minimize_penalized_nll(start, nll, len(labels))
    return layer[:, 0], layer[:, 1:]
