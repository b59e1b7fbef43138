"""Search and validation: hyperparameters, folds by user, paired comparison of two models.

>>> from genre.tuning import Search, read_space, tune
"""

from genre.tuning.search import tune
from genre.tuning.space import Space, read_space
from genre.tuning.study import Search

__all__ = ["Search", "Space", "read_space", "tune"]
