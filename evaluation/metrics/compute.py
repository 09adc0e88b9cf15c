"""All metrics of a prediction table with intervals, and the few computed at each epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, hstack

from evaluation.metrics import confusion
from evaluation.metrics.calibration import NUM_BINS, NUM_CELLS, equal_mass_bins
from evaluation.metrics.clinical import outcome_members, use_of
from evaluation.metrics.confusion import ratio
from evaluation.metrics.ranking import ranking_estimates
from evaluation.metrics.registry import METRICS, MetricSpec, in_registry_order
from evaluation.predictions import PredictionTable
from evaluation.stats import bootstrap, estimate
from evaluation.stats.auc import auc
from evaluation.stats.bootstrap import DRAWS, Clusters, Replicates, Sums, one_hot
from evaluation.stats.estimate import Estimate, Estimates, make_estimate, wilson_interval

KINDS = (  # of sums over images
    "confusion", "prevalence", "image_mean", "calibration", "smooth_calibration",
    "classwise_calibration",
)  # fmt: skip
ABSENT = "a class has no image, or is never predicted"
ONE_KIND = "no image has the outcome, or all images have it"


def compute_metrics(
    table: PredictionTable, draws: int = DRAWS, seed: int = 0,
    specs: Sequence[MetricSpec] | None = None,
) -> Estimates:  # fmt: skip
    """Metrics of the registry (all, or `specs`) on the labeled rows, by full name."""
    if (table.labels < 0).all():
        return {"accuracy": Estimate(None, None, None, "none", 0, 0, "no row has a known label")}
    labeled, specs = table.labeled, list(METRICS.values()) if specs is None else specs
    clusters = Clusters.from_patients(labeled.patients, labeled.labels)
    summed = [spec for spec in specs if spec.kind in KINDS]
    rankings = {s.name: (s.compute, s.perfect_bound) for s in specs if s.kind == "ranking"}
    estimates = _sum_estimates(labeled, clusters, summed, draws, seed) if summed else {}
    if rankings:
        estimates |= ranking_estimates(labeled, clusters, rankings, draws, seed)
    for compute in dict.fromkeys(spec.compute for spec in specs if spec.kind == "estimates"):
        estimates |= compute(labeled, clusters, draws, seed)
    return in_registry_order(estimates)


def epoch_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy, quadratic kappa and macro AUROC; NaN if a class is absent."""
    predictions = probabilities.argmax(axis=1)
    matrix = confusion.confusion_matrix(labels, predictions, probabilities.shape[1])
    return {
        "accuracy": float(confusion.accuracy(matrix)),
        "balanced_accuracy": float(confusion.recall(matrix).mean()),
        "kappa_quadratic": float(confusion.kappa(matrix, quadratic=True)),
        "auroc": float(np.mean([auc(p, labels == c) for c, p in enumerate(probabilities.T)])),
    }


def recall_and_precision(table: PredictionTable) -> dict[str, float]:
    """`recall/<class>` and `precision/<class>` without intervals, where they are defined."""
    matrix = confusion_matrix(table)
    rates = {"recall": confusion.recall(matrix), "precision": confusion.precision(matrix)}
    return {
        f"{rate}/{name}": float(value)
        for rate, values in rates.items()
        for name, value in zip(table.class_names, values, strict=True)
        if np.isfinite(value)
    }


def confusion_matrix(table: PredictionTable) -> np.ndarray:
    """Counts (K, K) of the labeled rows: rows are labels, columns are predictions."""
    known, num_classes = table.labeled, len(table.class_names)
    return confusion.confusion_matrix(known.labels, known.predictions, num_classes)


@dataclass(frozen=True)
class SumColumns:
    """The columns whose sums over images determine the metrics `specs`, for K classes.

    In this order: K x K confusion cells, the columns of each metric of kind `image_mean`, the
    signed gaps of the predicted class in 200 cells if needed, and those in 15 calibration bins,
    of the predicted class and of each class if needed.
    """

    specs: Sequence[MetricSpec]
    class_names: Sequence[str]
    outcomes: Sequence[str]
    prevalences: Sequence[float]

    @classmethod
    def from_table(cls, specs: Sequence[MetricSpec], table: PredictionTable) -> "SumColumns":
        """The columns for the classes, named groups and prevalences of a table."""
        outcomes, prevalences = list(outcome_members(table)), use_of(table).prevalences
        return cls(specs, table.class_names, outcomes, prevalences)

    def names(self) -> list[tuple[str, MetricSpec]]:
        """(full name, entry) of each metric, in the order of the columns of `metrics`."""
        at_prevalences = [f"{c}/{p:g}" for c in self.class_names for p in self.prevalences]
        parts = {"class": self.class_names, "overall and class": ["", *self.class_names],
                 "outcome": self.outcomes, "prevalence": at_prevalences}  # fmt: skip
        return [
            (f"{spec.name}/{part}" if part else spec.name, spec)
            for spec in self.specs
            for part in parts.get(spec.scope, [""])
        ]

    def of_table(self, table: PredictionTable) -> Sums:
        """Columns (n, d) of labeled rows, sparse: most cells and bins of a row are 0."""
        k, p, labels = len(self.class_names), table.probabilities, table.labels
        confidence, is_correct = p.max(axis=1), table.predictions == labels
        outcomes = []  # scores and whether they came true: of the predicted class, of each class
        if self._kinds & {"calibration", "classwise_calibration"}:
            outcomes = [(confidence, is_correct)]
        if "classwise_calibration" in self._kinds:
            outcomes += [(p[:, c], labels == c) for c in range(k)]
        cells = one_hot(labels * k + table.predictions, k * k)
        means = [csr_matrix(spec.compute(table).reshape(len(table), -1)) for spec in self._means]
        # quantiles of the whole table, also when patients are resampled
        gaps = [one_hot(equal_mass_bins(s), NUM_BINS, s - is_true) for s, is_true in outcomes]
        if "smooth_calibration" in self._kinds:
            cell = (confidence * NUM_CELLS).astype(int).clip(max=NUM_CELLS - 1)
            gaps = [one_hot(cell, NUM_CELLS, confidence - is_correct), *gaps]
        return hstack([cells, *means, *gaps]).tocsr()

    def metrics(self, sums: np.ndarray) -> np.ndarray:
        """Metrics (r, m), in the order of `names`, of sums (r, d) of the columns of `of_table`."""
        k = len(self.class_names)
        matrix = sums[:, : k * k].reshape(-1, k, k)
        n = matrix.sum(axis=(1, 2))
        widths = [len(self.outcomes) if s.scope == "outcome" else 1 for s in self._means]
        widths.append(NUM_CELLS if "smooth_calibration" in self._kinds else 0)
        *totals, smooth, gaps = np.split(sums[:, k * k :], np.cumsum(widths, dtype=int), axis=1)
        means = iter([ratio(total, n[:, None]) for total in totals])
        gaps = ratio(gaps.reshape(len(sums), -1, NUM_BINS), n[:, None, None])
        inputs = {"calibration": gaps[:, :1], "smooth_calibration": ratio(smooth, n[:, None]),
                  "classwise_calibration": gaps[:, -k:],
                  "prevalence": confusion.at_prevalences(matrix, self.prevalences)}  # fmt: skip
        values = [
            next(means) if s.kind == "image_mean" else s.compute(inputs.get(s.kind, matrix))
            for s in self.specs
        ]
        return np.column_stack(values)

    @property
    def _kinds(self) -> set[str]:
        return {spec.kind for spec in self.specs}

    @property
    def _means(self) -> list[MetricSpec]:
        return [spec for spec in self.specs if spec.kind == "image_mean"]


def _sum_estimates(
    table: PredictionTable, clusters: Clusters, specs: Sequence[MetricSpec], draws: int, seed: int
) -> Estimates:
    """Estimates, by full name, of metrics of `KINDS` on labeled rows, from the same resamples."""
    columns = SumColumns.from_table(specs, table)
    sums = clusters.sum_by_patient(columns.of_table(table))
    stratified, plain = bootstrap.bootstrap_both(sums, columns.metrics, clusters, draws, seed)
    falls, rises = _wilson_bounds(columns, sums, table, clusters)
    sizes, estimates = _sizes(columns, table, clusters), {}
    for at, (name, spec) in enumerate(columns.names()):
        size = sizes[name]
        if spec.interval == "proportion" and clusters.has_one_row_per_patient:
            estimates[name] = _proportion(float(stratified.value[at]), *size)
        elif spec.weights_images_equally:
            estimates[name] = _mean_over_images(spec, plain, at, size)
        else:
            ends = float(falls[at]), float(rises[at]), spec.minimum, spec.maximum
            estimates[name] = estimate.replicate_estimate(stratified, at, size, ABSENT, *ends)
    return estimates


def _proportion(value: float, n: int, patients: int) -> Estimate:
    """A proportion of `n` images, each of another patient, with Wilson's interval."""
    if not n:
        return Estimate(None, None, None, "Wilson", 0, patients, "the denominator is 0")
    hits = round(value * n)
    return Estimate(hits / n, *wilson_interval(hits, n), "Wilson", n, patients)


def _mean_over_images(
    spec: MetricSpec, replicates: Replicates, at: int, size: tuple[int, int]
) -> Estimate:
    """Estimate of statistic `at`, a metric that weights images equally, from its replicates."""
    value, patients = float(replicates.value[at]), size[1]
    (low, high), method = replicates.bca_interval(at), estimate.BCA
    if spec.interval == "centered bootstrap":
        low, high = replicates.percentile_interval(at, is_centered=True)
        low, method = float(np.maximum(spec.minimum, low)), estimate.CENTERED
    elif spec.interval == "proportion" and value in (0.0, 1.0):
        (low, high), method = wilson_interval(value * patients, patients), estimate.WILSON
    reason = estimate.NO_SPREAD if np.isfinite(value) else ONE_KIND
    return make_estimate((value, low, high), method, *size, reason)


def _wilson_bounds(
    columns: SumColumns, sums: Sums, table: PredictionTable, clusters: Clusters
) -> tuple[np.ndarray, np.ndarray]:
    """How far below and above its value each metric may be by Wilson's bounds on recalls, (m,)."""
    k = len(table.class_names)
    total = np.ones((1, clusters.num_patients)) @ sums
    patients = clusters.patients_with(table.one_hot_labels)
    matrices = _matrices_at_wilson_bounds(total[0, : k * k].reshape(k, k), patients)
    others = np.repeat(total[:, k * k :], len(matrices), axis=0)
    values = columns.metrics(np.hstack([matrices.reshape(-1, k * k), others]))
    changes = np.nan_to_num(values - values[:1])
    falls, rises = np.minimum(changes, 0), np.maximum(changes, 0)
    return np.linalg.norm(falls, axis=0), np.linalg.norm(rises, axis=0)  # independent errors


def _matrices_at_wilson_bounds(matrix: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Confusion matrices (r, K, K): `matrix`, then copies with another recall of one class.

    The recall is an end of Wilson's interval, with one trial for each of the `patients` (K,). Only
    classes that are always right, never right or rare are changed: resamples vary the others. The
    errors of the class are scaled, or spread evenly.
    """
    matrices = [matrix.astype(float)]
    for c, n in enumerate(patients):
        total, hits = matrix[c].sum(), matrix[c, c]
        if n and (n < bootstrap.RARE or hits in (0, total)):
            is_other = np.arange(len(matrix)) != c
            errors = np.where(is_other, matrix[c], 0)
            errors = errors if errors.sum() else is_other.astype(float)
            for recall in wilson_interval(hits / total * n, int(n)):
                changed = matrix.astype(float)
                changed[c] = (1 - recall) * total * errors / errors.sum()
                changed[c, c] = recall * total
                matrices.append(changed)
    return np.stack(matrices)


def _sizes(
    columns: SumColumns, table: PredictionTable, clusters: Clusters
) -> dict[str, tuple[int, int]]:
    """Number of images and of patients that each metric is computed from, by full name."""
    labels = table.one_hot_labels
    predictions = table.predictions[:, None] == np.arange(labels.shape[1])
    sizes = {name: (len(table), clusters.num_patients) for name, _ in columns.names()}
    for spec in columns.specs:
        if spec.counted_images is not None:
            counted = spec.counted_images(labels, predictions)
            images, patients = counted.sum(axis=0), clusters.patients_with(counted)
            for c, name in enumerate(table.class_names):
                sizes[f"{spec.name}/{name}"] = int(images[c]), int(patients[c])
    return sizes
