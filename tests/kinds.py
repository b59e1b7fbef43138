"""Logs whose users stay with one kind of item, a short run on one of them, and what a model makes of the others."""

import numpy as np
import polars as pl

from builders import NEXT, recipe
from genre.data.interactions import Interactions
from genre.data.splits import TEST
from genre.modules.base.base import Base
from genre.training.assembly import Assembly, assemble
from genre.training.prediction import outputs

KINDS, ITEMS, USERS, EVENTS = 6, 90, 150, 12
TRAIN = {"epochs": 1, "learning_rate": 1e-4, "batch_tokens": 1024}


WORDS = ("green chair", "fish soup", "old song", "long road", "wool hat", "small lamp")


def log_of_kinds(*, told: bool = True, titled: bool = False) -> Interactions:
    """Users who stay with one kind of item, or (not `told`) take any; titles say which kind an item is of if `titled`."""
    draw = np.random.default_rng(0)
    kind = draw.permutation(np.arange(ITEMS) % KINDS)
    rows = []
    for user in range(USERS):
        own = np.flatnonzero(kind == user % KINDS) if told else np.arange(ITEMS)
        rows += [(f"u{user}", f"i{item}", 5.0, 100 * step + user) for step, item in enumerate(draw.permutation(own)[:EVENTS])]
    titles = [f"{WORDS[kind[i]]} {i}" if titled else f"thing {i}" for i in range(ITEMS)]
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(ITEMS)], "title": titles})
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    return Interactions.from_frame(frame, items=items, name="kinds")


def run_of_kinds(tiny, *tasks, log=None, **sections) -> Assembly:
    """An assembly to be trained for one epoch at a rate that learns next to nothing."""
    data = {"split": {"kind": "last_n", "n": 2}}
    wanted = recipe(tiny, *(tasks or (NEXT,)), **({"data": data, "sequence": {"instruction": ""}, "train": TRAIN} | sections))
    return assemble(wanted, log or log_of_kinds(), Base.load(str(tiny)))


LISTED = 12


def log_of_lists() -> Interactions:
    """Users of two kinds; each impression shows one item of their kind, which they click, and two of the other kind."""
    draw, rows = np.random.default_rng(0), []
    for user in range(40):
        kinds = [np.flatnonzero(np.arange(LISTED) % 2 == kind) for kind in (user % 2, 1 - user % 2)]
        for step in range(6):
            liked, *others = int(draw.choice(kinds[0])), *draw.choice(kinds[1], 2, replace=False).tolist()
            for place, item in enumerate([liked, *others]):
                row = (f"u{user}", f"i{item}", step, int(place == 0), f"list {step}", " ".join(f"i{each}" for each in others))
                rows.append((*row[:5], row[5] if place == 0 else None))
    names = ["user_id", "item_id", "timestamp", "click", "impression_id", "rejected"]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(LISTED)], "title": [f"thing {n}" for n in range(LISTED)]})
    return Interactions.from_frame(frame, items=items, name="shown")


def clicks_of(shown: Interactions) -> Interactions:
    """The clicks of `log_of_lists` alone, with what was rejected beside each."""
    frame = shown.frame.filter(pl.col("click") == 1).drop("row", "impression_id", "click")
    return Interactions.from_frame(frame, items=shown.catalogue.frame, name="clicked")


def scores_of(made: Assembly) -> dict[int, np.ndarray]:
    """(N,) scores at each test target, by event."""
    made.model.eval()
    found: dict[int, np.ndarray] = {}
    for _, events, scores in outputs(made.model, made.builder, made.split, TEST, max_events=16):
        found |= dict(zip(events.tolist(), scores, strict=True))
    return found


def preferred(log: Interactions, scores: dict[int, np.ndarray]) -> float:
    """The share of pairs of a list in which what was clicked is above what was not."""
    wins = []
    for event, row in scores.items():
        others = np.flatnonzero((log.user_codes == log.user_codes[event]) & (log.timestamps == log.timestamps[event]))
        wins += [row[log.item_codes[event]] > row[log.item_codes[other]] for other in others if other != event]
    return float(np.mean(wins))


def own_kind(log: Interactions, scores: dict[int, np.ndarray]) -> float:
    """The mean share of a softmax over the scores that items of the user's own kind have."""
    found = []
    for event, row in scores.items():
        share = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        found.append(share[np.arange(LISTED) % 2 == int(log.user_ids[log.user_codes[event]][1:]) % 2].sum())
    return float(np.mean(found))
