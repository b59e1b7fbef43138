"""Exports that need a model to run: vectors of items and users, lists of the best items, a tracked model in MLflow.

Owns: what an exported file or folder holds. Ignores: exports that copy a version's files (`genre.registry.export`).
"""
