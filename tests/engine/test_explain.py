"""Explanations: planted causes are found, shares are what the rows say, gradients are those of an independent pass."""

import json
import threading

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import LIKE, NEXT, publish_stirred, recipe
from fakes import tastes_log
from genre import cli
from genre.data.interactions import Interactions
from genre.data.sequences.batches import collate
from genre.engine import Engine, Request
from genre.engine.explain import ATTEMPTS, METHODS, EventShare, Explanation, ask, explain
from genre.engine.gradients import event_gradients
from genre.engine.versions import read_adapter
from genre.errors import DataError, InputError, JobError, NotFoundError, RequestError
from genre.jobs.loading import restore
from genre.modules.heads.heads import View

TASKS = ("like", "rating", "next_item", "text")


@pytest.fixture(scope="module")
def registry(tiny, trained, tmp_path_factory):
    """The trained adapters, and `text`, whose items and feedback are words."""
    folder, base = tmp_path_factory.mktemp("text"), genre.Base.load(str(tiny))
    text = recipe(tiny, LIKE, name="text", sequence={"item": "text"}, encoder={"use": "none"})
    publish_stirred(trained.registry, text, trained.log, base, folder / "text", seed=77)
    return trained.registry


@pytest.fixture
def engine(base, registry, log):
    with Engine(base, registry, lanes=8, data=log) as engine:
        yield engine


def shares(found):
    """Shares in the history's order."""
    return np.array([event.share for event in sorted(found.events, key=lambda event: event.place)])


def effects(found):
    return np.array([event.effect for event in sorted(found.events, key=lambda event: event.place)])


# --- planted causes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tastes(tiny, tmp_path_factory):
    """`like` on a log where only items of the same kind tell, and `next_item` on one where users stay with a kind."""
    folder, base = tmp_path_factory.mktemp("tastes"), genre.Base.load(str(tiny))
    registry = genre.Registry(folder / "registry")
    train = {"learning_rate": 1e-2, "epochs": 6}
    logs = {"like": tastes_log(), "next_item": tastes_log(stay=0.9)}
    for task in (LIKE, NEXT):
        wanted = recipe(tiny, task, sequence={"instruction": "User:"}, encoder={"use": "fit"}, train=train)
        run = genre.train(wanted, log=logs[task["name"]], base=base, registry=registry, folder=folder / task["name"])
        registry.publish(run)
    return registry


def histories(count):
    """Nine events, three of them of the target's kind and liked; the others are of other kinds, liked or not."""
    draw = np.random.default_rng(5)
    for number in range(count):
        items = [int(item) for item in draw.permutation(36)]
        same = [item for item in items if item % 3 == number % 3]
        other = [item for item in items if item % 3 != number % 3][:6]
        events = [(item, 5.0) for item in same[:3]] + [(item, float(draw.choice([1, 5]))) for item in other]
        mixed = [events[place] for place in draw.permutation(len(events))]
        yield f"i{same[3]}", {f"i{item}" for item in same[:3]}, [{"item_id": f"i{item}", "rating": r} for item, r in mixed]


def explained(base, registry, task):
    """20 planted questions explained by both methods: leave one out, gradients, and the items that caused the target."""
    with Engine(base, registry) as engine:
        for item, cause, history in histories(20):
            request = Request(task, history=history, k=1)
            yield *(explain(engine, request, item, method=method) for method in METHODS), cause


def overlap(events, cause):
    """The share of planted causes among the first three events."""
    return len({event.item_id for event in events[:3]} & cause) / 3


def test_events_of_the_planted_kind_have_the_largest_shares_and_gradients_agree(base, tastes):
    right, agree = [], []
    for found, fast, cause in explained(base, tastes, "like"):
        right.append(overlap(found.events, cause))
        assert all(event.share > 0 for event in found.events if event.item_id in cause)
        assert found.score > found.without_history
        agree.append(np.corrcoef(shares(found), shares(fast))[0, 1])
    assert np.mean(right) > 0.9, right  # three of nine at random would be a third
    assert np.mean(agree) > 0.8 and min(agree) > 0.5, agree


def test_the_next_item_comes_from_events_of_its_kind(base, tastes):
    right, agree = [], []
    for found, fast, cause in explained(base, tastes, "next_item"):
        right.append(overlap(sorted(found.events, key=lambda event: -event.share), cause))
        agree.append(np.corrcoef(shares(found), shares(fast))[0, 1])
    assert np.mean(right) > 0.8, right  # three of nine at random would be a third
    assert np.mean(agree) > 0.6, agree


# --- what the figures are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_leave_one_out_is_the_difference_of_plain_rows(engine, log, name):
    history, person = log.history("u4")[-7:], log.users.row(log.user_code("u4"), named=True)
    found = explain(engine, Request(name, history=history, user=person, k=1), "i3")
    parts = [history, [], *(history[:place] + history[place + 1 :] for place in range(7))]
    answers = engine.score([Request(name, history=part, user=person, candidates=["i3"]) for part in parts])
    scores = np.array([answer.results[0].score for answer in answers])
    assert (found.score, found.without_history) == pytest.approx((scores[0], scores[1]), abs=1e-5)
    assert effects(found) == pytest.approx(scores[0] - scores[2:], abs=1e-5) and np.abs(effects(found)).max() > 1e-3
    assert shares(found) == pytest.approx(effects(found) / np.abs(effects(found)).sum()) and found.older == 0
    order = np.abs([event.share for event in found.events])
    assert (np.diff(order) <= 0).all() and order.sum() == pytest.approx(1)
    names = {event["item_id"]: event["rating"] for event in history}
    assert {event.item_id: event.feedback for event in found.events} == names and found.column == "rating"


def score_with(registry, log, base, name, request, weights):
    """A score by the adapter's own layers, each event's input scaled by a weight: independent of lanes and of autograd."""
    loaded = read_adapter(registry, name, base)
    model, builder, _ = restore(loaded, log, base)
    (task,) = loaded.tasks.values()
    layout, texts = builder.layout, builder.texts
    codes = log.catalogue.codes([event["item_id"] for event in request.history])
    feedback = layout.feedback.encode(np.array([event["rating"] for event in request.history]))
    (candidate,) = log.catalogue.codes(request.candidates)
    prefix = layout.prefix(request.user)
    kinds = {"texts": texts, "candidates": None if task.kind == "next_item" else np.array([candidate])}
    row = layout.build(prefix, codes, feedback, **kinds)
    ends = [layout.build(prefix, codes[:n], feedback[:n], texts=texts).prefix_length for n in range(len(codes) + 1)]
    try:
        batch = collate([row], {})
        embeds = base.embedding(batch.tokens).clone()
        if model.soft is not None:
            embeds[batch.items >= 0] = model.soft.items(batch.items[batch.items >= 0])
            embeds[batch.feedback >= 0] = model.soft.encoder.feedback_vectors(batch.feedback[batch.feedback >= 0])
        for place, weight in enumerate(weights):
            embeds[:, ends[place] : ends[place + 1]] *= weight
        hidden = base.hidden(embeds, batch.positions, batch.mask)[0]
        head, view = model.heads[task.name], None
        read = row.prefix_length - 1 if task.kind == "next_item" else row.candidate_reads[0]
        if model.soft is not None:
            tables, one = head.tables(model.soft.items()), torch.tensor([0])
            seen, scale = torch.tensor([len(codes)]), torch.tensor([weights], dtype=torch.float32)
            history = batch.history_items, batch.history_feedback
            view = View(tables, *history, one, seen, torch.tensor([int(candidate)]), weights=scale)
        output = head.score(head(hidden[[read]], view))
        return float(output[0, candidate] if task.kind == "next_item" else output[0])
    finally:
        model.release()


@torch.no_grad()
@pytest.mark.parametrize("name", TASKS)
def test_gradients_are_those_of_the_scaled_input(base, registry, log, name):
    history, person = log.history("u4")[-5:], log.users.row(log.user_code("u4"), named=True)
    request, step = Request(name, history=history, user=person, candidates=["i3"]), 0.01
    wanted = []
    for place in range(5):
        weights = [[1 + sign * step * (place == other) for other in range(5)] for sign in (1, -1)]
        high, low = (score_with(registry, log, base, name, request, one) for one in weights)
        wanted.append((high - low) / (2 * step))
    plain = score_with(registry, log, base, name, request, [1.0] * 5)
    with Engine(base, registry, data=log) as engine:
        engine.load("rating")  # so that the lanes hold others as well
        response, got = event_gradients(engine, request)
    assert response.results[0].score == pytest.approx(plain, abs=1e-4)
    assert got == pytest.approx(wanted, abs=1e-3) and np.abs(got).max() > 5e-3


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_gradients_pass_through_quantized_bases(tiny, registry, log, quantization):
    base = genre.Base.load(str(tiny), quantization=quantization)
    with Engine(base, registry, data=log) as engine:
        found = explain(engine, Request("like", user_id="u4", k=1), "i3", method="gradient")
    assert np.isfinite(shares(found)).all() and np.abs(shares(found)).sum() == pytest.approx(1)


# --- which events ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_events_before_the_window_are_counted_and_have_no_part(engine, log, method):
    history = log.history("u6")  # 24 events; 15 are read beside the candidate
    whole = explain(engine, Request("like", user_id="u6", k=1), "i1", method=method)
    late = explain(engine, Request("like", history=history[9:], user={"age": 26}, k=1), "i1", method=method)
    assert whole.older == 9 and sorted(event.place for event in whole.events) == list(range(10, 25))
    assert late.older == 0 and sorted(event.place for event in late.events) == list(range(1, 16))
    assert effects(whole) == pytest.approx(effects(late), abs=1e-5)
    assert [event.item_id for event in sorted(whole.events, key=lambda event: event.place)] == [
        event["item_id"] for event in history[9:]
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["like", "text"])
def test_impressions_and_items_given_by_columns(engine, name, method):
    history = [
        {"item_id": "i3", "rating": 5.0, "impression_id": "a"},
        {"item": {"title": "war 99"}, "rating": 2.0, "impression_id": "a"},
        {"item": {"item_id": "new", "title": "love 98"}, "rating": None},
        {"item_id": "i4", "rating": 1.0},
    ]
    found = explain(engine, Request(name, history=history, k=1), {"title": "war 97"}, method=method)
    events = sorted(found.events, key=lambda event: event.place)
    assert [event.title for event in events] == ["war 3", "war 99", "love 98", "love 4"]
    assert [event.item_id for event in events] == ["i3", "war 99", "new", "i4"]
    assert [event.feedback for event in events] == [5.0, 2.0, None, 1.0]
    assert found.title == "war 97" and np.abs(shares(found)).sum() == pytest.approx(1)


@pytest.mark.parametrize("method", METHODS)
def test_without_events_there_is_nothing_to_share(engine, method):
    found = explain(engine, Request("like", history=[], k=1), "i1", method=method)
    assert found.events == () and found.score == pytest.approx(found.without_history, abs=1e-6)
    assert json.loads(json.dumps(found.to_json()))["events"] == []


def test_filters_and_k_of_the_request_are_not_looked_at(engine):
    plain = explain(engine, Request("like", user_id="u1", k=1), "i1")
    other = explain(engine, Request("like", user_id="u1", k=7, deny=["i1"], allow=["i2"], candidates=["i9"]), "i1")
    assert effects(plain) == pytest.approx(effects(other), abs=1e-6)


BAD = [
    (
        Request("like", user_id="u1", k=1),
        "i1",
        "guess",
        InputError,
        "no such method: got guess; expected leave_one_out or gradient",
    ),
    (Request("like", user_id="u1", k=1), "ghost", "gradient", RequestError, "unknown item: got ghost"),
    (Request("like", user_id="u1", k=1), "ghost", "leave_one_out", RequestError, "unknown item: got ghost"),
    (Request("like", user_id="nobody", k=1), "i1", "leave_one_out", DataError, "unknown user: got 'nobody'"),
    (Request("ghost", history=[], k=1), "i1", "leave_one_out", NotFoundError, "ghost"),
    (Request("like", history=[], k=1, task="other"), "i1", "gradient", RequestError, "unknown task: got other"),
    (Request("like", history=[{"item_id": "ghost"}], k=1), "i1", "leave_one_out", RequestError, "unknown item: got ghost"),
    (Request("like", history=[], k=1), 7, "leave_one_out", RequestError, r"candidates\[0\] cannot be used: got 7"),
    (Request("like", history=[{"item_id": "i1", "rating": "good"}], k=1), "i1", "gradient", RequestError, "not a number"),
]


@pytest.mark.parametrize(("request_", "item", "method", "kind", "text"), BAD)
def test_what_cannot_be_explained_is_said(engine, request_, item, method, kind, text):
    with pytest.raises(kind, match=text):
        explain(engine, request_, item, method=method)
    assert engine.occupancy()["requests"] == 0


# --- beside others ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hot(tiny, trained, tmp_path_factory):
    """Two versions of one name."""
    folder, base = tmp_path_factory.mktemp("hot"), genre.Base.load(str(tiny))
    wanted = recipe(tiny, LIKE, name="moving")
    return [
        publish_stirred(trained.registry, wanted, trained.log, base, folder / str(seed), seed=seed, encoder="encoder-planted")
        for seed in (1, 2)
    ]


def test_rows_of_two_versions_are_never_mixed(base, trained, hot):
    request = Request("moving", user_id="u3", k=1)
    with Engine(base, trained.registry, data=trained.log) as engine:
        engine.swap("moving", hot[0].ref)
        question = ask(engine, request, "i2")
        first = question.read(engine.score(question.requests))
        engine.swap("moving", hot[1].ref)
        assert first.digest == hot[0].digest and question.read(engine.score(question.requests)) is None
        assert explain(engine, request, "i2").digest == hot[1].digest


def test_a_reference_that_never_rests_is_said(base, trained, hot):
    class Restless(Engine):
        turns = 0

        def score(self, requests, refs=None, **options):
            self.turns += 1
            self.swap("moving", hot[self.turns % 2].ref)
            return super().score(requests, refs, **options)

    with Restless(base, trained.registry, data=trained.log) as engine:
        engine.swap("moving", hot[0].ref)
        with pytest.raises(JobError, match="moving was swapped during its explanation"):
            explain(engine, Request("moving", user_id="u3", k=1), "i2")
        assert engine.turns == ATTEMPTS


def test_explanations_and_swaps_beside_each_other(base, trained, hot):
    """Backward passes hold tensors that a swap would write over."""
    request = Request("moving", user_id="u3", k=1)
    wanted, got, failures = {}, [], []
    with Engine(base, trained.registry, lanes=4, data=trained.log) as engine:
        for version in hot:
            engine.swap("moving", version.ref)
            wanted[version.digest] = effects(explain(engine, request, "i2", method="gradient"))
        begin, end = threading.Barrier(3), threading.Event()

        def work():
            begin.wait()
            try:
                got.extend(explain(engine, request, "i2", method="gradient") for _ in range(15))
            except JobError:
                pass  # swapped five times in a row
            except BaseException as error:
                failures.append(error)

        def swap():
            begin.wait()
            turn = 0
            while not end.is_set():
                turn += 1
                engine.swap("moving", hot[turn % 2].ref)

        threads = [threading.Thread(target=work) for _ in range(2)]
        swapper = threading.Thread(target=swap)
        for thread in [*threads, swapper]:
            thread.start()
        for thread in threads:
            thread.join()
        end.set()
        swapper.join()
        after = effects(explain(engine, request, "i2", method="gradient"))
        assert engine.occupancy()["requests"] == 0
        assert min(np.abs(after - one).max() for one in wanted.values()) < 1e-5
    assert not failures and got
    for found in got:
        assert effects(found) == pytest.approx(wanted[found.digest], abs=1e-5)
    one, other = wanted.values()
    assert np.abs(one - other).max() > 1e-3
    assert all(parameter.grad is None for parameter in base.model.parameters())


# --- the sentence ----------------------------------------------------------------------------------------------------


def made(without, score, **effects):
    """An explanation of these effects by title; a title in capitals has no feedback."""
    total = sum(map(abs, effects.values())) or 1.0
    events = [
        EventShare(place, name, name, None if name.isupper() else 5.0, effect, effect / total)
        for place, (name, effect) in enumerate(effects.items(), 1)
    ]
    events.sort(key=lambda event: -abs(event.share))
    return Explanation("like", "d", "like", "i", "item", "leave_one_out", "rating", score, without, 0, tuple(events))


SENTENCES = {
    "raised": (
        made(0.5, 0.9, a=0.3, B=0.2, c=0.1),
        "The history raises this score, because of “a” (rating 5) and “B”.",
    ),
    "raised against some": (
        made(0.5, 0.6, a=0.3, b=-0.2, c=-0.01),
        "The history raises this score, because of “a” (rating 5); against it speaks “b” (rating 5).",
    ),
    "lowered": (
        made(0.6, 0.5, a=0.1, b=-0.3, c=0.05),
        "The history as a whole lowers this score, because of “b” (rating 5); for it speak “a” (rating 5) and “c” (rating 5).",
    ),
    "lowered, though every event adds": (
        made(0.93, 0.916, a=0.02, b=0.01),
        "The history as a whole lowers this score, though no single event speaks against it; "
        "for it speak “a” (rating 5) and “b” (rating 5).",
    ),
    "raised, though every event takes away": (
        made(0.5, 0.6, a=-0.02),
        "The history raises this score, though no single event speaks for it; against it speaks “a” (rating 5).",
    ),
    "unchanged": (
        made(0.5, 0.5, a=0.1, b=-0.1),
        "The history does not change this score: for it speaks “a” (rating 5); against it speaks “b” (rating 5).",
    ),
    "without effect": (made(0.5, 0.5, a=0.0), "The history does not change this score."),
    "empty": (made(0.5, 0.5), "There is no history to explain it by."),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_the_sentence_follows_the_sum(case):
    found, sentence = SENTENCES[case]
    assert found.sentence == sentence == found.to_json()["sentence"]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path, monkeypatch, log, trained):
    monkeypatch.chdir(tmp_path)
    log.write("shop")
    return ["--data", "shop", "--registry", str(trained.registry.url), "--base", str(trained.base)]


def run(capsys, *arguments):
    code = cli.main(["explain", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_command_prints_titles_and_writes_every_event(shop, capsys, tmp_path):
    code, out, err = run(capsys, "like", *shop, "--user", "u4", "--item", "i3", "-k", "4", "--json", "out/why.json")
    assert code == 0, err
    written = json.loads((tmp_path / "out" / "why.json").read_text())
    assert written["title"] == "war 3" and len(written["events"]) == 15 and written["method"] == "leave_one_out"
    assert f"user u4, item war 3 (i3)\nscore {written['score']:.4f}; without any history" in out
    assert written["sentence"] in out and ("raises" in out) == (written["score"] > written["without_history"])
    for event in written["events"][:4]:
        assert event["title"] in out and f"{event['share']:+.1%}" in out
    assert "11 more events with" in out and "9 older events before those that the adapter reads" in out
    code, out, _ = run(capsys, "next_item", *shop, "--user", "u4", "--item", "i3", "--method", "gradient")
    assert code == 0 and "shares by gradient" in out and "task next_item" in out


def test_titles_that_look_like_markup_are_printed_as_they_are(shop, capsys, log):
    rows = log.catalogue.frame.with_columns(title=pl.lit("[bold red]x[/] [link=http://a]y"))
    Interactions.from_frame(log.frame.drop("row"), items=rows, users=log.users, name="markup").write("shop")
    code, out, err = run(capsys, "like", *shop, "--user", "u4", "--item", "i3")
    assert code == 0, err
    assert "[bold red]x[/] [link=http://a]y" in out


WRONG = [
    (["like", "--user", "nobody", "--item", "i3"], 2, "unknown user: got 'nobody'"),
    (["like", "--user", "u4", "--item", "ghost"], 2, "no item has this title: got 'ghost'"),
    (["ghost", "--user", "u4", "--item", "i3"], 2, "ghost"),
    (["like", "--user", "u4", "--item", "i3", "-k", "0"], 2, "-k is too small: got 0"),
    (["like", "--user", "u4", "--item", "i3", "--method", "lime"], 2, "no such method: got lime"),
    (["like", "--user", "u4", "--item", "i3", "--task", "rating"], 2, "unknown task: got rating; expected like"),
    (["like", "--user", "u4", "--item", "i3", "--data", "nowhere"], 2, "no data set folder"),
    (["like", "--user", "u4", "--item", "i3", "--json", "shop"], 2, "--json is a folder"),
    (["encoder-planted", "--user", "u4", "--item", "i3"], 2, "no tasks to score"),
    (["like", "--user", "u4"], 2, "--item"),
]


@pytest.mark.parametrize(("arguments", "code", "text"), WRONG)
def test_wrong_input_is_one_line_and_leaves_no_file(shop, capsys, tmp_path, arguments, code, text):
    name, *rest = arguments
    given = [*shop, *rest] if "--json" in rest else [*shop, "--json", "why.json", *rest]
    got, out, err = run(capsys, name, *given)
    assert got == code and text in err and err.count("\n") == 1 and err.startswith("genre: ") and out == ""
    assert not (tmp_path / "why.json").exists()
