"""External validation: what differs from the internal test, and recalibration with local cases."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.special import log_softmax, logsumexp

from evaluation.metrics import calibration_slope
from evaluation.metrics.calibration import reliability_bins
from evaluation.metrics.clinical import (
    Outcomes,
    net_benefit_of_rows,
    outcome_members,
    shown_outcomes,
    use_of,
)
from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.operating_points import evaluate_thresholds
from evaluation.predictions import PredictionTable
from evaluation.results import Results
from evaluation.stats import bootstrap, estimate
from evaluation.stats.bootstrap import CONFIDENCE_LEVEL, DRAWS, Clusters
from evaluation.stats.estimate import Estimate, Estimates, make_estimate, mean_estimate

LOCAL_PATIENTS = (0, 20, 50, 100)
RECALIBRATIONS = 200  # draws of the local patients
MIN_REMAINING = 20  # patients that a recalibration is evaluated on
PRIOR_PRECISION = 1.0  # of the slope around 1 and of each bias around 0
MAX_STEPS, MAX_HALVINGS = 50, 30  # of Newton's method
SITES = ("internal", "external")
MOVER = "from both intervals (MOVER)"
NO_VARIATION = "all images of both sets have the same value"
Stats = Mapping[str, pd.DataFrame]  # of internal and external images: `patient` and numbers


def validate_externally(
    name: str, internal: Results, tables: Mapping[str, PredictionTable], stats: Stats | None = None,
    target: float | None = None, draws: int = DRAWS, seed: int = 0,
) -> Results:  # fmt: skip
    """The content of external.json.

    `metrics` are those on the external set; `others` has those of the internal test, differences,
    prevalences, statistics of the images and metrics after recalibration with k local patients.
    `tables` has the predictions on `internal` and `external` images, and on `val` for thresholds.
    `target` is a net benefit of the first outcome to reach; by default that of the internal test.
    """
    table = tables["external"]
    metrics = compute_metrics(table, draws, seed)
    shares = {site: prevalences(tables[site]) for site in SITES}
    others = {"internal": internal.metrics, **_with_differences("prevalence", shares)}
    others["external minus internal"] = differences(metrics, internal.metrics)
    if stats:
        others |= image_shift(stats, draws, seed)
    recalibrated = {k: recalibrated_metrics(table, k, seed=seed) for k in LOCAL_PATIENTS}
    others |= {f"recalibrated/{k}": of for k, of in recalibrated.items()}
    points = evaluate_thresholds(tables["val"], table, draws, seed) if "val" in tables else {}
    targets = {o: internal.metrics[f"net_benefit/{o}"].value for o in shown_outcomes(table)}
    targets |= {} if target is None else {next(iter(targets)): target}
    needed = {
        o: local_patients_for(f"net_benefit/{o}", value, recalibrated)
        for o, value in targets.items()
        if value is not None
    }
    meta = {**table.meta, "net_benefit": needed}
    return Results(
        name, "test", table.class_names, metrics, others, operating_points=points, meta=meta
    )


def _with_differences(name: str, sites: Mapping[str, Estimates]) -> dict[str, Estimates]:
    """Estimates of both sites and external minus internal, under `<name>/<site>` and so on."""
    difference = differences(sites["external"], sites["internal"])
    named = {f"{name}/{site}": estimates for site, estimates in sites.items()}
    return {**named, f"{name}/external minus internal": difference}


def differences(external: Estimates, internal: Estimates) -> Estimates:
    """External minus internal of every metric that both have, by the metric's name."""
    return {k: independent_difference(e, internal[k]) for k, e in external.items() if k in internal}


def independent_difference(first: Estimate, second: Estimate) -> Estimate:
    """First minus second of two independent samples; the interval recovers their variances.

    Zou and Donner 2008 (MOVER); for Wilson's intervals it is Newcombe's of two proportions.
    """
    size = first.n + second.n, first.patients + second.patients
    reason = first.reason or second.reason
    (a, l1, u1), (b, l2, u2) = (
        [np.nan if x is None else x for x in (e.value, e.low, e.high)] for e in (first, second)
    )
    low, high = a - b - np.hypot(a - l1, u2 - b), a - b + np.hypot(u1 - a, b - l2)
    return make_estimate((a - b, low, high), MOVER, *size, reason)


def prevalences(table: PredictionTable) -> Estimates:
    """Fraction of the labeled images with each class and each named group of classes."""
    labeled = table.labeled
    outcomes = Outcomes.from_table(labeled)
    columns = zip(outcomes.names, outcomes.positive.T, strict=True)
    return {name: mean_estimate(labeled.patients, positive) for name, positive in columns}


def image_shift(stats: Stats, draws: int = DRAWS, seed: int = 0) -> dict[str, Estimates]:
    """Mean of each column of `stats` in both sets, and their standardized differences.

    A difference is divided by the root of the mean of both variances. Patients are resampled
    within each set. A column of text becomes a 0/1 column for each of its values.
    """
    frames = [stats[site] for site in SITES]
    both = pd.concat(frames, ignore_index=True)
    patients, both = (
        both["patient"].astype(str),
        pd.get_dummies(both.drop(columns="patient"), prefix_sep=": "),
    )
    is_external = np.repeat([False, True], [len(frame) for frame in frames])
    means = {
        f"images/{site}": {
            str(name): mean_estimate(patients[is_site].to_numpy(), values[is_site].to_numpy(float))
            for name, values in both.items()
        }
        for site, is_site in zip(SITES, (~is_external, is_external), strict=True)
    }
    values = both.to_numpy(float)
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-12)
    moments = np.hstack([np.ones((len(both), 1)), values, values**2])
    names = np.char.add(is_external.astype(str), patients.to_numpy(str))
    ids, first, patient_of_row = np.unique(names, return_index=True, return_inverse=True)
    clusters = Clusters(patient_of_row, is_external[first].astype(np.int64))
    of_sites = [moments * is_site[:, None] for is_site in (~is_external, is_external)]
    sums = clusters.sum_by_patient(np.hstack(of_sites))
    drawn = bootstrap.bootstrap(sums, _standardized_differences, clusters, draws, seed)
    size, shift = (len(both), len(ids)), Estimates()
    for at, name in enumerate(both):
        parts = (float(drawn.value[at]), *drawn.bca_interval(at))
        shift[str(name)] = make_estimate(parts, estimate.BCA, *size, NO_VARIATION)
    return {**means, "images/standardized difference": shift}


def _standardized_differences(sums: np.ndarray) -> np.ndarray:
    """Standardized differences (r, m) from count, sums, sums of squares by site: (r, 2 + 4 m)."""
    means, variances = [], []
    for part in np.split(sums, 2, axis=1):
        mean, square = np.split(part[:, 1:] / part[:, :1], 2, axis=1)
        means.append(mean)
        variances.append(square - mean**2)
    spread = np.sqrt(np.maximum(sum(variances) / 2, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-4, (means[1] - means[0]) / spread, np.nan)


def recalibrated_metrics(
    table: PredictionTable, num_patients: int, draws: int = RECALIBRATIONS, seed: int = 0
) -> Estimates:
    """Metrics after recalibration on `num_patients` patients of the table, on its other patients.

    The patients are drawn `draws` times; a value is the median. For its interval, the other
    patients are resampled as well, and the percentiles are shifted to the median of the draws.
    """
    labeled = table.labeled
    clusters = Clusters.from_patients(labeled.patients, labeled.labels)
    rows_of = np.split(
        np.argsort(clusters.patient_of_row, kind="stable"),
        np.cumsum(np.bincount(clusters.patient_of_row))[:-1],
    )
    names, remaining = _metric_names(labeled), clusters.num_patients - num_patients
    method = f"median and 95 % range of {draws} draws of patients"
    if remaining < MIN_REMAINING:
        needed = f"needs {num_patients + MIN_REMAINING} patients; there are {len(rows_of)}"
        return dict.fromkeys(names, Estimate(None, None, None, method, 0, remaining, needed))
    rng, values, resampled = np.random.default_rng(seed), list[list[float]](), list[list[float]]()
    orders = [rng.permutation(clusters.num_patients) for _ in range(draws)]
    local = [np.concatenate([*(rows_of[p] for p in o[:num_patients]), []]) for o in orders]
    fits = fit_recalibration(labeled, [rows.astype(int) for rows in local])
    for order, (slope, *bias) in zip(orders, fits, strict=True):
        logs = log_softmax(slope * labeled.log_probabilities + bias, axis=1)
        others = order[num_patients:]
        for patients, measured in ((others, values), (rng.choice(others, len(others)), resampled)):
            rows = np.concatenate([rows_of[p] for p in patients])
            measured.append(_measure(labeled, logs, rows))
    size = len(labeled) * remaining // clusters.num_patients, remaining
    parts = _centered_ranges(np.array(values), np.array(resampled))
    return {
        name: make_estimate(tuple(part), method, *size, calibration_slope.ABSENT)
        for name, part in zip(names, parts.T, strict=True)
    }


def _metric_names(table: PredictionTable) -> list[str]:
    """Full names of the metrics that `_measure` computes, in its order."""
    of_outcome = (*calibration_slope.METRICS, "net_benefit")
    return ["nll", "ece", *(f"{m}/{o}" for o in shown_outcomes(table) for m in of_outcome)]


def _measure(table: PredictionTable, logs: np.ndarray, rows: np.ndarray) -> list[float]:
    """Values of `_metric_names` for log-probabilities `logs` (n, K), on the positions `rows`."""
    logs, labels, threshold = logs[rows], table.labels[rows], use_of(table).threshold
    bins = reliability_bins(np.exp(logs), labels)
    measures = [float(-logs[np.arange(len(rows)), labels].mean()), bins.ece]
    for outcome in shown_outcomes(table):
        of = np.isin(np.arange(logs.shape[1]), outcome_members(table)[outcome])
        positive, log_p = np.isin(labels, np.flatnonzero(of)), logsumexp(logs[:, of], axis=1)
        logits = log_p - logsumexp(logs[:, ~of], axis=1)
        measures += [*calibration_slope.calibration_values(logits, positive)]
        measures += [float(net_benefit_of_rows(np.exp(log_p), positive, threshold).mean())]
    return measures


def _centered_ranges(values: np.ndarray, resampled: np.ndarray) -> np.ndarray:
    """Median of `values` (draws, m), percentiles of `resampled` shifted to it: (3, m), or NaN."""
    parts = np.full((3, values.shape[1]), np.nan)
    is_defined = np.minimum(*(np.isfinite(x).mean(axis=0) for x in (values, resampled))) >= 0.9
    parts[0, is_defined] = np.nanmedian(values[:, is_defined], axis=0)
    drawn = resampled[:, is_defined]
    ends = np.nanquantile(drawn, [0.5 - CONFIDENCE_LEVEL / 2, 0.5 + CONFIDENCE_LEVEL / 2], axis=0)
    parts[1:, is_defined] = ends + parts[0, is_defined] - np.nanmedian(drawn, axis=0)
    return parts


def fit_recalibration(
    table: PredictionTable, rows: Sequence[np.ndarray], precision: float = PRIOR_PRECISION
) -> np.ndarray:
    """Slope and bias of each class (draws, 1 + K), fitted to the given rows of each draw.

    Log-probabilities are multiplied by the slope, and the biases are added to them: for two classes
    that is logistic recalibration, for more a temperature and a prior of each class. The penalized
    likelihood pulls the slope to 1 and biases to 0, so that few or separated cases have a fit.
    Newton's method solves all draws together, with steps that are halved until the loss decreases.
    """
    num_classes, longest = len(table.class_names), max(1, *map(len, rows))
    padded = np.array([np.pad(r, (0, longest - len(r))) for r in rows])
    weights = np.arange(longest) < np.array([len(r) for r in rows])[:, None]
    features = np.zeros((*padded.shape, num_classes, 1 + num_classes))  # of each row and class
    features[..., 0] = table.log_probabilities[padded]
    features[..., 1:] = np.eye(num_classes)
    gap = features - np.take_along_axis(features, table.labels[padded][..., None, None], axis=2)
    start = np.eye(1, 1 + num_classes)[0]  # changes nothing

    def loss(fit: np.ndarray) -> np.ndarray:
        """Penalized NLL (draws,) of parameters (draws, 1 + K)."""
        nll = logsumexp(np.einsum("drkp,dp->drk", gap, fit), axis=2)
        return np.asarray((weights * nll).sum(axis=1) + precision / 2 * ((fit - start) ** 2).sum(1))

    fit = np.tile(start, (len(rows), 1))
    for _ in range(MAX_STEPS):
        logits = np.einsum("drkp,dp->drk", gap, fit)
        p = np.exp(log_softmax(logits, axis=2)) * weights[..., None]
        mean = np.einsum("drk,drkp->drp", p, gap)
        gradient = mean.sum(axis=1) + precision * (fit - start)
        hessian = np.einsum("drk,drkp,drkq->dpq", p, gap, gap, optimize=True)
        hessian -= np.einsum("drp,drq->dpq", mean, mean)
        hessian += precision * np.eye(1 + num_classes)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        before = loss(fit)
        for _ in range(MAX_HALVINGS):
            is_worse = loss(fit - step) > before + 1e-12 * np.abs(before)
            if not is_worse.any():
                break
            step[is_worse] /= 2
        fit = fit - step
        if np.abs(step).max() < 1e-10:
            break
    return fit


def local_patients_for(
    metric: str, target: float, recalibrated: Mapping[int, Estimates]
) -> dict[str, float | int | None]:
    """Smallest numbers of local patients from which on a metric attains a target; None if none.

    `reached` is by the upper end of the interval, `exceeded` by the lower end; `tried` is the
    largest number with a value.
    """
    tried = {k: of[metric] for k, of in recalibrated.items() if of[metric].value is not None}
    bounds = {"reached": {k: e.high for k, e in tried.items()},
              "exceeded": {k: e.low for k, e in tried.items()}}  # fmt: skip
    needed: dict[str, float | int | None] = {"target": target, "tried": max(tried, default=None)}
    for name, ends in bounds.items():
        needed[name] = None
        for k, end in sorted(ends.items(), reverse=True):
            if end is None or end < target:
                break
            needed[name] = k
    return needed


def largest_shifts(results: Results, group: str, minimum: float = 0.0) -> dict[str, Estimate]:
    """Entries of `results.others[group]` above `minimum`, with intervals without 0, sorted."""
    shifts = {name: e for name, e in results.others.get(group, {}).items()
              if e.value is not None and e.low is not None and e.high is not None
              and (e.low > 0 or e.high < 0) and abs(e.value) > minimum}  # fmt: skip
    return dict(sorted(shifts.items(), key=lambda item: -abs(item[1].value or 0)))
