"""Search and validation: hyperparameters, folds by user, paired comparison of two models.

>>> from genre.jobs.tuning import Search, read_space, tune
"""

from genre.jobs.tuning.search import tune
from genre.jobs.tuning.space import Space, read_space
from genre.jobs.tuning.study import Search

__all__ = ["Search", "Space", "read_space", "tune"]
