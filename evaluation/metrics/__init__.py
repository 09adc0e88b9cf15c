"""Metrics of predictions: the registry and the computation of all metrics of a table."""

from evaluation.metrics.registry import METRICS, MetricSpec, metric_label, metric_spec

__all__ = ["METRICS", "MetricSpec", "metric_label", "metric_spec"]
