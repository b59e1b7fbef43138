"""Generating items by their codes beside scoring them all: the same recipe with either head, last event out.

    python benchmarks/generate.py --data DATA --json build/bench/generate.json [--seeds 0] [--users 1000] [--set base.depth=2]

DATA is a data set folder (`genre data import`). Both adapters have the recipe of `genre recipe new next_item` without item
neighbours and co-occurrence term, which only a head over the whole catalogue can have; `dense` has that head, `generate` codes of
items and a beam search. The whole catalogue is ranked, seen items masked; equal scores, and targets that no beam reached, get
mid-ranks among items.

    python benchmarks/generate.py --data DATA --mixed 16

measures requests instead: of one adapter that generates against so many in one call (random weights), and against the dense head.

    python benchmarks/generate.py --scale 10000,100000,1000000

measures what either head's scoring takes beside the base's passes: memory, and time for one user.

Test and validation part are those of `--users` users, drawn by the seed; training has all of them. Intervals: users drawn again,
the same draws for all methods. Ranks are cached beside the JSON file; `--fresh` starts over.
"""

import argparse
import dataclasses
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import genre
from genre.cli.recipe.new import Wanted, for_events
from genre.data.code_trie import CodeTrie
from genre.data.sequences.batches import collate
from genre.data.sequences.code_branches import up_to
from genre.data.splits import TEST, TRAIN, Split, split
from genre.engine import Engine
from genre.engine.planning import best
from genre.jobs.loading import open_log
from genre.modules.beams import BeamSearch
from genre.modules.codes.fitting import places
from genre.progress import Reporter
from genre.training import fit
from genre.training.assembly import Assembly, assemble
from genre.training.generating import run_searches
from genre.training.prediction import predict
from inference_engine import Shelf, alternate
from seeds import drawn, interval
from suite import keep_figures

METRIC = "ndcg@10"
BEAMS = (10, 20, 50, 100)
HEADS: dict[str, dict[str, Any]] = {
    "generate": {"head": "generate", "encoder": {"codes": {}}},
    "dense": {"head": "catalogue", "encoder": {}},
}


class Heads:
    """Both heads' adapters on one log, trained once for each seed."""

    def __init__(self, folder: Path, data: str, users: int, overrides: list[str]) -> None:
        self.folder = folder
        self.overrides = overrides
        self.log = open_log(data)
        whole = split(self.log, self.recipe("dense", 0).data.split)
        self.users = np.sort(np.random.default_rng(0).permutation(len(self.log.user_offsets) - 1)[:users])
        self.split = self._of_users(whole)
        folder.mkdir(parents=True, exist_ok=True)

    def _of_users(self, whole: Split) -> Split:
        """The split with the test and validation events of the drawn users alone; those of others belong to no part."""
        part = np.array(whole.part)
        part[(part != TRAIN) & ~np.isin(self.log.user_codes, self.users)] = -1
        return dataclasses.replace(whole, part=part)

    def recipe(self, method: str, seed: int) -> genre.Recipe:
        """The recipe of a head."""
        sections = for_events(Wanted("data", task="next_item"), self.log).sections
        sections["data"].pop("hold_out", None)
        own = HEADS[method]
        encoder = sections["encoder"] | {"use": "fit", "neighbours": 0, "taste": 0} | own["encoder"]
        task = sections["tasks"][0] | {"head": own["head"], "metrics": [METRIC]}
        sections |= {"train": sections["train"] | {"seed": seed, "tracker": "none"}, "encoder": encoder, "tasks": [task]}
        path = self.folder.with_suffix(f".{method}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(genre.Recipe.parse(sections).dump(), encoding="utf-8")
        overrides = [each for each in self.overrides if own["encoder"] or not each.startswith("encoder.codes")]
        return genre.Recipe.read(path, overrides)

    def trained(self, method: str, seed: int) -> tuple[Assembly, float]:
        """A trained run and the seconds that its training took; from its checkpoint where it is complete."""
        recipe = self.recipe(method, seed)
        made = assemble(recipe, self.log, genre.Base.load(recipe.base.name, depth=recipe.base.depth))
        made.split = self.split
        run, took = self.folder / f"run-{method}-{seed}", self.folder / f"run-{method}-{seed}.seconds"
        begun = time.perf_counter()
        fit(made, run, resume=(run / "checkpoints" / "last.pt").exists(), reporter=Reporter.for_terminal())
        if not took.exists():
            took.write_text(str(time.perf_counter() - begun))
        return made, float(took.read_text())

    def ranks(self, method: str, seed: int) -> dict[str, np.ndarray]:
        """The users of the targets and their ranks, (n,) each, and the seconds of training and of ranking them."""
        file = self.folder / f"{method}-{seed}.npz"
        if not file.exists():
            made, took = self.trained(method, seed)
            begun = time.perf_counter()
            found = predict(made.model, made.builder, self.split, TEST, max_events=made.recipe.data.max_events)["next_item"]
            seconds = time.perf_counter() - begun
            made.model.release()
            np.savez(file, user=found[0].user, ranks=found[1], train_s=took, rank_s=seconds)
        return dict(np.load(file))

    def recall(self, seed: int, count: int) -> dict[str, Any]:
        """The share of the exact top 10 that beams find, of so many users."""
        made, _ = self.trained("generate", seed)
        with torch.no_grad():
            return self._recall(made, count)

    def _recall(self, made: Assembly, count: int) -> dict[str, Any]:
        model = made.model.eval()
        assert model.soft is not None
        rows = made.builder.evaluation_rows(self.split, TEST, max_events=made.recipe.data.max_events)[:count]
        rows = [up_to(row, int(row.next_reads[-1])) for row in rows]
        states = torch.cat([model.hidden(collate([row], {}))[:, -1] for row in rows])
        tops: dict[int | None, list[np.ndarray]] = {}
        seconds: dict[str, float] = {}
        for beam in (*BEAMS, None):
            begun = time.perf_counter()
            searches = [BeamSearch(self._unseen(model.soft.trie, row), beam) for row in rows]
            run_searches(model, "next_item", rows, searches, states, 16384)
            tops[beam] = [search.found()[0][:10] for search in searches]
            seconds["exact" if beam is None else str(beam)] = (time.perf_counter() - begun) / len(rows)
        made.model.release()
        exact = tops[None]
        shares = {
            beam: float(np.mean([np.isin(best, own).mean() for best, own in zip(exact, tops[beam], strict=True)]))
            for beam in BEAMS
        }
        return {"users": len(rows), "found": {str(beam): share for beam, share in shares.items()}, "seconds_a_user": seconds}

    def _unseen(self, trie: Any, row: Any) -> Any:
        return trie.allow(np.setdiff1d(np.arange(self.log.catalogue.size), row.item_codes[:-1]))


def compared(heads: Heads, seeds: list[int]) -> dict[str, Any]:
    """Every head's figure, and generating over the dense head, paired."""
    found = {name: [heads.ranks(name, seed) for seed in seeds] for name in HEADS}
    draws = {name: drawn(METRIC, runs[0]["user"], None, [run["ranks"] for run in runs]) for name, runs in found.items()}
    users = len(found["dense"][0]["user"])
    return {
        "n": users,
        "seeds": seeds,
        "methods": {name: interval(values) for name, values in draws.items()},
        "generate_over_dense": interval(draws["generate"] / draws["dense"]),
        "train_seconds": {name: float(runs[0]["train_s"]) for name, runs in found.items()},
        "rank_ms_a_user": {name: 1000 * float(runs[0]["rank_s"]) / users for name, runs in found.items()},
    }


def mixed(heads: Heads, count: int, rounds: int) -> dict[str, Any]:
    """Requests a second of one adapter that generates, of so many in one call, and of one with the dense head."""
    base = genre.Base.load(heads.recipe("dense", 0).base.name, depth=heads.recipe("dense", 0).base.depth)
    users = [heads.log.user_ids[int(user)] for user in heads.users[: 2 * count]]
    asked = [genre.Request("one", user_id=user, k=10) for user in users]
    found: dict[str, Any] = {"requests": len(asked), "adapters": count}
    with tempfile.TemporaryDirectory() as scratch:
        shelves = {name: Shelf(Path(scratch) / name, heads.log, base, recipe=heads.recipe(name, 0)) for name in HEADS}
        refs = [shelves["generate"].add(f"generate{number}")[0] for number in range(count)]
        dense = shelves["dense"].add("dense")[0]
        with Engine(base, shelves["generate"].registry, lanes=count, data=heads.log) as engine:
            one, many = [refs[0]] * len(asked), [refs[number % count] for number in range(len(asked))]
            ways = {"one": lambda: answered(engine.score(asked, one)), "mixed": lambda: answered(engine.score(asked, many))}
            seconds, ratio = alternate(ways, rounds)
            found |= {
                "requests_a_second": {name: len(asked) / took for name, took in seconds.items()},
                "mixed_over_one": 1 / ratio,
            }
        with Engine(base, shelves["dense"].registry, data=heads.log) as engine:
            begun = [time.perf_counter()]
            for _ in range(rounds + 1):
                answered(engine.score(asked, [dense] * len(asked)))
                begun.append(time.perf_counter())
            found["requests_a_second"]["dense"] = len(asked) / float(np.median(np.diff(begun)[1:]))
    return found


def answered(responses: list[Any]) -> None:
    """Refuse responses that are no answers: an error takes no time."""
    if errors := [response.error for response in responses if response.error]:
        raise RuntimeError(errors[0])


def scaled(sizes: list[int], beam: int = 50, width: int = 576, users: int = 20) -> dict[str, Any]:
    """What scoring costs beside the base's passes: bytes, and ms a user on one core, of a trie and of a table of vectors."""
    draw, found = np.random.default_rng(0), {}
    for items in sizes:
        codes = np.concatenate([draw.integers(0, 256, (items, 3)), np.zeros((items, 1), dtype=np.int64)], 1)
        codes[:, 3] = places(codes[:, :3])[0]
        levels = (256, 256, 256, int(codes[:, 3].max()) + 1)
        begun = time.perf_counter()
        trie = CodeTrie(codes, levels)
        built = time.perf_counter() - begun
        begun = time.perf_counter()
        for user in range(users):
            search = BeamSearch(trie.allow(np.delete(np.arange(items), draw.integers(0, items, 20))), beam)
            while (prefixes := search.prefixes()) is not None:
                search.advance(draw.normal(size=(len(prefixes), levels[prefixes.shape[1]])).astype(np.float32))
            assert len(search.found()[0]) >= 10, user
        searched = (time.perf_counter() - begun) / users
        table, query = torch.empty(items, width).normal_(), torch.randn(users, width)
        begun = time.perf_counter()
        for own in query:
            best((table @ own).numpy(), 10)
        dense = (time.perf_counter() - begun) / users
        found[f"{items:,}"] = {
            "trie_bytes": trie.memory_bytes,
            "table_bytes": table.nbytes,
            "build_s": built,
            "search_ms": 1000 * searched,
            "product_ms": 1000 * dense,
        }
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--json", type=Path, default=Path("build/bench/generate.json"))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--users", type=int, default=1000, help="users who are validated and tested")
    parser.add_argument("--exact", type=int, default=100, help="users whose beams are held against exact scores; 0 for none")
    parser.add_argument("--mixed", type=int, default=0, help="adapters of one call")
    parser.add_argument("--scale", default="", help="numbers of items, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--fresh", action="store_true")
    chosen = parser.parse_args()
    if chosen.scale:
        found = scaled([int(items) for items in chosen.scale.split(",")])
        for items, figures in found.items():
            print(items, {name: round(value, 3) for name, value in figures.items()})
        keep_figures(chosen.json, {"scale": found})
        return
    folder = chosen.json.with_suffix("") / Path(chosen.data).name
    if chosen.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    heads = Heads(folder, chosen.data, chosen.users, chosen.overrides)
    if chosen.mixed:
        found = {"mixed": mixed(heads, chosen.mixed, chosen.rounds)}
        print(found)
        keep_figures(chosen.json, {Path(chosen.data).name: found})
        return
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    found = {"recall": heads.recall(seeds[0], chosen.exact)} if chosen.exact else {}
    print(found)
    found |= compared(heads, seeds)
    for name, value in found["methods"].items():
        low, high = value["interval"]
        print(f"  {name:16} {value['value']:.4f} [{low:.4f}, {high:.4f}]  {found['rank_ms_a_user'][name]:,.1f} ms a user")
    low, high = found["generate_over_dense"]["interval"]
    print(f"  generate / dense: {found['generate_over_dense']['value']:.3f} [{low:.3f}, {high:.3f}], n = {found['n']:,}")
    keep_figures(chosen.json, {Path(chosen.data).name: found})


if __name__ == "__main__":
    main()
