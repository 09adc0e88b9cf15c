"""Predictions, their metrics and reports: pure functions on tables and arrays."""
