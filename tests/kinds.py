"""A log whose users stay with one kind of item, and a short run on it, for terms that are fitted after training."""

import numpy as np
import polars as pl

from builders import NEXT, recipe
from genre.data.interactions import Interactions
from genre.modules.base.base import Base
from genre.training.assembly import Assembly, assemble

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
