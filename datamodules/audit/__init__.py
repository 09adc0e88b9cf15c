"""Checks of a dataset before training: leaks, copies, broken files, confounds."""
