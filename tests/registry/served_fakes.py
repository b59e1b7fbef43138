"""An adapter over text items with two tasks of label words, as servers of language models can answer for."""

from pathlib import Path
from typing import Any

import genre
from builders import LIKE, RATING, publish_stirred, recipe

WORDS = {"head": "verbalizer", "words": ["No", "Yes"]}
STARS = {"head": "verbalizer", "words": ["1", "2", "3", "4", "5"]}
TEXT: dict[str, Any] = {"sequence": {"item": "text", "text": ["title"], "instruction": "Of {age}:"}, "encoder": {"use": "none"}}


def first_layer(wanted: genre.Recipe) -> genre.Recipe:
    """The same recipe on the base's first layer."""
    return wanted.model_copy(update={"base": wanted.base.model_copy(update={"depth": 1})})


class World:
    """The adapter `texts` on the first of two layers, and its export to vLLM."""

    def __init__(self, folder: Path, tiny: Path, log: genre.Interactions) -> None:
        self.log, self.tiny, self.folder = log, tiny, folder
        self.registry = genre.Registry(folder / "registry", cache=folder / "cache")
        tasks = [LIKE | WORDS, RATING | STARS]
        wanted = first_layer(recipe(tiny, *tasks, name="texts", data={"max_events": 6}, **TEXT))
        self.base = genre.Base.load(str(tiny), depth=1)
        self.version = publish_stirred(self.registry, wanted, log, self.base, folder / "texts")
        self.out = self.registry.export(self.version, folder / "out", to="vllm", base=tiny, tar=True)
