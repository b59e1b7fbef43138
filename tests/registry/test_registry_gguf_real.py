"""llama.cpp on four layers of SmolLM2-135M answers an exported adapter as our engine does, and reads text alike."""

import math
from pathlib import Path
from typing import Any

import pytest

import genre
from builders import publish_stirred
from genre.registry.export.client import Client

RECIPE = Path(__file__).parents[2] / "benchmarks" / "recipes" / "like_text.yaml"


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


@pytest.mark.slow  # needs llama-cpp-python, and a base of 135 million parameters
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_on_smollm2(llama_cpp: Any, tmp_path: Path) -> None:
    from genre.jobs.loading import open_log
    from genre.modules.base.packaged import prepare_base

    depth, log = 4, open_log("ml-100k")
    base, registry = genre.Base.load("smollm2-135m", depth=depth), genre.Registry(tmp_path / "registry")
    publish_stirred(registry, genre.Recipe.read(RECIPE, [f"base.depth={depth}"]), log, base, tmp_path / "like_text")
    out = registry.export("like_text", tmp_path / "out", to="gguf", base=prepare_base("smollm2-135m"))
    items = list(log.catalogue.item_ids[:20])
    asked = [(log.history(user)[:size], items) for user, size in (("196", 29), ("186", 12), ("22", 1), ("244", 0))]
    with genre.Engine(base, registry, lanes=2) as engine:
        answers = engine.score([genre.Request("like_text", history=h, candidates=c) for h, c in asked])
    with Client(folder=out) as client:
        theirs = [client.score(history, candidates) for history, candidates in asked]
        text = "Toy Story (1995): 12345 it's\n"
        own = client.server._model.tokenize(text.encode(), add_bos=False)  # llama.cpp's own reading of text
        assert list(own) == client.server.tokenize(text)
    pairs = [(a.score, b) for answer, row in zip(answers, theirs, strict=True) for a, b in zip(answer.results, row, strict=True)]
    worst, apart = max(abs(a - b) for a, b in pairs), max(abs(log_odds(a) - log_odds(b)) for a, b in pairs)
    print(f"largest difference of {len(pairs)} scores: {worst:.2g} in probability, {apart:.2g} in log-odds")
    assert worst <= 1e-4 and apart <= 1e-2
