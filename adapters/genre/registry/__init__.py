"""The registry: immutable versions, manifests, integrity, aliases, roll back, remote stores. No torch.

>>> from genre.registry import Manifest, Registry
"""

from genre.registry.base_files import truncate_base
from genre.registry.core import Registry
from genre.registry.gc import Garbage
from genre.registry.journal import Move
from genre.registry.manifest import BaseInfo, Cost, DataInfo, Manifest, MetricValue, check_fit
from genre.registry.quality import higher_is_better
from genre.registry.values import Listed, Problem, Publishable, Version

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
