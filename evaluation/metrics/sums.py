"""Metrics that are functions of sums over images, all from one bootstrap over patients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from evaluation.metrics.calibration import NUM_BINS, equal_mass_bins
from evaluation.metrics.confusion import ratio
from evaluation.metrics.registry import MetricSpec
from evaluation.predictions import PredictionTable
from evaluation.stats.bootstrap import (
    BCA,
    CENTERED,
    NO_SPREAD,
    RARE,
    WILSON,
    Clusters,
    Parts,
    Replicates,
    Sums,
    bootstrap,
    interval_with_wilson_bound,
)
from evaluation.stats.estimate import Estimate, make_estimate, proportion_estimate, wilson_interval

KINDS = ("confusion", "image_mean", "calibration", "classwise_calibration")
ABSENT = "a class has no image, or is never predicted"


@dataclass(frozen=True)
class SumColumns:
    """The columns whose sums over images determine the metrics `specs`, for K classes.

    In this order: K x K confusion cells, one column for each metric of kind `image_mean`, and the
    signed gaps in 15 calibration bins, of the predicted class and of each class if needed.
    """

    specs: Sequence[MetricSpec]
    class_names: Sequence[str]

    def names(self) -> list[tuple[str, MetricSpec]]:
        """Full names of the metrics with their entries, one a class for scope `class`."""
        return [(name, spec) for spec in self.specs for name in self._names_of(spec)]

    def of_table(self, table: PredictionTable) -> Sums:
        """Columns (n, d) of labeled rows, sparse: most cells and bins of a row are 0.

        Bins are quantiles of the whole table, also when patients are resampled.
        """
        n, k, predictions = len(table), len(self.class_names), table.predictions
        means = [spec.compute(table) for spec in self._means]
        scores, outcomes = self._calibrated(table)
        first_bin = k * k + len(means) + NUM_BINS * np.arange(len(scores))
        cells = [table.labels * k + predictions]
        cells += [np.full(n, k * k + at) for at in range(len(means))]
        cells += [equal_mass_bins(s) + at for s, at in zip(scores, first_bin, strict=True)]
        gaps = [score - outcome for score, outcome in zip(scores, outcomes, strict=True)]
        values = np.column_stack([np.ones(n), *means, *gaps])
        starts = np.arange(0, values.size + 1, values.shape[1])
        width = k * k + len(means) + NUM_BINS * len(scores)
        return csr_matrix((values.ravel(), np.column_stack(cells).ravel(), starts), (n, width))

    def matrices(self, sums: np.ndarray) -> np.ndarray:
        """The confusion matrices (r, K, K) in sums (r, d)."""
        k = len(self.class_names)
        return sums[:, : k * k].reshape(-1, k, k)

    def metrics(self, sums: np.ndarray) -> np.ndarray:
        """Sums (r, d) -> metrics (r, m), in the order of `names`."""
        matrix, k, num_means = self.matrices(sums), len(self.class_names), len(self._means)
        n = matrix.sum(axis=(1, 2))
        means = iter(ratio(sums[:, k * k : k * k + num_means], n[:, None]).T)
        gaps = sums[:, k * k + num_means :].reshape(len(sums), -1, NUM_BINS)
        gaps = ratio(gaps, n[:, None, None])
        inputs = {
            "confusion": matrix,
            "calibration": gaps[:, 0] if gaps.shape[1] else None,
            "classwise_calibration": gaps[:, -k:],
        }
        return np.column_stack(
            [
                next(means) if spec.kind == "image_mean" else spec.compute(inputs[spec.kind])
                for spec in self.specs
            ]
        )

    @property
    def _means(self) -> list[MetricSpec]:
        return [spec for spec in self.specs if spec.kind == "image_mean"]

    def _names_of(self, spec: MetricSpec) -> list[str]:
        classes = [f"{spec.name}/{name}" for name in self.class_names]
        return classes if spec.scope == "class" else [spec.name]

    def _calibrated(self, table: PredictionTable) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Probabilities (n,) and outcomes (n,) of the predicted class and of each class."""
        kinds, p = {spec.kind for spec in self.specs}, table.probabilities
        scores, outcomes = [], []
        if kinds & {"calibration", "classwise_calibration"}:
            scores, outcomes = [p.max(axis=1)], [table.predictions == table.labels]
        if "classwise_calibration" in kinds:
            scores += list(p.T)
            outcomes += [table.labels == c for c in range(p.shape[1])]
        return scores, outcomes


def sum_estimates(
    table: PredictionTable,
    clusters: Clusters,
    specs: Sequence[MetricSpec],
    draws: int,
    seed: int,
) -> dict[str, Estimate]:
    """Estimates by full name of labeled rows; all metrics share the resamples.

    Metrics that weight images equally are resampled without strata, the others within them.
    """
    columns = SumColumns(specs, table.class_names)
    sums = clusters.sum_by_patient(columns.of_table(table))
    stratified = bootstrap(sums, columns.metrics, clusters, draws, seed)
    plain = stratified
    if clusters.has_strata:
        plain = bootstrap(sums, columns.metrics, clusters.without_strata, draws, seed)
    falls, rises = _wilson_bounds(columns, sums, table, clusters)
    sizes, estimates = _sizes(columns, table, clusters), {}
    for at, (name, spec) in enumerate(columns.names()):
        value, size = float(stratified.value[at]), sizes[name]
        if spec.interval == "proportion" and clusters.has_one_row_per_patient:
            hits = round(value * size[0]) if size[0] else 0
            estimates[name] = proportion_estimate(hits, size[0])
            continue
        if spec.weights_images_equally:
            parts, method = _interval_of_images(spec, plain, at, clusters.num_patients)
        else:
            fall, rise = float(falls[at]), float(rises[at])
            parts, method = interval_with_wilson_bound(stratified, at, fall, rise, spec.minimum)
        reason = NO_SPREAD if np.isfinite(value) else ABSENT
        estimates[name] = make_estimate(parts, method, *size, reason)
    return estimates


def _interval_of_images(
    spec: MetricSpec, replicates: Replicates, at: int, patients: int
) -> tuple[Parts, str]:
    """Value and interval of a metric that weights images equally, and the method."""
    value = float(replicates.value[at])
    if spec.interval == "centered bootstrap":
        low, high = replicates.centered_interval(at)
        return (value, float(np.maximum(spec.minimum, low)), high), CENTERED
    if spec.interval == "proportion" and value in (0.0, 1.0):
        return (value, *wilson_interval(value * patients, patients)), WILSON
    return (value, *replicates.bca_interval(at)), BCA


def _wilson_bounds(
    columns: SumColumns, sums: Sums, table: PredictionTable, clusters: Clusters
) -> tuple[np.ndarray, np.ndarray]:
    """How far each metric may fall and rise, (m,) each, for classes that resamples do not vary.

    The recall of one class at a time is set to the ends of its Wilson interval; the changes of
    all classes are combined as independent errors.
    """
    k = len(table.class_names)
    total = np.ones((1, clusters.num_patients)) @ sums
    patients = clusters.patients_with(np.eye(k, dtype=bool)[table.labels])
    matrices = matrices_at_wilson_bounds(columns.matrices(total)[0], patients)
    others = np.repeat(total[:, k * k :], len(matrices), axis=0)
    values = columns.metrics(np.hstack([matrices.reshape(-1, k * k), others]))
    changes = np.nan_to_num(values - values[:1])
    falls, rises = np.minimum(changes, 0), np.maximum(changes, 0)
    return np.linalg.norm(falls, axis=0), np.linalg.norm(rises, axis=0)


def matrices_at_wilson_bounds(matrix: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The confusion matrix (K, K), then with one class at an end of its recall: (r, K, K).

    The ends are Wilson's, each of the `patients` (K,) of a class counting once. Only classes that
    are always right, never right or rare are changed: resamples vary the others.
    """
    matrices = [matrix]
    for c, n in enumerate(patients):
        total, hits = matrix[c].sum(), matrix[c, c]
        if n and (n < RARE or hits in (0, total)):
            ends = wilson_interval(hits / total * n, int(n))
            matrices += [_with_recall(matrix, c, end) for end in ends]
    return np.stack(matrices)


def _with_recall(matrix: np.ndarray, c: int, recall: float) -> np.ndarray:
    """The matrix with another recall of class `c`; its errors are scaled, or spread evenly."""
    is_other = np.arange(len(matrix)) != c
    errors = np.where(is_other, matrix[c], 0)
    if errors.sum() == 0:
        errors = is_other.astype(float)
    changed = matrix.astype(float)
    changed[c] = (1 - recall) * matrix[c].sum() * errors / errors.sum()
    changed[c, c] = recall * matrix[c].sum()
    return changed


def _sizes(
    columns: SumColumns, table: PredictionTable, clusters: Clusters
) -> dict[str, tuple[int, int]]:
    """Images and patients that each metric is computed from."""
    one_hot = np.eye(len(table.class_names), dtype=bool)
    labels, predictions = one_hot[table.labels], one_hot[table.predictions]
    sizes = {name: (len(table), clusters.num_patients) for name, _ in columns.names()}
    for spec in columns.specs:
        if spec.counted_images is not None:
            counted = spec.counted_images(labels, predictions)
            images, patients = counted.sum(axis=0), clusters.patients_with(counted)
            for c, name in enumerate(table.class_names):
                sizes[f"{spec.name}/{name}"] = int(images[c]), int(patients[c])
    return sizes
