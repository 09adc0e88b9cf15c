"""Sections of an experiment's report, one module per subject, made from these."""

from collections.abc import Mapping

from evaluation.predictions import PredictionTable
from evaluation.results import Results

Runs = Mapping[str, Results]  # of the finished runs by name
Tables = Mapping[str, PredictionTable]  # test predictions of these runs
