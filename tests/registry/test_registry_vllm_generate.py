"""A vLLM server generates items with our engine's probabilities: SmolLM2-135M, MovieLens-100K, random weights."""

import math
from pathlib import Path

import pytest
import torch
from test_registry_vllm_server import serving

import genre
from builders import NEXT, publish_stirred, recipe, stir
from genre.jobs.export.generating import export_generating
from genre.jobs.publish import encoder_manifest, write_encoder
from genre.registry.export.generate_client import Generator
from genre.registry.manifest import Cost
from genre.training.assembly import assemble

# Slow: an environment of about 2 GB is installed the first time; the server starts in about a minute.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BASE = {"name": "smollm2-135m", "depth": 2}


def test_a_server_gives_every_item_the_engines_probability(vllm_python: Path, tmp_path: Path) -> None:
    from genre.jobs.loading import open_log
    from genre.modules.base.packaged import prepare_base

    log, base, registry = open_log("ml-100k"), genre.Base.load(**BASE), genre.Registry(tmp_path / "registry")
    task = NEXT | {"head": "generate"}
    more = {"encoder": {"codes": {"levels": 2, "size": 64}}, "base": BASE, "sequence": {"instruction": "Films:"}}
    made = assemble(recipe(BASE["name"], task, **more), log, base)
    stir(made)
    with torch.no_grad():
        made.model.soft.codes.vectors.weight.mul_(3)  # or all items would be nearly alike
    write_encoder(tmp_path / "encoder", made)
    registry.publish(tmp_path / "encoder", encoder_manifest(made, "encoder", cost=Cost()))
    made.model.release()
    publish_stirred(registry, recipe(BASE["name"], task, name="next", **more), log, base, tmp_path / "next", encoder="encoder")
    export_generating(registry, "next", tmp_path / "out", prepare_base(BASE["name"]))
    items = list(log.catalogue.item_ids)
    histories = [log.history(user)[:size] for user, size in (("196", 25), ("186", 8), ("22", 1), ("22", 0))]
    with genre.Engine(base, registry, lanes=1) as engine:
        asked = [genre.Request("next", history=each, k=len(items), beam=len(items), exclude_seen=False) for each in histories]
        answers = engine.score(asked)
    with serving(vllm_python, tmp_path / "out", tmp_path / "server.log") as url, Generator(url, tmp_path / "out") as generator:
        for history, answer in zip(histories, answers, strict=True):
            assert answer.error is None
            theirs = dict(generator.recommend(history, len(items), beam=None))
            assert len(theirs) == len(answer.results) == len(items)
            assert max(math.exp(each.score) for each in answer.results) > 0.05
            for each in answer.results:
                assert math.exp(theirs[each.item_id]) == pytest.approx(math.exp(each.score), abs=1e-4)
        settings = generator.prompt
        first, size = settings["first_code"], sum(settings["code_sizes"])
        body = {
            "model": settings["model"],
            "prompt": generator.prompts.history(histories[1], {}),
            "max_tokens": len(settings["code_sizes"]),
            "structured_outputs": {"grammar": generator.trie.grammar(items[:40])},
            "allowed_token_ids": list(range(first, first + size)),
        }
        text = generator.server.post("/v1/completions", body)["choices"][0]["text"]
        codes = [int(part.split(".")[1].rstrip("⟩")) for part in text.split("⟨")[1:]]
        assert codes in [item["codes"] for item in generator.items if item["item_id"] in items[:40]]
