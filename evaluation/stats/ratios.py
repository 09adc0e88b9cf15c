"""One thing's cost over another's, from pairs of measurements taken in turns."""

from collections.abc import Sequence

import numpy as np

from evaluation.stats.estimate import DRAWS, Estimate

METHOD = "median of pairs, bootstrap"


def paired(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Estimate:
    """Median of first / second over the pairs, with its percentile bootstrap interval.

    What slows both of a pair (a busy machine, heat) cancels. `n` is the number of pairs.
    """
    found = np.array([one / other for one, other in pairs])
    if not len(found):
        return unmeasured("no pair was measured")
    drawn = np.random.default_rng(seed).choice(found, (DRAWS, len(found)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Estimate(float(np.median(found)), float(low), float(high), METHOD, len(found), 0)


def unmeasured(reason: str) -> Estimate:
    """No ratio, and why."""
    return Estimate(None, None, None, METHOD, 0, 0, reason)
