"""Matplotlib figures of predictions."""
