"""Voters that look at the members' probabilities themselves: a stack and an attention layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from evaluation.pooling import FLOOR, check_members, logs, stack
from evaluation.table import PredictionTable
from evaluation.weights import PerPart, fit_per_part, given, likelihoods

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
    own centred log-probabilities and its entropy, and pools under the softmax of the scores.
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
    """What the attention layer sees: centred log-probabilities and entropy, (members, n, K+1).

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
    own, table = likelihoods(tables, "a stack")
    k, count = len(table.class_names), len(own)
    if len(table) < ROWS_PER_CELL * count * k:
        wanted = f"{ROWS_PER_CELL} x {count} members x {k} classes = {ROWS_PER_CELL * count * k}"
        raise ValueError(f"a stack needs {wanted} labelled rows, the tables have {len(table)}")
    x, truth = _side_by_side(stack([t.labelled for t in tables])), np.eye(k)[table.labels]
    start = np.hstack([np.tile(np.eye(k), count) / count, np.zeros((k, 1))])
    wide = np.hstack([x, np.ones((len(x), 1))])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(start.shape)
        said = log_softmax(wide @ w.T, axis=1)
        slope = (np.exp(said) - truth).T @ wide + decay * (w - start)
        penalty = decay / 2 * ((w - start) ** 2).sum()
        return float(penalty - (said * truth).sum()) / len(x), slope.ravel() / len(x)

    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500})
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
    known = [table.labelled for table in tables]
    members, own = stack(known), likelihoods(tables, "an attention layer")[0]
    named = known[0].rows[attribute].astype(str).to_numpy(dtype=object)
    layers = [
        _fit_layer(members[:, named == p], own[:, named == p], rest.of(np.array([p]))[0], decay)
        for p in parts
    ]
    bias, keys = (np.stack(each) for each in zip(*layers, strict=True))
    return PartAttention(list(parts), bias, keys, rest)


def _fit_layer(
    members: np.ndarray, own: np.ndarray, weights: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    seen = features(members)
    start = np.column_stack([np.log(np.maximum(weights, 0.01)), np.zeros(seen[:, 0].shape)])
    n = own.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        layer = flat.reshape(start.shape)
        w = attend(layer[:, 0], layer[:, 1:], seen).T
        mixed = np.maximum((w * own).sum(axis=0), FLOOR)
        push = -w * (own - mixed) / mixed  # of the NLL by each score
        slope = np.column_stack([push.sum(axis=1), np.einsum("mn,mnf->mf", push, seen)])
        away = layer - start
        penalised = -np.log(mixed).sum() + decay / 2 * (away**2).sum()
        return float(penalised) / n, (slope + decay * away).ravel() / n

    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    layer = found.x.reshape(start.shape)
    return layer[:, 0], layer[:, 1:]


def _side_by_side(members: np.ndarray) -> np.ndarray:
    """Log-probabilities (n, members x K), member by member."""
    return np.hstack(list(logs(members)))
