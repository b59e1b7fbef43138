"""The metrics, in one import.

Owns: the public names of this package's modules.

    >>> from genre.evaluation.metrics import bootstrap, metric
    >>> metric("ndcg@10").function([1, 3])  # ranks 1 and 3 gain 1 and 1/2
    0.75
"""

from genre.evaluation.metrics.auc import auc, gauc, user_aucs
from genre.evaluation.metrics.bootstrap import Figure, bootstrap, paired_bootstrap, paired_draws
from genre.evaluation.metrics.by_name import METRICS, Metric, metric
from genre.evaluation.metrics.calibration import Bin, ece, reliability
from genre.evaluation.metrics.evaluate_library import as_evaluate
from genre.evaluation.metrics.feedback import accuracy, f1, log_loss, macro_f1, mae, rmse
from genre.evaluation.metrics.impressions import impression_auc, impression_mrr, impression_ndcg
from genre.evaluation.metrics.lists import ListFacts, diversity, novelty, serendipity
from genre.evaluation.metrics.ranking import coverage, gini, hr, mid_ranks, mrr, ndcg, top_items

__all__ = [
    "METRICS",
    "Bin",
    "Figure",
    "ListFacts",
    "Metric",
    "accuracy",
    "as_evaluate",
    "auc",
    "bootstrap",
    "coverage",
    "diversity",
    "ece",
    "f1",
    "gauc",
    "gini",
    "hr",
    "impression_auc",
    "impression_mrr",
    "impression_ndcg",
    "log_loss",
    "macro_f1",
    "mae",
    "metric",
    "mid_ranks",
    "mrr",
    "ndcg",
    "novelty",
    "paired_bootstrap",
    "paired_draws",
    "reliability",
    "rmse",
    "serendipity",
    "top_items",
    "user_aucs",
]
