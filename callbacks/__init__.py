"""Callbacks and a logger of a training: checkpoints, results, sparse training, W&B."""

from callbacks.checkpoint import BestAndLastCheckpoint
from callbacks.ema import EMA
from callbacks.model_card import ModelCard
from callbacks.saliency_maps import SaliencyMaps
from callbacks.sparse_training.callback import TwoStageSparseTraining
from callbacks.step_seeding import StepSeeding
from callbacks.terminal import ProgressBar, TrainableSummary
from callbacks.wandb_logger import WandbLogger
from callbacks.warm_start import WarmStart
from callbacks.writers import HistoryWriter, PredictionWriter, ResultsWriter

__all__ = [
    "EMA",
    "ProgressBar",
    "WandbLogger",
    "BestAndLastCheckpoint",
    "SaliencyMaps",
    "HistoryWriter",
    "PredictionWriter",
    "ModelCard",
    "ResultsWriter",
    "StepSeeding",
    "WarmStart",
    "TwoStageSparseTraining",
    "TrainableSummary",
]
