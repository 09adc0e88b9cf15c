"""What happens around training."""

from callbacks.averaging import AverageWeights
from callbacks.bar import Bar
from callbacks.checkpointing import BestAndLast
from callbacks.history import History
from callbacks.predictions import Predictions
from callbacks.record import Record
from callbacks.reseed import Reseed
from callbacks.sparse_training import TwoStageSparseTraining

__all__ = [
    "AverageWeights",
    "Bar",
    "BestAndLast",
    "History",
    "Predictions",
    "Record",
    "Reseed",
    "TwoStageSparseTraining",
]
