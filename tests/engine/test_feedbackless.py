"""A log of users, items and times alone: trained, evaluated, asked, explained, refreshed, exported; and feedback left out."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

import genre
from builders import LIKE, NEXT, recipe
from genre.data.interactions import Interactions
from genre.engine import Engine, Request
from genre.engine.explain import explain
from genre.engine.versions import read_adapter, read_encoder
from genre.errors import DataError, ManifestError, RecipeError
from genre.jobs.encoders import find_encoder, foresee_encoder
from genre.jobs.evaluate import evaluate
from genre.jobs.loading import restore
from genre.jobs.refresh.job import refresh
from genre.progress import Reporter
from genre.training.assembly import assemble, feedback_column
from genre.training.prediction import outputs

BARE = {"feedback": "none", "instruction": "Items of one user, in order:"}


def chained(log: Interactions, *, events: int = 14, noise: float = 0.1, seed: int = 0) -> Interactions:
    """The planted log's users and items, without ratings: after an item comes the one seven on, but for `noise`."""
    draw, count = np.random.default_rng(seed), log.catalogue.size
    rows = []
    for number, user in enumerate(log.user_ids):
        place = int(draw.integers(count))
        for step in range(events):
            rows.append((user, f"i{place % count}", 1000 * step + number))
            place += 7 if draw.random() >= noise else int(draw.integers(count))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name="plain")


@pytest.fixture(scope="module")
def bare(tiny, log, tmp_path_factory):
    """A registry with `next_item` of a log without feedback, by a recipe that says nothing about it."""
    folder = tmp_path_factory.mktemp("bare")
    registry, base, events = genre.Registry(folder / "registry"), genre.Base.load(str(tiny)), chained(log)
    wanted = recipe(tiny, {**NEXT, "metrics": ["ndcg@10", "hr@10"]}, train={"epochs": 6})
    run = genre.train(wanted, log=events, base=base, registry=registry, folder=folder / "run")
    registry.publish(run, alias=("latest", "production"))
    return registry, events, run


def test_an_event_is_one_token(bare, base):
    registry, events, _ = bare
    loaded = read_adapter(registry, "next_item", base)
    model, builder, _ = restore(loaded, events, base)
    rows, _ = builder.training_rows(np.ones(len(events), bool), max_events=16, min_events=1)
    model.release()
    prefix = len(builder.prefix(0))
    assert all(len(row) == prefix + len(row.events) for row in rows) and loaded.layout.feedback is None
    described = loaded.manifest.sequence
    assert described["feedback"] is None and described["values"] == []
    encoder = registry.find(loaded.manifest.encoder)
    assert json.loads((registry.fetch(encoder) / "encoder.json").read_text())["spec"]["feedback"] == 0


def test_it_learns_and_is_evaluated_beside_baselines_of_events_alone(bare, base):
    registry, events, _ = bare
    found = evaluate(registry, "next_item@production", events, base)["tasks"]["next_item"]
    assert set(found["baselines"]) == {"popularity", "transitions", "item_neighbours", "ease", "text_neighbours", "ease_text"}
    adapter, popularity = (each["ndcg@10"]["value"] for each in (found["adapter"], found["baselines"]["popularity"]))
    assert adapter > popularity + 0.2


def test_the_last_event_scores_as_in_evaluation(bare, base):
    registry, events, _ = bare
    short = events.select(np.arange(len(events)) - events.user_offsets[events.user_codes] < 8)
    loaded = read_adapter(registry, "next_item", base)
    model, builder, chosen = restore(loaded, short, base)
    found = {}
    for _, rows, scores in outputs(model, builder, chosen, 2, max_events=16, batch_tokens=2048):
        found |= dict(zip(rows.tolist(), scores, strict=True))
    model.release()
    requests, wanted = [], []
    for user, end in zip(short.user_ids, short.user_offsets[1:].tolist(), strict=True):
        if end - 1 in found:
            history = [{"item_id": event["item_id"]} for event in short.history(user)[:-1]]
            person = short.users.row(short.user_code(user), named=True)
            requests.append(Request("next_item", history=history, user=person, candidates=list(short.catalogue.item_ids)))
            wanted.append(found[end - 1])
    assert len(wanted) > 20
    with Engine(base, registry) as engine:
        answers = engine.score(requests)
    for answer, scores in zip(answers, wanted, strict=True):
        assert answer.error is None and np.abs(np.array([one.score for one in answer.results]) - scores).max() < 1e-4


def test_impressions_score_as_in_evaluation(bare, base):
    """The last of a user's items that were shown together is asked before all of them, in evaluation and in a request."""
    registry, events, _ = bare
    frame = events.frame.drop("row").with_columns(impression_id=(pl.col("timestamp") // 3000).cast(pl.String))
    shown = Interactions.from_frame(frame, items=events.catalogue.frame, users=events.users, name="shown")
    shown = shown.select(np.arange(len(shown)) - shown.user_offsets[shown.user_codes] < 8)
    model, builder, chosen = restore(read_adapter(registry, "next_item", base), shown, base)
    found = {}
    for _, rows, scores in outputs(model, builder, chosen, 2, max_events=16, batch_tokens=2048):
        found |= dict(zip(rows.tolist(), scores, strict=True))
    model.release()
    requests, wanted = [], []
    for user, end in zip(shown.user_ids, shown.user_offsets[1:].tolist(), strict=True):
        history = shown.history(user)
        if end - 1 in found:
            before = [event for event in history if event["impression_id"] != history[-1]["impression_id"]]
            person = shown.users.row(shown.user_code(user), named=True)
            requests.append(Request("next_item", history=before, user=person, candidates=list(shown.catalogue.item_ids)))
            wanted.append(found[end - 1])
    assert len(wanted) > 20 and any(len(request.history) == 6 for request in requests)
    with Engine(base, registry) as engine:
        answers = engine.score(requests)
    for answer, scores in zip(answers, wanted, strict=True):
        assert answer.error is None and np.abs(np.array([one.score for one in answer.results]) - scores).max() < 1e-4


def test_events_need_no_feedback_and_may_carry_that_of_others(bare, base):
    registry, events, _ = bare
    history = [{"item_id": "i1"}, {"item": {"title": "war 99"}}, {"item_id": "i4", "timestamp": 5}]
    rated = [event | {"rating": 5.0} for event in history]
    strange = [event | {"stars": 5.0} for event in history]
    with Engine(base, registry, data=events) as engine:
        first, second, third = engine.score(
            [Request("next_item", history=each, user={"age": 20}, k=5) for each in (history, rated, strange)]
        )
        by_id = engine.score([Request("next_item", user_id="u3", k=5)])[0]
        found = explain(engine, Request("next_item", user_id="u3", k=1), "i4")
    assert [one.item_id for one in first.results] == [one.item_id for one in second.results]
    assert third.error == (
        "history[0] has an unknown field: got stars; expected item_id, item, impression_id, timestamp, rating, click, behaviour"
    )
    assert by_id.error is None and len(by_id.results) == 5
    assert found.column is None and all(event.feedback is None for event in found.events)
    assert sum(abs(event.share) for event in found.events) == pytest.approx(1)


def test_it_is_exported_and_refreshed(bare, base, tiny, tmp_path):
    registry, events, run = bare
    registry.export("next_item@production", tmp_path / "peft", base=tiny)
    assert (tmp_path / "peft" / "adapter_config.json").is_file()
    frame = events.frame.drop("row")
    later = frame.filter(pl.col("timestamp") < 6000).with_columns(pl.col("timestamp") + 50_000)
    grown = Interactions.from_frame(pl.concat([frame, later]), items=events.catalogue.frame, users=events.users, name="plain")
    done = refresh(registry, "next_item@production", grown, base=base, folder=tmp_path / "refreshed")
    assert done.report["decision"] in ("promoted", "kept") and done.report["tasks"]["next_item"]
    loaded = read_adapter(registry, run.manifest.name, base)
    assert loaded.layout.feedback is None
    order = events.frame.drop("row", "timestamp").with_columns(step=pl.col("item_id").cum_count().over("user_id"))
    ordered = Interactions.from_frame(order, items=events.catalogue.frame, users=events.users, name="plain", order="step")
    with pytest.raises(DataError, match="a refresh tells new events from old ones by their times: .*expected a log with times"):
        refresh(registry, "next_item@production", ordered, base=base, folder=tmp_path / "again")


# --- feedback that is there, and left out ---------------------------------------------------------------------------


def test_feedback_can_be_ignored_on_any_encoder(trained, log, base, tiny):
    """The encoder was fitted with ratings; the adapter reads items alone, whatever was said of them."""
    wanted = recipe(tiny, NEXT, LIKE, name="ignoring", sequence=BARE, encoder={"use": "encoder-planted"})
    assert feedback_column(wanted, log) is None
    shared = read_encoder(trained.registry, trained.registry.resolve("encoder-planted").digest, base)
    first = assemble(wanted, log, base, shared)
    row = first.builder.evaluation_rows(first.split, 2, max_events=16)[0]
    first.model.release()
    other = log.frame.drop("row").with_columns(rating=pl.lit(3.0) + pl.col("rating") % 2)
    changed = Interactions.from_frame(other, items=log.catalogue.frame, users=log.users, name="changed")
    second = assemble(wanted, changed, base, shared)
    again = second.builder.evaluation_rows(second.split, 2, max_events=16)[0]
    second.model.release()
    for name in (field.name for field in dataclasses.fields(row)):
        mine, theirs = getattr(row, name), getattr(again, name)
        assert np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs, name


def test_auto_fits_an_encoder_with_ratings_where_the_published_one_has_none(log, base, tiny, tmp_path):
    registry = genre.Registry(tmp_path / "registry")
    first = recipe(tiny, NEXT, sequence=BARE, train={"epochs": 1})
    genre.train(first, log=log, base=base, registry=registry, folder=tmp_path / "run")
    lines: list[str] = []
    reporter = Reporter.silent()
    reporter.line = lines.append
    assert find_encoder(first, log, base, registry, reporter) is not None
    assert find_encoder(recipe(tiny, LIKE), log, base, registry, reporter) is None
    assert "fitting a new encoder: sequence.feedback" in lines[-1] and "got rating; expected none" in lines[-1]
    assert foresee_encoder(recipe(tiny, LIKE), log, registry) == f"encoder: {lines[-1]}"
    assert foresee_encoder(first, log, registry).startswith("encoder: shares encoder-planted:")


def test_a_rating_needs_an_encoder_with_ratings(bare, log, base, tiny):
    registry, *_ = bare
    shared = read_encoder(registry, registry.resolve("encoder-plain").digest, base)
    with pytest.raises(ManifestError, match=r"sequence\.feedback.*got rating; expected none, which the encoder was fitted on"):
        assemble(recipe(tiny, LIKE, encoder={"use": "encoder-plain"}), log, base, shared)


def test_a_column_that_is_not_there_is_named(log, tiny):
    frame = log.frame.drop("rating", "row").with_columns(dwell=pl.lit(3.0))
    events = Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name="dwelling")
    wanted = recipe(tiny, NEXT)
    assert feedback_column(wanted, events) is None
    assert feedback_column(recipe(tiny, NEXT, sequence={"feedback": "dwell"}), events) == "dwell"
    with pytest.raises(DataError, match="sequence.feedback 'rating' is not a column of the log: got dwell; set .* or to none"):
        feedback_column(recipe(tiny, NEXT, sequence={"feedback": "rating"}), events)


def test_a_feedback_task_over_impressions_needs_feedback_slots(log, tiny):
    frame = log.frame.drop("row").with_columns(impression_id=(pl.col("timestamp") // 4000).cast(pl.String))
    shown = Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name="shown")
    with pytest.raises(RecipeError, match="task 'like' asks about items of an impression, which see each other"):
        feedback_column(recipe(tiny, LIKE, sequence=BARE), shown)
    assert feedback_column(recipe(tiny, NEXT, sequence=BARE), shown) is None
