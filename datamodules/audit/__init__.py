"""Checks of a dataset before training: leaks, duplicates, unreadable files, confounds."""
