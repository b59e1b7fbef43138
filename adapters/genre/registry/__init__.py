"""The registry: immutable versions, manifests, integrity, aliases, rollback, remote stores. No torch.

>>> from genre.registry import Manifest, Registry
"""

from genre.registry.core import Registry
from genre.registry.entries import Move
from genre.registry.lookup import Listed
from genre.registry.maintenance import Garbage
from genre.registry.manifest import BaseInfo, Cost, DataInfo, Manifest, MetricValue, Publishable, Version, check_fit
from genre.registry.quality import higher_is_better
from genre.registry.verification import Problem
from genre.registry.weights.base import truncate_base

__all__ = [
    "BaseInfo",
    "Cost",
    "DataInfo",
    "Garbage",
    "Listed",
    "Manifest",
    "MetricValue",
    "Move",
    "Problem",
    "Publishable",
    "Registry",
    "Version",
    "check_fit",
    "higher_is_better",
    "truncate_base",
]
