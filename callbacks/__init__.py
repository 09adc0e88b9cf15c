"""What happens around training."""

from callbacks.averaging import AverageWeights
from callbacks.bar import Bar
from callbacks.board import Board
from callbacks.checkpointing import BestAndLast
from callbacks.heatmaps import Heatmaps
from callbacks.history import History
from callbacks.predictions import Predictions
from callbacks.readme import Readme
from callbacks.record import Record
from callbacks.reseed import Reseed
from callbacks.sparse_training import TwoStageSparseTraining
from callbacks.start_from import StartFrom
from callbacks.what_trains import WhatTrains

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
