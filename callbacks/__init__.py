"""Callbacks and a logger of a training: checkpoints, results, sparse training, W&B."""

from callbacks.checkpoint import BestAndLastCheckpoint, StepSeeding
from callbacks.linear_probe import LinearProbe
from callbacks.model_card import ModelCard
from callbacks.saliency_maps import SaliencyMaps
from callbacks.sparse_training.callback import TwoStageSparseTraining
from callbacks.wandb_logger import WandbLogger
from callbacks.weights import EMA, TrainableSummary, WarmStart
from callbacks.writers import HistoryWriter, PredictionWriter, ProgressBar, ResultsWriter

__all__ = ["EMA", "BestAndLastCheckpoint", "HistoryWriter", "LinearProbe", "ModelCard",
           "PredictionWriter", "ProgressBar", "ResultsWriter", "SaliencyMaps", "StepSeeding",
           "TrainableSummary", "TwoStageSparseTraining", "WandbLogger", "WarmStart"]  # fmt: skip
