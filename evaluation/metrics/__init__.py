"""Metrics of predictions: the registry and the computation of all metrics of a table."""
