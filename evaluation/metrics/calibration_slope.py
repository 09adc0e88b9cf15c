"""Whether probabilities are right: calibration slope, intercept and smooth calibration curve."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, stdtrit

from evaluation.metrics.clinical import Curve, Outcomes, outcome_members
from evaluation.predictions import PredictionTable
from evaluation.stats import bootstrap
from evaluation.stats.bootstrap import CONFIDENCE_LEVEL, DRAWS, Clusters, too_few_patients
from evaluation.stats.estimate import Estimates, make_estimate

METHOD = "logistic regression, cluster-robust"
ABSENT = "no image has the outcome, or all images have it"
SEPARATED = "the probabilities separate the outcome perfectly, or are all equal"
GRID = 41  # points of a calibration curve
MAX_STEPS = 100  # of Newton's method
MAX_BISECTIONS = 1_000  # for logits so extreme that the sum of probabilities has steps
ROUNDING = 1e-12  # relative differences that are due to it

METRICS = ("calibration_slope", "calibration_intercept", "calibration_in_the_large")


def calibration_estimates(
    table: PredictionTable, clusters: Clusters, draws: int, seed: int
) -> Estimates:
    """Calibration slope, intercept and calibration-in-the-large of each outcome, by full name.

    The outcome is regressed on the logit of its probability. The slope is below 1 if probabilities
    are too extreme. With the slope fixed at 1, the intercept is the calibration-in-the-large, which
    is below 0 if they are too large on average.
    """
    outcomes, estimates = Outcomes.from_table(table), Estimates()
    for name, x, y in zip(outcomes.names, outcomes.logits.T, outcomes.positive.T, strict=True):
        patients = clusters.patients_with(np.column_stack([y, ~y]))
        few = too_few_patients([name, f"not {name}"], patients)
        quantile = stdtrit(max(int(patients.min()) - 1, 1), 0.5 + CONFIDENCE_LEVEL / 2)
        fits = _values_and_errors(x, y, clusters)
        for metric, value, error in zip(METRICS, *fits, strict=True):
            half = np.nan if few else quantile * error
            reason = few or (ABSENT if np.isnan(fits[0][2]) else SEPARATED)
            parts, size = (value, value - half, value + half), (len(table), clusters.num_patients)
            estimates[f"{metric}/{name}"] = make_estimate(parts, METHOD, *size, reason)
    return estimates


def _values_and_errors(x: np.ndarray, positive: np.ndarray, clusters: Clusters) -> np.ndarray:
    """Values and standard errors (2, 3) of METRICS, for an outcome with logits x (n,), or NaN."""
    fits = np.full((2, 3), np.nan)
    if positive.any() and not positive.all():
        fits[:, 2] = logistic_intercept(x, positive, clusters)
        if not _is_separated(x, positive):
            fits[:, :2] = logistic_line(x, positive, clusters)
    return fits


def calibration_values(x: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Values (3,) of METRICS for an outcome with logits x (n,); NaN if undefined."""
    values = np.full(3, np.nan)
    if positive.any() and not positive.all():
        values[2] = _fit_intercept(x, positive)
        if not _is_separated(x, positive):
            values[:2] = _fit_logistic(x, positive)
    return values


def _is_separated(x: np.ndarray, positive: np.ndarray) -> bool:
    """Whether no slope is best: a threshold separates positives from others, or x is constant."""
    of, others = x[positive], x[~positive]
    is_constant = np.ptp(x) <= ROUNDING * np.abs(x).max()
    return bool(is_constant or of.min() >= others.max() or others.min() >= of.max())


def logistic_line(
    x: np.ndarray, positive: np.ndarray, clusters: Clusters
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept (2,) of a logistic regression on x (n,), and standard errors (2,)."""
    beta, design = _fit_logistic(x, positive), np.column_stack([x, np.ones_like(x)])
    p = expit(design @ beta)
    hessian, scores = _hessian(design, p), design * (positive - p)[:, None]
    return beta, _robust_errors(np.linalg.solve(hessian, scores.T).T, clusters)


def _fit_logistic(x: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Slope and intercept (2,) of a logistic regression of `positive` (n,) on `x` (n,)."""
    design, beta = np.column_stack([x, np.ones_like(x)]), np.zeros(2)
    for _ in range(MAX_STEPS):
        p = expit(design @ beta)
        step = np.linalg.solve(_hessian(design, p), design.T @ (positive - p))
        beta = beta + step
        if np.abs(step).max() <= 1e-13 * (1 + np.abs(beta).max()):
            break
    return beta


def _hessian(design: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Hessian (d, d) of the NLL of a logistic regression, for a design (n, d)."""
    return np.asarray((design * (p * (1 - p))[:, None]).T @ design)


def logistic_intercept(
    x: np.ndarray, positive: np.ndarray, clusters: Clusters
) -> tuple[float, float]:
    """Intercept of a logistic regression with the offset x (n,), and its standard error."""
    value = _fit_intercept(x, positive)
    p = expit(x + value)
    influence = (positive - p) / (p * (1 - p)).sum()
    return value, float(_robust_errors(influence[:, None], clusters)[0])


def _fit_intercept(x: np.ndarray, positive: np.ndarray) -> float:
    """Intercept of a logistic regression with the offset x (n,), by root finding."""
    bound = float(np.abs(x).max()) + np.log(len(x)) + 1

    def excess(intercept: float) -> float:
        """Sum of the probabilities minus the number of positives."""
        return float((expit(x + intercept) - positive).sum())

    return float(brentq(excess, -bound, bound, xtol=1e-14, maxiter=MAX_BISECTIONS))


def _robust_errors(influence: np.ndarray, clusters: Clusters) -> np.ndarray:
    """Standard errors (d,) from the influence of each row, (n, d), summed by patient."""
    of_patient, n = clusters.sum_by_patient(influence), clusters.num_patients
    return np.asarray(np.sqrt((of_patient**2).sum(axis=0) * n / max(n - 1, 1)))


def calibration_curve(
    table: PredictionTable, outcome: str, draws: int = DRAWS, seed: int = 0
) -> Curve | None:
    """A smooth curve from the 1st to the 99th percentile of the probabilities of an outcome.

    A kernel mean of residuals, on the logit scale, is added to the logistic regression of the
    calibration slope, so that smoothing does not bend it. None if no image has the outcome, all
    have it, or all probabilities are equal.
    """
    labeled, at = table.labeled, list(outcome_members(table)).index(outcome)
    outcomes = Outcomes.from_table(labeled)
    x, positive = outcomes.logits[:, at], outcomes.positive[:, at]
    clusters = Clusters.from_patients(labeled.patients, labeled.labels).without_strata
    first, lower, upper, last = np.quantile(x, [0.01, 0.25, 0.75, 0.99])
    grid = np.linspace(first, last, GRID)
    spread = min(x.std(), (upper - lower) / 1.34) or x.std()
    if positive.all() or not positive.any() or grid[0] == grid[-1]:
        return None
    bandwidth = 1.06 * spread * clusters.num_patients**-0.2  # Silverman's rule
    weights = np.exp(-0.5 * ((x[:, None] - grid) / bandwidth) ** 2)
    line = (1.0, 0.0) if _is_separated(x, positive) else logistic_line(x, positive, clusters)[0]
    residuals = weights * (positive - expit(line[0] * x + line[1]))[:, None]
    start = expit(line[0] * grid + line[1])
    sums = clusters.sum_by_patient(np.hstack([weights, residuals]))

    def observed(sums: np.ndarray) -> np.ndarray:
        """Frequencies (r, GRID) from sums of weights and of weighted residuals, (r, 2 GRID)."""
        total, residual = np.split(sums, 2, axis=1)
        return np.asarray(np.clip(start + residual / np.maximum(total, 1e-30), 0, 1))

    replicates = bootstrap.bootstrap(sums, observed, clusters, draws, seed)
    low, high = np.array([replicates.percentile_interval(g) for g in range(GRID)]).T
    return Curve(expit(grid), replicates.value, low, high)
