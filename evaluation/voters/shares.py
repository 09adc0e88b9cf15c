"""How much each member says in an ensemble's answer, for sharing out what only members have."""

import numpy as np

from evaluation.voters.attention import PartAttention, Stacked
from evaluation.voters.learned import PerClass, PerPart, given
from evaluation.voters.simple import Voter, Weighted


def shares(
    voter: Voter, members: np.ndarray, classes: np.ndarray, parts: np.ndarray | None = None
) -> np.ndarray:
    """Weights (n, members) in the score of a class (n,) each, rows summing to 1.

    `members` are probabilities (members, n, K). Voters without weights of their own (soft,
    geometric, majority) give all members the same; a stack gives each the weight of its own
    log-probability of the class, where that speaks for it.
    """
    count, n = members.shape[:2]
    if isinstance(voter, Weighted):
        return np.tile(voter.weights, (n, 1))
    if isinstance(voter, PerClass):
        return np.asarray(voter.weights[classes])
    if isinstance(voter, PerPart):
        return voter.of(given(voter.attribute, parts))
    if isinstance(voter, PartAttention):
        return voter.of(members, given(voter.attribute, parts))
    if isinstance(voter, Stacked):
        return _stacked(voter, count, classes)
    return np.full((n, count), 1 / count)


def _stacked(voter: Stacked, count: int, classes: np.ndarray) -> np.ndarray:
    k = len(voter.bias)
    own = voter.weights.reshape(k, count, k)[classes, :, classes].clip(0)
    total = own.sum(axis=1, keepdims=True)
    return np.asarray(np.where(total > 0, own / np.where(total > 0, total, 1), 1 / count))
