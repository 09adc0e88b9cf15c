"""The loss that voters are fitted by: NLL of pooled probabilities at an inverse temperature.

Arrays are (K, n) here, classes first: sums over few classes are then many times faster.
"""

from dataclasses import dataclass

import numpy as np

from evaluation.voters.simple import FLOOR


@dataclass(frozen=True)
class Sharpened:
    """Mean NLL at inverse temperature b, and its slopes by the log-probabilities and by b.

    `by_log` is (K, n) and belongs to the sum over images; `by_b` and `curvature` to the mean.
    """

    nll: float
    by_log: np.ndarray
    by_b: float
    curvature: float


def sharpened(logs: np.ndarray, labels: np.ndarray, b: float) -> Sharpened:
    """The loss of log-probabilities (K, n), whose largest in each column must not exceed 0."""
    rows = np.arange(len(labels))
    powers = np.exp(b * logs)
    total = powers.sum(axis=0)
    said, own = powers / total, logs[labels, rows]
    mean = (said * logs).sum(axis=0)
    spread = (said * logs**2).sum(axis=0) - mean**2
    nll = float((np.log(total) - b * own).mean())
    said[labels, rows] -= 1
    return Sharpened(nll, b * said, float((mean - own).mean()), float(spread.mean()))


def nll(logs: np.ndarray, labels: np.ndarray, b: float) -> float:
    """The loss alone."""
    own = logs[labels, np.arange(len(labels))]
    return float((np.log(np.exp(b * logs).sum(axis=0)) - b * own).mean())


def slope(logs: np.ndarray, own: np.ndarray, b: float) -> float:
    """Derivative of the loss in b; it rises with b."""
    powers = np.exp(b * logs)
    return float(((powers * logs).sum(axis=0) / powers.sum(axis=0) - own).mean())


def stepped(logs: np.ndarray, labels: np.ndarray, b: float, steps: int = 2) -> float:
    """An inverse temperature nearer the best one, by Newton steps of at most a factor of 2."""
    for _ in range(steps):
        now = sharpened(logs, labels, b)
        step = now.by_b / max(now.curvature, 1e-12)
        b = float(np.clip(b - step, max(b / 2, 0.05), min(2 * b, 20.0)))
    return b


class Pool:
    """Members' probabilities (members, n, K) and labels (n,), to be pooled again and again."""

    def __init__(self, members: np.ndarray, labels: np.ndarray) -> None:
        self.members = np.ascontiguousarray(members.transpose(0, 2, 1))
        self.labels = labels

    def __len__(self) -> int:
        return len(self.members)

    def logs(self, weights: np.ndarray) -> np.ndarray:
        """Log of the pool under one weight a member, (K, n)."""
        return np.asarray(np.log(np.maximum(np.tensordot(weights, self.members, 1), FLOOR)))

    def loss(self, weights: np.ndarray, b: float) -> tuple[float, np.ndarray]:
        """Mean NLL, and its gradient by the weights and, last, by b."""
        logs = self.logs(weights)
        now = sharpened(logs, self.labels, b)
        by_pool = now.by_log / np.exp(logs)
        by_weight = self.members.reshape(len(self), -1) @ by_pool.ravel() / len(self.labels)
        return now.nll, np.append(by_weight, now.by_b)
