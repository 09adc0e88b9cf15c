"""Lightning modules: single classifiers, one-versus-one classifiers and ensembles."""

from lightning_modules.classifier import ImageClassifier
from lightning_modules.ensemble import EnsembleModule
from lightning_modules.one_vs_one import OneVsOneClassifier

__all__ = ["EnsembleModule", "ImageClassifier", "OneVsOneClassifier"]
