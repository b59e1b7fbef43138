"""GENRE: one frozen base LLM, one small adapter per recommendation task.

Names are looked up when they are first used, so that `import genre` and `genre --help` load no model library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genre._version import __version__

if TYPE_CHECKING:
    from genre import export as export
    from genre.data.interactions import Interactions as Interactions
    from genre.data.texts.dataset import Texts as Texts
    from genre.engine import Engine as Engine
    from genre.engine import Request as Request
    from genre.jobs.evaluate import evaluate as evaluate
    from genre.jobs.train import train as train
    from genre.modules.base.base import Base as Base
    from genre.recipe import Recipe as Recipe
    from genre.registry import Registry as Registry

_HOMES = {
    "Base": "genre.modules.base.base",
    "Engine": "genre.engine",
    "Interactions": "genre.data.interactions",
    "Recipe": "genre.recipe",
    "Registry": "genre.registry",
    "Request": "genre.engine",
    "Texts": "genre.data.texts.dataset",
    "evaluate": "genre.jobs.evaluate",
    "train": "genre.jobs.train",
}

_MODULES = ("export",)

__all__ = [
    "Base",
    "Engine",
    "Interactions",
    "Recipe",
    "Registry",
    "Request",
    "Texts",
    "__version__",
    "evaluate",
    "export",
    "train",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"genre.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'genre' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
