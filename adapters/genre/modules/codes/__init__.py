"""Semantic ids: codes of items that a language model can generate, and the vectors of their tokens."""
