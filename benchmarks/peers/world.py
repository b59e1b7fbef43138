"""The inputs of all peers: a base, adapters in PEFT's format, token ids, and the job file with their paths.

Adapters are of `like_text` with random weights: cost and sameness matter here, quality does not.

    build/peers/world/
        job.json                      # Job
        registry/                     # ours: the same adapters as versions
        base-10/  base-4/             # the base's first layers as transformers folders, for inference and for training
        seven/a00 … a15, five/a00 …   # PEFT folders: all seven linears of a layer; the five that AdapterHub can adapt
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

import genre
from genre.jobs.publish import adapter_manifest, write_adapter
from genre.modules.base.packaged import prepare_base
from genre.registry import Registry, truncate_base
from genre.registry.manifest import Cost
from genre.training.assembly import assemble
from training import DEPTH, Prompts
from training import TOKENS as STEP_TOKENS

RECIPE = Path(__file__).parents[1] / "recipes" / "like_text.yaml"
ROWS, TOKENS, RANK = 16, 128, 8
HISTORY, CANDIDATES = 420, 100
USERS, TURNS, SHOWN = 16, 16, 10
"""Users who come back, their calls, and the candidates of a call."""
PROMPTS = 1024
FIVE = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")

Job = dict[str, Any]


def build(folder: Path, log: genre.Interactions, *, depth: int) -> Job:
    """Write everything into a new folder and return the job.

    Args:
        folder: Removed and made again.
        log: ML-100K.
        depth: Layers for inference; training has those of training.py.
    """
    shutil.rmtree(folder, ignore_errors=True)
    whole = prepare_base("smollm2-135m")
    for layers in {depth, DEPTH}:
        truncate_base(whole, layers, folder / f"base-{layers}")
    base = genre.Base.load(str(whole), depth=depth)
    registry = Registry(folder / "registry")
    sets = {"seven": "all-linear", "five": json.dumps(FIVE)}
    adapters = {name: _publish(folder, name, targets, log, base, registry) for name, targets in sets.items()}
    recipe = genre.Recipe.read(RECIPE, [f"base.depth={depth}", "data.max_events=100"])
    assembly = assemble(recipe, log, base)
    try:
        words = [int(word) for word in assembly.model.heads["like"].get_buffer("word_ids")]
        layout, texts = assembly.builder.layout, assembly.builder.texts
        mixed = rows_of_length(log, layout, texts, TOKENS, ROWS)
        scored = candidates_of(log, layout, texts)
        again = returning_of(log, layout, texts)
    finally:
        assembly.model.release()
    job = {
        "base": str(folder / f"base-{depth}"),
        "training_base": str(folder / f"base-{DEPTH}"),
        "rank": RANK,
        "alpha": recipe.adapter.alpha,
        "words": words,
        "depth": depth,
        "training_depth": DEPTH,
        "adapters": adapters,
        "registry": str(folder / "registry"),
        "mixed": mixed,
        "candidates": scored,
        "returning": again,
        "training": {"tokens_per_step": STEP_TOKENS, "learning_rate": 1e-3, **prompts_of(log)},
    }
    (folder / "job.json").write_text(json.dumps(job))
    return job


@torch.no_grad()
def _publish(
    folder: Path, name: str, targets: str, log: genre.Interactions, base: genre.Base, registry: Registry
) -> list[dict[str, str]]:
    """Publish adapters with random weights and export them as PEFT folders."""
    overrides = [
        f"base.depth={base.depth}",
        f"name={name}",
        f"adapter.targets={targets}",
        f"adapter.rank={RANK}",
        "data.max_events=100",
    ]
    assembly = assemble(genre.Recipe.read(RECIPE, overrides), log, base)
    draw, found = torch.Generator().manual_seed(0), []
    try:
        for number in range(ROWS):
            for label, value in assembly.model.lora_parameters():
                scale = 0.02 if label.endswith("lora_B") else value.shape[1] ** -0.5
                value.copy_(scale * torch.randn(value.shape, generator=draw))
            place = folder / "aside" / f"{name}{number:02}"
            write_adapter(place, assembly)
            manifest = adapter_manifest(assembly, encoder=None, cost=Cost(), metrics={})
            version = registry.publish(place, manifest.model_copy(update={"name": f"{name}{number:02}"}))
            registry.export(version, folder / name / f"a{number:02}", base=base.folder)
            shutil.rmtree(folder / name / f"a{number:02}" / "base")
            found.append({"ref": version.ref, "folder": str(folder / name / f"a{number:02}")})
    finally:
        assembly.model.release()
    return found


def rows_of_length(log: genre.Interactions, layout: Any, texts: Any, length: int, count: int) -> list[dict[str, Any]]:
    """Return histories of different users, each with one candidate and exactly `length` tokens."""
    found: list[dict[str, Any]] = []
    for user in log.user_ids:
        events = log.history(user)
        for size in range(8, min(len(events), 16)):
            row = _row(log, layout, texts, events[:size], [events[size]["item_id"]])
            if len(row.tokens) == length:
                history, candidate = events[:size], events[size]["item_id"]
                found.append({"ids": row.tokens.tolist(), "history": history, "candidate": candidate})
                break
        if len(found) == count:
            return found
    raise RuntimeError(f"only {len(found)} users have a row of {length} tokens")


def candidates_of(log: genre.Interactions, layout: Any, texts: Any) -> dict[str, Any]:
    """A history of about 420 tokens, and 100 items after it."""
    user = max(log.user_ids, key=lambda each: len(log.history(each)))
    events = log.history(user)
    some = np.random.default_rng(0).choice(log.catalogue.size, CANDIDATES, replace=False)
    items = [log.catalogue.item_ids[code] for code in some]
    return _asked(log, layout, texts, events[: _events_of(log, layout, texts, events)], items)


def returning_of(log: genre.Interactions, layout: Any, texts: Any) -> list[list[dict[str, Any]]]:
    """For each turn what every user asks: a history of about 420 tokens at first, then one event more in each, and 10 items."""
    draw = np.random.default_rng(0)
    users = sorted(log.user_ids, key=lambda each: (-len(log.history(each)), each))[:USERS]
    turns: list[list[dict[str, Any]]] = [[] for _ in range(TURNS)]
    for user in users:
        events = log.history(user)
        first = _events_of(log, layout, texts, events)
        for turn, asked in enumerate(turns):
            items = [log.catalogue.item_ids[code] for code in draw.choice(log.catalogue.size, SHOWN, replace=False)]
            asked.append({"user": user, **_asked(log, layout, texts, events[: first + turn], items)})
    return turns


def _events_of(log: genre.Interactions, layout: Any, texts: Any, events: list[dict[str, Any]]) -> int:
    """Events of about 420 tokens."""
    size = 1
    while len(_row(log, layout, texts, events[: size + 1], []).tokens) <= HISTORY:
        size += 1
    return size


def _asked(log: genre.Interactions, layout: Any, texts: Any, events: list[dict[str, Any]], items: list[str]) -> dict[str, Any]:
    row = _row(log, layout, texts, events, items)
    ends = [*(row.candidate_reads + 1).tolist()]
    parts = [row.tokens[a:b].tolist() for a, b in zip([row.prefix_length, *ends[:-1]], ends, strict=True)]
    history = row.tokens[: row.prefix_length].tolist()
    return {"history_ids": history, "candidate_ids": parts, "history": events, "items": items}


def _row(log: genre.Interactions, layout: Any, texts: Any, history: list[dict[str, Any]], items: list[str]) -> Any:
    codes = log.catalogue.codes([event["item_id"] for event in history])
    given = layout.feedback.encode(np.array([event["rating"] for event in history], dtype=np.float64))
    return layout.build(layout.prefix({}), codes, given, texts=texts, candidates=log.catalogue.codes(items))


def prompts_of(log: genre.Interactions) -> dict[str, Any]:
    """One prompt per target in TALLRec's format, as token ids with the answer's token."""
    from genre.training.assembly import training_split

    labels = (log.column("rating") > 3).astype(np.float64)
    prompts = Prompts(log, labels)
    train = np.flatnonzero(training_split(genre.Recipe.read(RECIPE), log)[1])
    chosen = np.random.default_rng(0).permutation(train)[:PROMPTS]
    answers = prompts.answers.tolist()
    rows = [{"ids": prompts.ids(int(event)), "answer": answers[int(labels[event])]} for event in chosen]
    return {"words": answers, "prompts": rows}
