"""Eight clients that keep their users beside one that has them all: `like` on ML-100K, users split by age.

    python benchmarks/federated.py --json build/bench/federated.json [--rounds 6] [--ways central,products,secure,…]

`central` trains the recipe on all users; `products` averages products of both
factors, `frozen_a` trains B alone, `secure` does so under SecAgg+ (extra `federated`), `factors` averages each factor for itself,
the fault that this library does not make. Every way is evaluated once on the same test events, the last tenth of each user's.
The base is a tiny random one unless one is named: what the adapter, heads and encoder learn is what is compared. Nothing is
validated: every way ends with its last epoch or round. Ways in the JSON file are kept, so they can be measured one by one.
Intervals: users drawn again. The share is that of the central AUC.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl

import genre
from genre.jobs.evaluate import evaluate
from genre.jobs.federated import averaging
from genre.jobs.federated.options import FederatedOptions
from genre.jobs.federated.packets import State
from genre.jobs.federated.simulation import simulate
from genre.jobs.loading import open_base, open_log
from genre.jobs.train import train
from genre.progress import Reporter
from suite import keep_figures
from tiny_world import tiny_base

RECIPE = Path(__file__).parents[1] / "recipes" / "like.yaml"
WAYS = ("central", "products", "factors", "frozen_a", "secure")


def by_age(log: genre.Interactions, clients: int) -> dict[str, genre.Interactions]:
    """The log in parts of about equally many users, youngest first; every part has the whole catalogue."""
    assert log.users is not None
    users = log.users.sort("age", "user_id")
    found = {}
    for index in range(clients):
        some = users[index * len(users) // clients : (index + 1) * len(users) // clients]
        ages = some["age"].to_list()
        name = f"age-{ages[0]}-{ages[-1]}-{index}"
        events = log.frame.filter(pl.col("user_id").is_in(some["user_id"].to_list()))
        people = log.users.filter(pl.col("user_id").is_in(some["user_id"].to_list()))
        found[name] = genre.Interactions.from_frame(events, log.catalogue.frame, people, info=log.info)
    return found


def factor_means(state: State, replies: list[State], weights: list[float], *, seed: int) -> State:
    """The plain mean of every tensor, factors too."""
    shares = [weight / sum(weights) for weight in weights]
    return {name: sum(share * each[name] for share, each in zip(shares, replies, strict=True)) for name in state}


def measure(way: str, recipe: genre.Recipe, log: genre.Interactions, base: Any, args: argparse.Namespace, folder: Path) -> Any:
    """Train in one way, and evaluate on the test part of all users."""
    reporter, registry = Reporter.for_terminal(), genre.Registry(folder / "registry")
    if way == "central":
        run: Any = train(
            recipe, log=log, base=base, registry=registry, folder=folder / "run", baselines="none", reporter=reporter
        )
    else:
        freeze = way in ("frozen_a", "secure")
        given = FederatedOptions(args.rounds, args.epochs, freeze_a=freeze, secure=way == "secure", clients=args.clients)
        mean = factor_means if way == "factors" else averaging.average
        with patch("genre.jobs.federated.server.average", mean):
            parts = by_age(log, args.clients)
            run = simulate(recipe, parts, given, registry=registry, base=base, folder=folder / "run", reporter=reporter)
    version = registry.publish(run)
    found = evaluate(registry, version.ref, log, base, baselines="none", reporter=reporter)
    return found["tasks"]["like"]["adapter"]


def main() -> None:
    """Measure the ways that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("build/bench/federated.json"))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2, help="Of local training in a round.")
    parser.add_argument("--depth", type=int, help="The base's first layers; the tiny one has two.")
    parser.add_argument("--base", default="tiny", help="A random Llama of two layers, 64 wide, or the name of a base.")
    parser.add_argument("--ways", default="central,products,frozen_a")
    parser.add_argument("--set", action="append", default=[], help="Override a key of the recipe.")
    parser.add_argument("--client-set", action="append", default=[], help="The same for the clients' recipe alone.")
    args = parser.parse_args()
    ways = args.ways.split(",")
    if stray := set(ways) - set(WAYS):
        parser.error(f"--ways: no such way: {', '.join(sorted(stray))}")
    own = ["data.split={kind: user_ratio, valid: 0.0, test: 0.1}", "encoder={use: fit, learned: 64, collaborative: 0}"]
    base_name = str(tiny_base(args.json.parent / "federated" / "tiny")) if args.base == "tiny" else args.base
    own += [f"base={{name: {base_name}}}", "train.tracker=none"]
    own += [f"base.depth={args.depth}"] if args.depth else []
    recipe = genre.Recipe.read(RECIPE, [*own, *args.set])
    theirs = genre.Recipe.read(RECIPE, [*own, *args.set, *args.client_set])
    log, base = open_log("ml-100k"), open_base(recipe.base)
    result: dict[str, Any] = {"clients": args.clients, "rounds": args.rounds, "base": args.base, "depth": args.depth}
    result |= {"epochs": args.epochs, "set": args.set, "client_set": args.client_set, "ways": {}}
    if args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        result |= {"ways": before["ways"], "commands": before["commands"]}
    for way in ways:
        folder = args.json.parent / "federated" / way
        shutil.rmtree(folder, ignore_errors=True)
        result["ways"][way] = measure(way, recipe if way == "central" else theirs, log, base, args, folder)
        auc = result["ways"][way]["auc"]
        central = result["ways"].get("central", {}).get("auc", {}).get("value")
        share = f", {auc['value'] / central:.2%} of central" if central else ""
        print(f"{way}: AUC {auc['value']:.4f} ({auc['interval'][0]:.4f} to {auc['interval'][1]:.4f}){share}", flush=True)
        keep_figures(args.json, result)


if __name__ == "__main__":
    main()
