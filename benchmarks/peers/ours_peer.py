"""Ours: the engine from requests to scores, and the training loop of two recipes.

Peers are given token ids; here a round begins at a request's history and ends at its scores.
"""

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rounds import Part, serve

import genre
from genre.engine import Engine, Request
from genre.jobs.loading import open_log
from genre.training.parts import SharedEncoder
from training import Ours

STEPS = 3
BASE = "smollm2-135m"


def mixed(kind: str) -> Any:
    """A call in which every request has an adapter of its own."""

    def open_part(job: dict[str, Any]) -> Part:
        requests = [
            Request(adapter["ref"], history=row["history"], candidates=[row["candidate"]])
            for adapter, row in zip(job["adapters"][kind], job["mixed"], strict=True)
        ]
        return asking(job, requests)

    return open_part


def candidates(job: dict[str, Any]) -> Part:
    """Candidates on one history by one adapter."""
    own = job["candidates"]
    return asking(job, [Request(job["adapters"]["seven"][0]["ref"], history=own["history"], candidates=own["items"])])


def returning(job: dict[str, Any]) -> Part:
    """Users who come back in every round with one event more; the history cache keeps what was read of them."""
    ref = job["adapters"]["seven"][0]["ref"]
    turns = [
        [Request(ref, user_id=one["user"], history=one["history"], candidates=one["items"]) for one in asked]
        for asked in job["returning"]
    ]
    engine = Engine(genre.Base.load(BASE, depth=job["depth"]), genre.Registry(job["registry"]), lanes=2, history_cache=2**30)
    left = iter(turns)
    return Part(lambda: log_odds(engine, turns[0]), lambda: float(len(log_odds(engine, next(left)))))


def asking(job: dict[str, Any], requests: list[Request]) -> Part:
    """An engine with a slot for each adapter."""
    engine = Engine(genre.Base.load(BASE, depth=job["depth"]), genre.Registry(job["registry"]), lanes=len(requests) + 1)

    return Part(lambda: log_odds(engine, requests), lambda: float(len(log_odds(engine, requests))))


def log_odds(engine: Engine, requests: list[Request]) -> list[float]:
    """Score requests."""
    found = engine.score(requests)
    if errors := [answer.error for answer in found if answer.error]:
        raise RuntimeError(errors[0])
    return [math.log(scored.score) - math.log1p(-scored.score) for answer in found for scored in answer.results]


def training(name: str) -> Any:
    """A recipe's loop, a few steps a round; `like` uses a fitted encoder, as most tasks do."""

    def open_part(job: dict[str, Any]) -> Part:
        base = genre.Base.load(BASE, depth=job["training_depth"])
        prompts, words = job["training"]["prompts"][:16], torch.tensor(job["training"]["words"])
        log, folder = open_log("data/ml-100k"), Path(tempfile.mkdtemp())
        shared = None
        if name == "like":
            ready = Ours("like", ["encoder.use=fit"], log, folder / "ready").assembly.shared
            assert ready is not None
            shared = SharedEncoder(ready.encoder.eval().requires_grad_(False), ready.vocabulary, "shared")
        loop = Ours(name, [], log, folder / name, shared)

        @torch.inference_mode()
        def answers() -> list[float]:
            """The bare base's answer to the first prompts, to check that both sides train the same base."""
            found = []
            for prompt in prompts:
                hidden = base.hidden(base.embedding(torch.tensor([prompt["ids"]])))[:, -1]
                logits = base.word_logits(hidden, words)[0]
                found.append(float(logits[-1] - logits[0]))
            return found

        return Part(answers, lambda: float(sum(loop.step() for _ in range(STEPS))))

    return open_part


if __name__ == "__main__":
    serve(
        {
            "training_text": training("like_text"),
            "training_token": training("like"),
            "mixed_seven": mixed("seven"),
            "mixed_five": mixed("five"),
            "candidates": candidates,
            "returning": returning,
        },
        ("torch", "transformers"),
    )
