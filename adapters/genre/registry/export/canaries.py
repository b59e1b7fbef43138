"""Canaries of an export: two prompts with the base's answer and the adapter's, which a server has to give.

Owns: which prompts, and the file `canaries.json`. Ignores: servers (`client` asks them). One canary:

    {"task": "like", "history": [{"item_id": "50", "rating": 5}], "candidate": "181", "token_ids": [1, 523, …],
     "words": ["No", "Yes"], "word_ids": [1770, 3293], "base": [0.61, 0.39], "adapter": [0.08, 0.92]}

Their answers are those of stock transformers and PEFT in float32, on the base at full precision.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genre.files import write_json
from genre.registry.export.client import CANARIES, Prompts, distance, telling
from genre.registry.manifest import Manifest
from genre.registry.weights.base import layer_of, read_weights

TOLERANCE = 0.01
"""Of a server in float32: the largest difference in the probability of a label word."""
LOW_PRECISION = 0.03
"""Of a server in bfloat16."""
_COUNT = 2
_TRIED = 12


def write_canaries(
    folder: Path,
    manifest: Manifest,
    source: Path,
    base: Path,
    prompts: Prompts,
    *,
    tolerance: float = TOLERANCE,
    wanted: bool = True,
) -> None:
    """Write `canaries.json` into an export; without canaries, and with the reason, where there can be none.

    Args:
        folder: The export.
        manifest: Of the version.
        source: The version's files.
        base: Its base's folder.
        prompts: Lays requests out.
        tolerance: How far a server's answer may be from the adapter's.
        wanted: False leaves them out.
    """
    found: dict[str, Any] = {
        "server": prompts.prompt["server"],
        "model": manifest.name,
        "version": manifest.version,
        "digest": manifest.digest,
        "tolerance": tolerance,
        "canaries": [],
    }
    if not wanted:
        found["reason"] = "the export was asked for no canaries"
    elif (needed := _float32_bytes(base, manifest.base.depth)) > (free := _free_bytes()):
        found["reason"] = f"the canaries need {needed / 2**30:.1f} GiB of memory; {free / 2**30:.1f} GiB were free at the export"
    else:
        found["canaries"] = _choose(manifest, source, base, prompts, tolerance)
    write_json(folder / CANARIES, found)


def _choose(manifest: Manifest, source: Path, base: Path, prompts: Prompts, tolerance: float) -> list[dict[str, Any]]:
    """The two prompts of some that base and adapter answer most differently; the first two that are clear end the search."""
    from genre.modules.lora.stock import label_probabilities

    tried = list(_candidates(prompts))
    answers = label_probabilities(
        base, source, manifest.base.depth, ((canary["token_ids"], canary["word_ids"]) for canary in tried)
    )
    answered: list[dict[str, Any]] = []
    for canary, (alone, adapted) in zip(tried, answers, strict=True):
        answered.append({**canary, "base": alone, "adapter": adapted})
        if len(telling({"canaries": answered}, 5 * tolerance)) == _COUNT:
            break
    return sorted(answered, key=lambda each: distance(each["base"], each["adapter"]), reverse=True)[:_COUNT]


def _candidates(prompts: Prompts) -> Iterator[dict[str, Any]]:
    """Short prompts over the catalogue and the tasks: one to three events, of the feedback's least and greatest value."""
    layout, tasks, items = prompts.prompt["layout"], prompts.prompt["tasks"], list(prompts.texts)
    if not items or not tasks:
        return
    column, values = layout["feedback"], layout.get("values") or [None]
    for number in range(_TRIED):
        task = tasks[number % len(tasks)]
        chosen = [items[(7 * number + 3 * step) % len(items)] for step in range(2 + number % 3)]
        history: list[dict[str, Any]] = [{"item_id": item} for item in chosen[1:]]
        for step, event in enumerate(history):
            if column is not None:
                event[column] = values[-1 if (number + step) % 2 == 0 else 0]
        ids = prompts.history(history, {}) + prompts.item(chosen[0])
        about = {"task": task["name"], "history": history, "candidate": chosen[0], "token_ids": ids}
        yield about | {"words": task["words"], "word_ids": task["word_ids"]}


def _float32_bytes(base: Path, depth: int | None) -> int:
    weights = read_weights(base).items()
    return sum(4 * math.prod(tensor.shape) for name, (_, tensor) in weights if depth is None or (layer_of(name) or 0) < depth)


def _free_bytes() -> float:
    """Memory that is free on this machine; infinite where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return math.inf
