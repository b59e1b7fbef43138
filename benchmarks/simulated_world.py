"""A closed loop in a simulated world: what is served becomes a served log, and the next version learns from it.

    python benchmarks/simulated_world.py --json build/bench/simulated_world.json [--rounds 10] [--loss log_loss,dr]

Users and items have hidden vectors; a user clicks an item with probability σ(3 u·v / √3 - 1.5), and that is known here. A first
version learns from the five items that chance showed to every user. Then, round by round, every user gets a list of five, drawn
from the version's scores by a softmax; lists and clicks go through a served log (as `genre serve --served-log` writes it) into
the log, as `genre refresh --served` joins them, and the next version learns from all of it. The first version, frozen, shows
lists by the same policy beside it, from the same histories. Items may be shown again.

A round's value is the mean true chance of a click of what it shows. `difference` is the last round's, loop minus frozen, mean
over the seeds, with a 95 % bootstrap over users; `coverage` and `gini` are of the items that the last round shows.
"""

import argparse
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import genre
from genre.data.importers.served import gather_lists
from genre.data.shown import join_lists
from genre.evaluation.exploring import Exploration
from genre.evaluation.metrics.bootstrap import user_draws
from genre.progress import Reporter
from genre.serving.served import Impression, Reward, ServedLog
from suite import keep_figures
from tiny_world import tiny_base

USERS, ITEMS, SIZE, LIST, SHOWN_FIRST, RESAMPLES = 200, 60, 3, 5, 5, 1000
POLICIES = {"log_loss": "softmax=0.05"}
"""By loss: probabilities lie closer together than logits."""
OTHERS = "softmax=0.5"
COLUMNS = ("user_id", "item_id", "timestamp", "click", "propensity", "impression_id")


class World:
    """Users, items and the true chance of a click of each pair."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        users, items = (self.draw.normal(size=(count, SIZE)) for count in (USERS, ITEMS))
        self.users = [f"u{n}" for n in range(USERS)]
        self.items = [f"i{n}" for n in range(ITEMS)]
        self.chance = 1 / (1 + np.exp(1.5 - 3 * users @ items.T / np.sqrt(SIZE)))
        kinds = (items > 0) @ (1 << np.arange(SIZE))
        self.catalogue = pl.DataFrame(
            {"item_id": self.items, "title": [f"Kind {kind} number {n}" for n, kind in enumerate(kinds)]}
        )

    def click(self, user: int, item: int) -> int:
        """Draw whether a user clicks."""
        return int(self.draw.random() < self.chance[user, item])

    def first_log(self) -> genre.Interactions:
        """What chance showed to everybody."""
        rows = []
        for user, name in enumerate(self.users):
            for step, item in enumerate(self.draw.choice(ITEMS, SHOWN_FIRST, replace=False).tolist()):
                rows.append((name, self.items[item], 1000 + step, self.click(user, item), 1 / ITEMS, f"first-{user}-{step}"))
        frame = pl.DataFrame(rows, schema=list(COLUMNS), orient="row")
        return genre.Interactions.from_frame(frame, items=self.catalogue, name="simulated")


def recipe_of(base: Path, loss: str, seed: int) -> genre.Recipe:
    """A task on clicks: their probability (`log_loss`), or a ranking of all items by what was clicked or by propensities."""
    task: dict[str, Any] = {"name": "click", "kind": "feedback", "label": "click", "metrics": ["log_loss"]}
    if loss != "log_loss":
        task = {"name": "click", "kind": "next_item", "label": "click > 0", "loss": loss, "metrics": ["ndcg@10"]}
    sections = {
        "name": "click",
        "data": {"path": "simulated", "split": {"kind": "last_n", "n": 1}, "max_events": 60},
        "base": {"name": str(base)},
        "sequence": {"feedback": "click", "instruction": "Items of one user:"},
        "encoder": {"use": "fit", "learned": 16, "collaborative": 16, "taste": 0},
        "tasks": [task],
        "adapter": {"rank": 4},
        "train": {"epochs": 15, "batch_tokens": 2048, "learning_rate": 1e-2, "dropout": 0.0, "tracker": "none", "seed": seed},
    }
    return genre.Recipe.parse(sections)


def learn(log: genre.Interactions, recipe: genre.Recipe, base: genre.Base, registry: genre.Registry, folder: Path) -> str:
    """Train a version on all that is known, and publish it."""
    run = genre.train(recipe, log=log, base=base, registry=registry, folder=folder, reporter=Reporter.silent())
    return registry.publish(run).ref


def lists_of(
    ref: str, policy: Exploration, world: World, log: genre.Interactions, base: genre.Base, registry: genre.Registry
) -> tuple[np.ndarray, np.ndarray, str]:
    """Draw a list for every user: (U, LIST) items, (U, LIST) propensities, the version's digest."""
    code = {name: n for n, name in enumerate(world.items)}
    with genre.Engine(base, registry, data=log) as engine:
        answers = engine.score([genre.Request(ref, user_id=user, k=ITEMS, exclude_seen=False) for user in world.users])
    items, chances = np.empty((USERS, LIST), dtype=np.int64), np.empty((USERS, LIST))
    for user, answer in enumerate(answers):
        if answer.error is not None:
            raise RuntimeError(answer.error)
        indices, chances[user] = policy.draw(np.array([each.score for each in answer.results]), LIST, world.draw)
        items[user] = [code[answer.results[index].item_id] for index in indices]
    return items, chances, str(answers[0].digest)


def serve(world: World, ref: str, digest: str, policy: str, items: np.ndarray, chances: np.ndarray, path: Path) -> None:
    """Show lists and take clicks, both into the served log."""
    served = ServedLog(path)
    try:
        shown = [
            Impression(uuid.uuid4().hex, ref, digest, user, policy, [world.items[n] for n in row], [0.0] * LIST, own.tolist())
            for user, row, own in zip(world.users, items, chances, strict=True)
        ]
        served.show(shown).result()
        clicks = [
            Reward(each.impression, world.items[n], 1.0)
            for user, (each, row) in enumerate(zip(shown, items.tolist(), strict=True))
            for n in row
            if world.click(user, n)
        ]
        served.reward(clicks).result()
    finally:
        served.close()


def gini(items: np.ndarray) -> float:
    """How unevenly the items are shown: 0 all alike, near 1 one alone."""
    counts = np.sort(np.bincount(items.ravel(), minlength=ITEMS))
    ranks = np.arange(1, ITEMS + 1)
    return float((2 * ranks - ITEMS - 1) @ counts / (ITEMS * counts.sum()))


def loop(loss: str, seed: int, rounds: int, folder: Path) -> dict[str, Any]:
    """One world: the loop beside the frozen first version."""
    world = World(seed)
    base = genre.Base.load(str(tiny_base(folder / "base")))
    registry, recipe = genre.Registry(folder / "registry"), recipe_of(folder / "base", loss, seed)
    policy = Exploration.parse(POLICIES.get(loss, OTHERS), pool=ITEMS)
    log, path = world.first_log(), folder / "served.sqlite"
    ref = frozen = learn(log, recipe, base, registry, folder / "run-0")
    everybody = np.arange(USERS)[:, None]
    values, begun = [], time.perf_counter()
    for number in range(1, rounds + 1):
        items, chances, digest = lists_of(ref, policy, world, log, base, registry)
        still, *_ = lists_of(frozen, policy, world, log, base, registry)
        values.append(
            {"loop": float(world.chance[everybody, items].mean()), "frozen": float(world.chance[everybody, still].mean())}
        )
        print(f"{loss}, seed {seed}, round {number}: {values[-1]['loop']:.3f}, frozen {values[-1]['frozen']:.3f}", flush=True)
        if number < rounds:
            serve(world, ref, digest, str(policy), items, chances, path)
            log = join_lists(log, gather_lists([path]), {"click"})
            ref = learn(log, recipe, base, registry, folder / f"run-{number}")
    return {
        "by_user": (world.chance[everybody, items].mean(1) - world.chance[everybody, still].mean(1)),
        "rounds": values,
        "best": float(np.sort(world.chance, 1)[:, -LIST:].mean()),
        "chance": float(world.chance.mean()),
        "coverage": len(np.unique(items)) / ITEMS,
        "gini": gini(items),
        "frozen_gini": gini(still),
        "seconds": time.perf_counter() - begun,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/simulated_world.json"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--loss", default="log_loss", help="log_loss, cross_entropy, ips, snips or dr; several with commas")
    parser.add_argument("--seeds", default="0,1,2")
    chosen = parser.parse_args()
    if chosen.rounds < 1:
        parser.error(f"--rounds is too small: got {chosen.rounds}; expected 1 or more")
    found = {}
    for loss in chosen.loss.split(","):
        worlds = []
        for seed in map(int, chosen.seeds.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                worlds.append(loop(loss, seed, chosen.rounds, Path(folder)))
        by_user = np.mean([each.pop("by_user") for each in worlds], 0)
        drawn = np.concatenate([draw @ by_user / USERS for draw in user_draws(USERS, RESAMPLES, 0, block=100)])
        interval = [float(value) for value in np.quantile(drawn, [0.025, 0.975])]
        found[loss] = {"n": USERS, "difference": {"value": float(by_user.mean()), "interval": interval}, "worlds": worlds}
        last = {name: np.mean([each["rounds"][-1][name] for each in worlds]) for name in ("loop", "frozen")}
        print(f"\n{loss}: loop {last['loop']:.3f}, frozen {last['frozen']:.3f}, difference {by_user.mean():.3f} {interval}")
        for name in ("chance", "best", "coverage", "gini", "frozen_gini"):
            print(f"  {name} {np.mean([each[name] for each in worlds]):.3f}")
    keep_figures(chosen.json, found)


if __name__ == "__main__":
    main()
