"""Training: the loop, its state and its checks.

>>> from genre.training import fit
"""

from genre.training.checkpoints import TrainingState
from genre.training.fitting import Fitted, fit
from genre.training.loop import Loop

__all__ = ["Fitted", "Loop", "TrainingState", "fit"]
