"""Merging adapters: the arithmetic, the quality gate and the job."""
