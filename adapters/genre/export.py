"""Exports from Python: `genre.export.vectors`, `genre.export.lists`, and what reads them.

vectors = genre.export.vectors(registry, "next_item@production", "exported", data=log, users=True)
genre.export.read_vectors("exported", digest=kept)
"""

from genre.jobs.export.lists import export_lists as lists
from genre.jobs.export.mlflow import export_mlflow as mlflow
from genre.jobs.export.vectors import export_vectors as vectors
from genre.jobs.export.vectors import user_vectors
from genre.registry.export.vector_client import StaleIndexError, Vectors, VectorsError

read_vectors = Vectors.read

__all__ = ["StaleIndexError", "Vectors", "VectorsError", "lists", "mlflow", "read_vectors", "user_vectors", "vectors"]
