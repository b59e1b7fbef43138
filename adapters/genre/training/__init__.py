"""Training: the loop, its state and its checks.

>>> from genre.training import fit
"""

from genre.training.loop import Loop, fit
from genre.training.state import Fitted, State, peak_memory_bytes

__all__ = ["Fitted", "Loop", "State", "fit", "peak_memory_bytes"]
