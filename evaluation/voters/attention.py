"""Voters that look at the members' probabilities themselves: a stack and an attention layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from evaluation.predictions import PredictionTable
from evaluation.voters.learned import PerPart, fit_per_part, fitting, given
from evaluation.voters.likelihood import sharpened, stepped
from evaluation.voters.simple import FLOOR, check_members, logs

ROWS_PER_CELL = 50  # a stack wants so many rows for each member and class
DECAY = 1.0  # squared-weight penalty, in rows


@dataclass(frozen=True)
class Stacked:
    """Multinomial regression on all members' log-probabilities.

    `weights` is (K, members x K) and `bias` (K,).
    """

    weights: np.ndarray
    bias: np.ndarray
    kind: ClassVar[str] = "stacked"
    attribute: ClassVar[str] = ""

    def __call__(self, members: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
        """Softmax of the regression."""
        check_members(members, self.weights.shape[1] // len(self.bias))
        return np.asarray(softmax(_side_by_side(members) @ self.weights.T + self.bias, axis=1))


@dataclass(frozen=True)
class PartAttention:
    """For named parts, weights from an attention layer; for all others, those of `rest`.

    The layer scores member m of an image by `bias[m] + keys[m] . f`, f being that member's
    own centerd log-probabilities and its entropy, and pools under the softmax of the scores.
    `bias` is (parts, members), `keys` (parts, members, K + 1).
    """

    parts: list[str]
    bias: np.ndarray
    keys: np.ndarray
    rest: PerPart
    kind: ClassVar[str] = "part_attention"

    @property
    def attribute(self) -> str:
        """The attribute that names the part."""
        return self.rest.attribute

    def __call__(self, members: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
        """Pools each image by the weights that its part's layer gives."""
        check_members(members, self.bias.shape[1])
        weights = self.of(members, given(self.attribute, parts))
        return np.asarray(np.einsum("nm,mnk->nk", weights, members))

    def of(self, members: np.ndarray, parts: np.ndarray) -> np.ndarray:
        """The weights of each image, (n, members)."""
        weights, named = self.rest.of(parts), parts.astype(str)
        for at, part in enumerate(self.parts):
            here = named == part
            seen = features(members[:, here])
            weights[here] = attend(self.bias[at], self.keys[at], seen)
        return weights


def features(members: np.ndarray) -> np.ndarray:
    """What the attention layer sees: centerd log-probabilities and entropy, (members, n, K+1).

    Log-probabilities are cut at -10, so that one sure member cannot outshout the rest.
    """
    cut = np.maximum(logs(members), -10.0)
    entropy = -(members * logs(members)).sum(axis=2, keepdims=True)
    return np.concatenate([cut - cut.mean(axis=2, keepdims=True), entropy], axis=2)


def attend(bias: np.ndarray, keys: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Softmax over members of the scores, (n, members)."""
    scores = bias[:, None] + np.einsum("mf,mnf->mn", keys, seen)
    return np.asarray(softmax(scores, axis=0).T)


def fit_stacked(tables: Sequence[PredictionTable], decay: float = DECAY) -> Stacked:
    """Least penalised NLL; the penalty pulls towards the geometric mean of the members."""
    members, table = fitting(tables, "a stack")
    k, count = len(table.class_names), len(members)
    if len(table) < ROWS_PER_CELL * count * k:
        wanted = f"{ROWS_PER_CELL} x {count} members x {k} classes = {ROWS_PER_CELL * count * k}"
        raise ValueError(f"a stack needs {wanted} labeled rows, the tables have {len(table)}")
    seen = np.vstack([_side_by_side(members).T, np.ones(len(table))])
    start = np.hstack([np.tile(np.eye(k), count) / count, np.zeros((k, 1))])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(start.shape)
        scores = w @ seen
        now = sharpened(scores - scores.max(axis=0), table.labels, 1.0)
        penalty, pull = decay / 2 * ((w - start) ** 2).sum(), decay * (w - start)
        n = len(table)
        return now.nll + float(penalty) / n, (now.by_log @ seen.T + pull).ravel() / n

    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    w = found.x.reshape(start.shape)
    return Stacked(w[:, :-1], w[:, -1])


def fit_part_attention(
    tables: Sequence[PredictionTable],
    parts: Sequence[str],
    attribute: str = "body_part",
    decay: float = DECAY,
) -> PartAttention:
    """An attention layer for each named part, started at the part's own weights."""
    rest = fit_per_part(tables, attribute)
    missing = [part for part in parts if part not in rest.values]
    if missing:
        raise ValueError(f"{attribute} {missing[0]!r} has no validation image; has {rest.values}")
    members, table = fitting(tables, "an attention layer")
    named = table.rows[attribute].astype(str).to_numpy(dtype=object)
    pooled = np.ascontiguousarray(logs(rest(members, named)).T)
    b = stepped(pooled, table.labels, 1.0, steps=8)
    layers = []
    for part in parts:
        here, own = named == part, rest.of(np.array([part]))[0]
        layers.append(_fit_layer(members[:, here], table.labels[here], own, b, decay))
    bias, keys = (np.stack(each) for each in zip(*layers, strict=True))
    return PartAttention(list(parts), bias, keys, rest)


def _fit_layer(
    members: np.ndarray, labels: np.ndarray, weights: np.ndarray, b: float, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """A layer of least NLL at the inverse temperature b that the whole ensemble will have."""
    seen, n = features(members), len(labels)
    start = np.column_stack([np.log(np.maximum(weights, 0.01)), np.zeros(seen[:, 0].shape)])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        layer = flat.reshape(start.shape)
        w = attend(layer[:, 0], layer[:, 1:], seen).T
        pooled = np.maximum(np.einsum("mn,mnk->kn", w, members), FLOOR)
        now = sharpened(np.log(pooled), labels, b)
        by_weight = np.einsum("kn,mnk->mn", now.by_log / pooled, members)
        push = w * (by_weight - (w * by_weight).sum(axis=0))  # of the loss by each score
        gradient = np.column_stack([push.sum(axis=1), np.einsum("mn,mnf->mf", push, seen)])
        away = layer - start
        penalty = decay / 2 * float((away**2).sum())
        return now.nll + penalty / n, (gradient + decay * away).ravel() / n

    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    layer = found.x.reshape(start.shape)
    return layer[:, 0], layer[:, 1:]


def _side_by_side(members: np.ndarray) -> np.ndarray:
    """Log-probabilities (n, members x K), member by member."""
    return np.hstack(list(logs(members)))
