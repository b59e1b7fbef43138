"""The engine: one base, many resident adapters, mixed batches, branches, hot-swap.

>>> from genre.engine import Engine, Request
"""

from genre.engine.core import Engine
from genre.engine.requests import Request, Response, Scored, ScoredText

__all__ = ["Engine", "Request", "Response", "Scored", "ScoredText"]
