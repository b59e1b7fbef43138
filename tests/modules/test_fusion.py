"""A list-of-float item column that tells what nothing else tells must help, and a column of noise must not stand for it."""

import numpy as np
import polars as pl
import pytest

from builders import NEXT, recipe
from genre.data.interactions import Interactions
from genre.modules.base.base import Base
from genre.training import fit
from genre.training.assembly import assemble
from genre.training.prediction import predict

KINDS, ITEMS, USERS, EVENTS = 4, 120, 90, 12


def log_of_kinds(planted):
    """Users who stay with one kind of item; titles do not tell it, and items are seen too rarely for their ids to tell it."""
    draw = np.random.default_rng(0)
    kind = draw.permutation(np.arange(ITEMS) % KINDS)
    rows = []
    for user in range(USERS):
        own = np.flatnonzero(kind == user % KINDS)
        rows += [(f"u{user}", f"i{item}", 5.0, 100 * step + user) for step, item in enumerate(draw.permutation(own)[:EVENTS])]
    picture = np.eye(KINDS)[kind] if planted else np.eye(KINDS)[draw.permutation(kind)]
    picture = picture @ draw.normal(size=(KINDS, 8)) + 0.1 * draw.normal(size=(ITEMS, 8))
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(ITEMS)],
            "title": [f"thing {i}" for i in range(ITEMS)],
            "image": pl.Series(picture.tolist(), dtype=pl.List(pl.Float32)),
        }
    )
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    return Interactions.from_frame(frame, items=items, name="kinds")


@pytest.mark.parametrize("planted", [True, False])
def test_a_planted_vector_column_helps(tiny, tmp_path, planted):
    reached = {}
    for name, dense in (("with", ["image"]), ("without", [])):
        wanted = recipe(
            tiny,
            NEXT,
            data={"split": {"kind": "last_n", "n": 2}},
            sequence={"instruction": ""},
            encoder={"learned": 4, "collaborative": 0, "dense": dense, "dropout": 0.5},
            train={"epochs": 4, "batch_tokens": 1024, "learning_rate": 1e-2, "early_stop": None},
        )
        assembly = assemble(wanted, log_of_kinds(planted), Base.load(str(tiny)))
        assert dict(assembly.shared.encoder.spec.dense) == ({"image": 8} if dense else {})
        fit(assembly, tmp_path / name)
        _, ranks, _ = predict(assembly.model, assembly.builder, assembly.split, 2, max_events=16, batch_tokens=4096)["next_item"]
        assembly.model.release()
        reached[name] = float(np.mean(ranks))
    if planted:
        assert reached["with"] < 0.6 * reached["without"]
    else:
        assert reached["with"] > 0.75 * reached["without"]
