"""Estimates with confidence intervals: bootstrap, DeLong, Wilson, paired tests."""
