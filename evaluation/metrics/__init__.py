"""Metrics of predictions: one registry, and the functions behind it."""
