"""The metrics, in one import.

Owns: the public names of `metrics_auc`, `metrics_calibration`, `metrics_feedback`, `metrics_impressions`, `metrics_ranking`,
`metrics_lists`, `metrics_registry`, `metrics_bootstrap` and `metrics_evaluate`. Ignores everything else.

    >>> from genre.metrics import bootstrap, metric
    >>> metric("ndcg@10").function([1, 3])  # ranks 1 and 3 gain 1 and 1/2
    0.75
"""

from genre.metrics_auc import auc, gauc, user_aucs
from genre.metrics_bootstrap import Figure, bootstrap, paired_bootstrap, paired_draws
from genre.metrics_calibration import Bin, ece, reliability
from genre.metrics_evaluate import as_evaluate
from genre.metrics_feedback import accuracy, f1, log_loss, macro_f1, mae, rmse
from genre.metrics_impressions import impression_auc, impression_mrr, impression_ndcg
from genre.metrics_lists import ListFacts, diversity, novelty, serendipity
from genre.metrics_ranking import coverage, gini, hr, mid_ranks, mrr, ndcg, top_items
from genre.metrics_registry import METRICS, Metric, metric

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
