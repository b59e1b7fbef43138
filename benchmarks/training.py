"""Training: throughput and time to quality against one prompt per target, costs of an adapter, two processes.

    python benchmarks/training.py --json build/bench/training.json [--minutes 20] [--only throughput,quality,cost,processes]

`cost` is benchmarks/training_cost.py, `processes` benchmarks/training_processes.py; the first two are here. The JSON holds every
ratio and count with its aim, under `bars`.

The other way is the common one of LLM recommenders (TALLRec's prompt, PEFT): each target is a prompt of its own with the
user's ten latest titles, liked and disliked, and the answer Yes or No. Same base, depth, device, rank and linears, the
same tokens per step; its batches are sorted by length and only the answer's logits are computed. Throughput alternates
between the ways, step by step, after a warm-up. Time to quality trains the other way for `--minutes`, then trains ours
until its validation AUC on the same targets is as high; `ours_without_history_heads` shows how much of that is due to heads
that start at the additive baseline (`encoder.fuse`).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import genre
from bench_report import rows
from genre.data.sequences.batches import plan_batches
from genre.data.splits import split
from genre.evaluation.metrics import auc
from genre.evaluation.targets import targets as targets_of
from genre.jobs.loading import open_log
from genre.modules.base.quiet import quiet
from genre.progress import Reporter
from genre.training import Loop
from genre.training.assembly import assemble, training_split
from genre.training.parts import SharedEncoder
from genre.training.prediction import predict
from suite import keep_figures
from training_cost import cost
from training_processes import processes

RECIPES = Path(__file__).parent / "recipes"
TOKENS, DEPTH, RANK, HISTORY = 2048, 4, 8, 10


@dataclass
class Prompts:
    """One prompt per target in TALLRec's format, on PEFT."""

    log: genre.Interactions
    labels: np.ndarray
    base: genre.Base = field(default_factory=lambda: genre.Base.load("smollm2-135m", depth=DEPTH))

    def __post_init__(self) -> None:
        """Wrap the base in PEFT."""
        torch.manual_seed(0)
        with quiet():
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
            self.model = get_peft_model(self.base.model, config)
        self.titles = self.log.catalogue.titles()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-3)
        tokenizer = self.base.tokenizer
        self.answers = torch.tensor([tokenizer(word)["input_ids"][0] for word in ("No", "Yes")])

    def ids(self, event: int) -> list[int]:
        """The prompt of one event."""
        start = max(int(self.log.user_offsets[self.log.user_codes[event]]), event - HISTORY)
        liked = [f'"{self.titles[self.log.item_codes[e]]}"' for e in range(start, event) if self.labels[e] > 0]
        other = [f'"{self.titles[self.log.item_codes[e]]}"' for e in range(start, event) if self.labels[e] == 0]
        text = (
            "### Instruction:\nGiven the user's preference and unpreference, identify whether the user will like the target "
            'movie by answering "Yes." or "No.".\n\n### Input:\n'
            f"User Preference: {', '.join(liked)}\nUser Unpreference: {', '.join(other)}\n"
            f'Whether the user will like the target movie "{self.titles[self.log.item_codes[event]]}"?\n\n### Response:\n'
        )
        return self.base.tokenizer(text)["input_ids"]

    def batches(self, events: np.ndarray) -> Iterator[list[int]]:
        """Batches of events within the token budget, sorted by length in pools."""
        for start in range(0, len(events), 512):
            pool = events[start : start + 512]
            lengths = np.array([len(self.ids(int(event))) for event in pool])
            for chosen in plan_batches(lengths, TOKENS):
                yield [int(pool[i]) for i in chosen]

    def logits(self, events: list[int]) -> torch.Tensor:
        """(n,) logit of Yes against No."""
        rows = [self.ids(event) for event in events]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        hidden = self.base.body(input_ids=ids, use_cache=False).last_hidden_state
        ends = torch.tensor([len(row) - 1 for row in rows])
        words = self.base.word_logits(hidden[torch.arange(len(rows)), ends], self.answers)
        return words[:, 1] - words[:, 0]

    def step(self, events: list[int]) -> int:
        """One optimizer step; the number of targets."""
        self.model.train()
        labels = torch.from_numpy(self.labels[events]).float()
        F.binary_cross_entropy_with_logits(self.logits(events), labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return len(events)

    @torch.no_grad()
    def scores(self, events: np.ndarray) -> np.ndarray:
        """Scores of some events."""
        self.model.eval()
        found = {event: score for batch in self.batches(events) for event, score in zip(batch, self.logits(batch), strict=True)}
        return np.array([float(found[int(event)]) for event in events])


class Ours:
    """A recipe's training loop, a step at a time."""

    def __init__(
        self, name: str, overrides: list[str], log: genre.Interactions, folder: Path, shared: SharedEncoder | None = None
    ) -> None:
        common = ["train.tracker=none", f"train.batch_tokens={TOKENS}", f"base.depth={DEPTH}", f"adapter.rank={RANK}"]
        self.recipe = genre.Recipe.read(RECIPES / f"{name}.yaml", [*common, *overrides])
        self.assembly = assemble(self.recipe, log, genre.Base.load("smollm2-135m", depth=DEPTH), shared)
        self.loop = Loop(self.assembly, folder, Reporter.silent())
        self.loop.model.train()
        self.epoch = 0
        self.queue = []

    def step(self) -> int:
        """One optimizer step; the number of targets."""
        if not self.queue:
            self.queue = self.loop.plan(self.epoch)
            self.epoch += 1
        self.loop.model.train()
        return self.loop.step(self.queue.pop(), 0.1).targets

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Validation events and their scores."""
        found = predict(self.loop.model, self.assembly.builder, self.assembly.split, 1, max_events=100, batch_tokens=4 * TOKENS)
        targets, scores, _ = found["like"]
        return targets.event, scores


def throughput(log: genre.Interactions, labels: np.ndarray, train: np.ndarray, rounds: int, out: Path) -> dict[str, Any]:
    """Supervised targets per second of the ways, alternating; `token` has a fitted encoder, as most tasks do."""
    prompts = Prompts(log, labels)
    queue = prompts.batches(np.random.default_rng(0).permutation(train))
    fitting = Ours("like", ["encoder.use=fit"], log, out / "token-fit")
    ready = Ours("like", ["encoder.use=fit"], log, out / "ready").assembly.shared
    assert ready is not None
    frozen = SharedEncoder(ready.encoder.eval().requires_grad_(False), ready.vocabulary, "shared")
    ways = {
        "prompts": lambda: prompts.step(next(queue)),
        "text": Ours("like_text", [], log, out / "text").step,
        "token": Ours("like", [], log, out / "token", frozen).step,
        "token_fitting_the_encoder": fitting.step,
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 2):
        for name, step in ways.items():
            begun = time.perf_counter()
            targets = step()
            if turn >= 2:
                rates[name].append(targets / (time.perf_counter() - begun))
    per_second = {name: median(values) for name, values in rates.items()}
    return {
        "targets_per_second": per_second,
        "rounds": rounds,
        "ratios": {
            "text_vs_prompts": median(a / b for a, b in zip(rates["text"], rates["prompts"], strict=True)),
            "token_vs_prompts": median(a / b for a, b in zip(rates["token"], rates["prompts"], strict=True)),
            "token_fitting_vs_prompts": median(
                a / b for a, b in zip(rates["token_fitting_the_encoder"], rates["prompts"], strict=True)
            ),
        },
    }


def quality(log: genre.Interactions, labels: np.ndarray, train: np.ndarray, minutes: float, out: Path) -> dict[str, Any]:
    """Seconds until ours reaches the validation AUC that prompts reach in `minutes`; validation time is not counted."""
    sample = validation_sample(log, labels)
    prompts = Prompts(log, labels)
    queue, spent, seen = prompts.batches(np.random.default_rng(0).permutation(train)), 0.0, 0
    while spent < 60 * minutes and (batch := next(queue, None)):
        begun = time.perf_counter()
        seen += prompts.step(batch)
        spent += time.perf_counter() - begun
    reached = auc(labels[sample], prompts.scores(sample))
    found = {"prompts": {"seconds": spent, "targets": seen, "auc": reached, "n": len(sample)}, **reach(log, labels, reached, out)}
    return found | {"ratios": {"time_to_quality": spent / found["ours"]["seconds"]}}


def validation_sample(log: genre.Interactions, labels: np.ndarray, size: int = 1000) -> np.ndarray:
    """Draw the validation events on which both ways are compared."""
    valid = targets_of(log, split(log, genre.Recipe.read(RECIPES / "like.yaml").data.split), 1, labels)
    return np.sort(np.random.default_rng(1).choice(valid.event, size=min(size, len(valid.event)), replace=False))


def reach(log: genre.Interactions, labels: np.ndarray, wanted: float, out: Path, *, most: int = 200) -> dict[str, Any]:
    """Training seconds of ours until the validation AUC is `wanted`: as it is, and with heads that do not read the history."""
    sample, found = validation_sample(log, labels), {}
    for name, overrides in {"ours": [], "ours_without_history_heads": ["encoder.fuse=false"]}.items():
        ours = Ours("like", ["encoder.use=fit", *overrides], log, out / name)
        seconds, steps, best = 0.0, 0, 0.0
        while best < wanted and steps < most:
            begun = time.perf_counter()
            for _ in range(2):
                ours.step()
            seconds, steps = seconds + time.perf_counter() - begun, steps + 2
            events, scores = ours.scores()
            best = auc(labels[sample], scores[np.searchsorted(events, sample)])
        found[name] = {"seconds": seconds if best >= wanted else None, "steps": steps, "auc": best, "wanted": wanted}
        ours.assembly.model.release()
    return found


PARTS = ("throughput", "quality", "cost", "processes")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/training.json"))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cost-depth", type=int, default=8, help="layers of the base in the part `cost`")
    parser.add_argument("--events", type=int, default=20_000, help="that the part `processes` trains on")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), metavar="PART,PART")
    parser.add_argument("--reach", type=float, metavar="AUC", help="only measure the seconds of ours to a validation AUC")
    options = parser.parse_args()
    if stray := set(options.only) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(stray))}; there are {', '.join(PARTS)}")
    log = open_log("data/ml-100k")
    labels = (log.column("rating") > 3).astype(np.float64)
    recipe = genre.Recipe.read(RECIPES / "like.yaml")
    train = np.flatnonzero(training_split(recipe, log)[1])
    out = options.json.parent / "training-runs"
    measured: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput(log, labels, train, options.rounds, out),
        "quality": lambda: quality(log, labels, train, options.minutes, out),
        "cost": lambda: cost(options.cost_depth, options.rounds),
        "processes": lambda: processes(DEPTH, options.events, out / "processes"),
    }
    result: dict[str, Any] = {"depth": DEPTH, "rank": RANK, "tokens_per_step": TOKENS}
    result |= {"ratios": {}, "counts": {}}
    if options.reach is not None:
        result["reach"] = reach(log, labels, options.reach, out)
    for name in () if options.reach is not None else options.only:
        result[name] = measured[name]()
        for kind in ("ratios", "counts"):
            result[kind] |= result[name].pop(kind, {})
        write(options.json, result)  # after each part, so that none is lost with a later one
    write(options.json, result)
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=2))


def write(file: Path, result: dict[str, Any]) -> None:
    """Write the figures beside their aims."""
    table = rows({"training": {"figures": result}})
    result["bars"] = [{key: row[key] for key in ("figure", "value", "better", "aim", "met")} for row in table]
    keep_figures(file, result)


if __name__ == "__main__":
    main()
