"""What happens around training."""

from callbacks.checkpoint import BestAndLast
from callbacks.ema import AverageWeights
from callbacks.history import History
from callbacks.model_card import Readme
from callbacks.predictions import Predictions
from callbacks.progress_bar import Bar
from callbacks.results_writer import Record
from callbacks.saliency_maps import Heatmaps
from callbacks.sparse_training.callback import TwoStageSparseTraining
from callbacks.step_seeding import Reseed
from callbacks.trainable_summary import WhatTrains
from callbacks.wandb_logger import Board
from callbacks.warm_start import StartFrom

__all__ = [
    "AverageWeights",
    "Bar",
    "Board",
    "BestAndLast",
    "Heatmaps",
    "History",
    "Predictions",
    "Readme",
    "Record",
    "Reseed",
    "StartFrom",
    "TwoStageSparseTraining",
    "WhatTrains",
]
