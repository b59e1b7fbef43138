"""Baseline recommenders: each has an adapter's inputs and is tuned or stopped on the validation part only.

    neighbours   item-based and sequential nearest neighbours
    factors      alternating least squares and Bayesian personalized ranking, from `implicit`
    trees        gradient-boosted trees on running means, for feedback tasks

A ranking rival is fitted by `fit(log, split)` and gives `blocks(targets)`, the scores of the whole catalogue from each
target's history, for `genre.evaluation.ranking.rank_in_blocks`.
"""
