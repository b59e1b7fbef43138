"""Metrics with intervals, the targets they are computed on, and baselines. Loads no torch."""
