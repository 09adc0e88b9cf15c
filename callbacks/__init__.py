"""What happens around training."""

from callbacks.checkpoint import BestAndLastCheckpoint
from callbacks.ema import EMA
from callbacks.history import HistoryWriter
from callbacks.model_card import ModelCard
from callbacks.predictions import PredictionWriter
from callbacks.progress_bar import ProgressBar
from callbacks.results_writer import ResultsWriter
from callbacks.saliency_maps import SaliencyMaps
from callbacks.sparse_training.callback import TwoStageSparseTraining
from callbacks.step_seeding import StepSeeding
from callbacks.trainable_summary import TrainableSummary
from callbacks.wandb_logger import WandbLogger
from callbacks.warm_start import WarmStart

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
