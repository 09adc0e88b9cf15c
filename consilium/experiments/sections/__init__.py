"""Sections of an experiment's report, one module per subject."""
