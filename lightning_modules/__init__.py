"""What learns and what votes."""

from lightning_modules.classifier import ImageClassifier
from lightning_modules.ensemble import EnsembleModule

__all__ = ["EnsembleModule", "ImageClassifier"]
