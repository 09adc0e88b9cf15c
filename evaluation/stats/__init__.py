"""Estimates with confidence intervals: bootstrap over patients, DeLong, Wilson, paired tests."""
