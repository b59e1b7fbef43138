"""No later event, no label of the event itself and no sibling's feedback reaches what a task reads.

By identity on the model itself: change the log, lay it out and run it again, and compare the states (and the outputs) at
the reads. The model has random low-rank weights and a random encoder, so that anything it sees would show.
"""

import polars as pl
import pytest
import torch

from builders import LIKE, NEXT, recipe, stir, with_values
from genre.data.interactions import Interactions
from genre.data.sequences.batches import collate
from genre.data.sequences.windows import training_windows
from genre.training.assembly import assemble

EVENTS, ITEMS = 9, 12
SAME = 1e-5  # ten times what the sums of a batch of another shape round differently
SLOTS = ["token", "text", "both"]


def small_log(impressions: bool) -> Interactions:
    """Two users; with impressions, events 3, 4 and 5 of each were shown together."""
    rows = [
        (user, f"i{(3 * step + start) % ITEMS}", float(1 + (step * 7 + start) % 5), 100 * step + start)
        for start, user in enumerate(("a", "b"))
        for step in range(EVENTS)
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    if impressions:
        step = pl.col("timestamp") // 100
        frame = frame.with_columns(
            (pl.col("user_id") + pl.when(step.is_between(3, 5)).then(3).otherwise(step).cast(pl.String)).alias("impression_id")
        )
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(ITEMS)], "title": [f"{'x' * (i % 4)}{i}" for i in range(ITEMS)]})
    return Interactions.from_frame(frame, items=items, name="small")


class Probe:
    """One model and encoder, many logs: states and next-item logits by event of the first user."""

    def __init__(self, base, item: str, log: Interactions, *, tasks=(LIKE, NEXT), feedback: str = "rating") -> None:
        wanted = recipe(
            base.folder,
            *tasks,
            sequence={"item": item, "instruction": "Go:", "feedback": feedback},
            data={"split": {"kind": "user_ratio", "valid": 0.0, "test": 0.2}},
            encoder={"collaborative": 0},
        )
        self.assembly = assemble(wanted, log, base)
        stir(self.assembly)
        self.model = self.assembly.model.eval()
        self.log, self.before = log, self.read(log)

    @torch.no_grad()
    def read(self, log: Interactions) -> dict[str, torch.Tensor]:
        builder = type(self.assembly.builder)(log, self.assembly.builder.layout)
        usable = torch.ones(len(log), dtype=torch.bool).numpy()
        windows, _ = training_windows(log, usable, max_events=16, min_events=1)
        batch = collate([builder.row(window) for window in windows], builder.data.supervise(list(self.model.tasks.values())))
        hidden = self.model.hidden(batch)
        found = {}
        for task, reads in batch.reads.items():
            states, outputs = hidden[reads.rows, reads.token_index], self.model.output(task, hidden, batch)
            order = torch.argsort(reads.events)[:EVENTS]
            assert reads.events[order].tolist() == list(range(EVENTS))
            found[f"{task} state"], found[f"{task} output"] = states[order], outputs[order]
        return found

    def changed(self, **cells) -> dict[str, set[int]]:
        """The events of the first user whose reads differ after the change, for each task's state and output."""
        after = self.read(with_values(self.log, **cells))
        return {name: {e for e in range(EVENTS) if (after[name][e] - self.before[name][e]).abs().max() > SAME} for name in after}


@pytest.fixture(params=SLOTS)
def plain(request, base):
    probe = Probe(base, request.param, small_log(impressions=False))
    yield probe
    probe.model.release()


@pytest.fixture(params=SLOTS)
def shown(request, base):
    probe = Probe(base, request.param, small_log(impressions=True))
    yield probe
    probe.model.release()


def test_an_events_own_feedback_is_seen_by_later_reads_only(plain):
    """Its own label is not in its read, nothing before it moves, everything after it does."""
    for event in (0, 4, EVENTS - 1):
        found = plain.changed(rating={event: 9.0 - plain.log.column("rating")[event]})
        later = set(range(event + 1, EVENTS))
        assert all(events == later for events in found.values()), found


def test_an_events_item_is_seen_by_its_own_feedback_read_and_by_later_ones(plain):
    for event in (1, 5, EVENTS - 1):
        other = "i11" if plain.log.frame["item_id"][event] != "i11" else "i10"
        found = plain.changed(item_id={event: other})
        assert found["like state"] == found["like output"] == set(range(event, EVENTS))
        assert found["next_item state"] == found["next_item output"] == set(range(event + 1, EVENTS))


def test_a_later_user_changes_nothing(plain):
    found = plain.changed(rating={EVENTS + 2: 5.5}, item_id={EVENTS + 3: "i0"})
    assert not any(found.values())


@pytest.mark.parametrize("item", SLOTS)
def test_without_feedback_slots_an_item_is_seen_by_its_own_and_by_later_reads(base, item):
    probe = Probe(base, item, small_log(impressions=False), feedback="none")
    try:
        assert not any(probe.changed(rating={event: 9.0 for event in range(EVENTS)}).values())
        for event in (1, 5, EVENTS - 1):
            found = probe.changed(item_id={event: "i11" if probe.log.frame["item_id"][event] != "i11" else "i10"})
            assert found["like state"] == found["like output"] == set(range(event, EVENTS))
            assert found["next_item state"] == found["next_item output"] == set(range(event + 1, EVENTS))
    finally:
        probe.model.release()


SIBLINGS = (3, 4, 5)


@pytest.mark.parametrize("item", SLOTS)
def test_without_feedback_slots_what_comes_next_sees_whole_impressions_before_it(base, item):
    probe = Probe(base, item, small_log(impressions=True), tasks=(NEXT,), feedback="none")
    try:
        for event in SIBLINGS:
            found = probe.changed(item_id={event: "i11" if probe.log.frame["item_id"][event] != "i11" else "i10"})
            assert found["next_item state"] == found["next_item output"] == set(range(6, EVENTS))
    finally:
        probe.model.release()


def test_siblings_never_see_each_others_feedback(shown):
    for event in SIBLINGS:
        found = shown.changed(rating={event: 9.0 - shown.log.column("rating")[event]})
        later = set(range(6, EVENTS))
        assert all(events == later for events in found.values()), found


def test_siblings_never_see_each_others_item(shown):
    for event in SIBLINGS:
        found = shown.changed(item_id={event: "i11" if shown.log.frame["item_id"][event] != "i11" else "i10"})
        later = set(range(6, EVENTS))
        assert found["like state"] == found["like output"] == {event} | later
        assert found["next_item state"] == found["next_item output"] == later


def test_siblings_see_what_came_before_the_impression(shown):
    found = shown.changed(rating={2: 9.0 - shown.log.column("rating")[2]})
    assert found["like state"] == found["next_item state"] == set(range(3, EVENTS))


def test_an_impression_of_its_own_for_every_event_changes_nothing(base):
    """Impressions of one event are the plain sequence."""
    log = small_log(impressions=False)
    alone = Interactions.from_frame(
        log.frame.with_columns(impression_id=pl.int_range(pl.len()).cast(pl.String)).drop("row"), items=log.catalogue.frame
    )
    probe = Probe(base, "both", log)
    try:
        after = probe.read(alone)
        assert all(torch.equal(after[name], probe.before[name]) for name in after)
    finally:
        probe.model.release()


def test_siblings_that_are_not_neighbours_do_not_see_each_other_either(base):
    log = small_log(impressions=True)
    names = log.frame["impression_id"].to_list()
    names[4] = "another"  # stands between two siblings, as events of one second may
    frame = log.frame.with_columns(pl.Series("impression_id", names)).drop("row")
    probe = Probe(base, "token", Interactions.from_frame(frame, items=log.catalogue.frame, name="between"))
    try:
        assert 5 not in probe.changed(rating={3: 9.0 - log.column("rating")[3]})["like state"]
    finally:
        probe.model.release()


@pytest.mark.parametrize("item", SLOTS)
def test_rows_of_a_batch_do_not_see_each_other(base, item):
    """One row alone, and padded beside longer ones, reads the same."""
    log = small_log(impressions=False)
    probe = Probe(base, item, log)
    try:
        builder = probe.assembly.builder
        windows, _ = training_windows(log, torch.ones(len(log), dtype=torch.bool).numpy(), max_events=5, min_events=1)
        rows = [builder.row(window) for window in windows]
        with torch.no_grad():
            together = probe.model.hidden(collate(rows, {}))
            for place, row in enumerate(rows):
                alone = probe.model.hidden(collate([row], {}))[0]
                assert (together[place, : len(row)] - alone).abs().max() < 1e-5
    finally:
        probe.model.release()
