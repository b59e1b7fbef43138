"""Metrics with intervals, the targets they are computed on, and the baselines beside them. Loads no torch."""
