"""The engine: mixed batches against one adapter at a time, branches, swaps under load, eviction, filters."""

import threading

import numpy as np
import pytest
import torch

import genre
from builders import LIKE, NEXT, RATING, publish_stirred, recipe
from genre.data.sequences.batches import collate
from genre.engine import Engine, Request
from genre.engine.versions import read_adapter
from genre.errors import InputError, NotFoundError, RequestError
from genre.jobs.loading import restore
from genre.training.assembly import assemble
from genre.training.prediction import outputs

CLOSE = 1e-4
TASKS = ("like", "rating", "next_item")
BARE = ("bare-next", "bare-like", "bare-both", "bare-text")
"""Adapters over events without feedback slots."""


@torch.no_grad()
def alone(registry, log, base, request):
    """A request by one adapter's own layers; each candidate of a feedback task is a full sequence of its own."""
    loaded = read_adapter(registry, request.adapter, base)
    model, builder, _ = restore(loaded, log, base)
    (task,) = loaded.tasks.values()
    user = log.user_code(request.user_id)
    start, end = int(log.user_offsets[user]), int(log.user_offsets[user + 1])
    start = max(start, end - builder.layout.max_events + 1)
    items, feedback = list(log.item_codes[start:end]), list(builder.feedback[start:end])
    codes = log.catalogue.codes(list(request.candidates))

    def last(code):
        row = builder.layout.build(
            builder.prefix(user),
            np.array([*items, code]),
            np.array([*feedback, 0]),
            texts=builder.texts,
            events=np.array([-1] * len(items) + [0]),
        )
        slot = ("feedback", np.array([code])) if task.kind == "next_item" else ("item", np.array([0.0]))
        batch = collate([row], {task.name: slot})
        return model.heads[task.name].score(model.output(task.name, model.hidden(batch), batch))[0]

    try:
        if task.kind == "next_item":
            return last(int(codes[0]))[codes].numpy()
        return np.array([float(last(int(code))) for code in codes])
    finally:
        model.release()


def values(response):
    assert response.error is None, response.error
    return np.array([scored.score for scored in response.results])


def ids(response):
    assert response.error is None, response.error
    return [scored.item_id for scored in response.results]


@pytest.fixture
def engine(base, trained):
    with Engine(base, trained.registry, lanes=8, data=trained.log) as engine:
        yield engine


@pytest.fixture(scope="session")
def varied(tiny, trained, tmp_path_factory):
    """A registry with adapters of several ranks and targets beside the trained encoder; more can be added by `add`."""
    folder, base = tmp_path_factory.mktemp("varied"), genre.Base.load(str(tiny))
    numbers = iter(range(1000))

    def add(task, name, **adapter):
        number = next(numbers)
        wanted = recipe(tiny, task, name=name, adapter=adapter)
        return publish_stirred(
            trained.registry, wanted, trained.log, base, folder / str(number), seed=number, encoder="encoder-planted"
        )

    add(LIKE, "rank2", rank=2)
    add(RATING, "rank8", rank=8, targets=["q_proj", "v_proj"])
    add(NEXT, "rank5", rank=5, targets=["down_proj", "k_proj"], layers=[1])
    add(LIKE, "heads", kind="head_only")
    add(LIKE, "rank3", kind="rslora", rank=3)
    text = recipe(tiny, LIKE, name="text", sequence={"item": "text"}, encoder={"use": "none"})
    publish_stirred(trained.registry, text, trained.log, base, folder / "text", seed=77)
    for name, task, item in zip(BARE, (NEXT, LIKE, LIKE, LIKE), ("token", "token", "both", "text"), strict=True):
        encoder = "encoder-planted" if item != "text" else None
        sections = {} if encoder else {"encoder": {"use": "none"}}
        bare = recipe(tiny, task, name=name, sequence={"item": item, "feedback": "none"}, **sections)
        publish_stirred(trained.registry, bare, trained.log, base, folder / name, seed=len(name), encoder=encoder)
    return add


def mixed(names, users=("u0", "u7", "u12", "u33"), candidates=("i0", "i29", "i4", "i11")):
    return [Request(name, user_id=user, candidates=candidates) for user in users for name in names]


def test_a_mixed_batch_equals_one_adapter_runs(engine, base, trained):
    requests = mixed([f"{task}@production" for task in TASKS])
    answers = engine.score(requests)
    engine.close()
    for request, answer in zip(requests, answers, strict=True):
        assert answer.digest == trained.registry.resolve(request.adapter).digest
        assert np.abs(values(answer) - alone(trained.registry, trained.log, base, request)).max() < CLOSE


def test_ranks_targets_and_kinds_mix_in_one_batch(base, trained, varied):
    requests = mixed(["rank2", "rank8", "rank5", "heads", "rank3", "text", "like", *BARE], users=("u1", "u20"))
    with Engine(base, trained.registry, data=trained.log) as engine:
        answers = engine.score(requests)
    for request, answer in zip(requests, answers, strict=True):
        wanted = alone(trained.registry, trained.log, base, request)
        assert wanted.std() > 1e-3
        assert np.abs(values(answer) - wanted).max() < CLOSE, request.adapter


@pytest.mark.parametrize("tokens", [1, 90, 300])
def test_chunks_of_branches_change_nothing(engine, varied, tokens):
    requests = mixed(["like", "rating", "bare-like", "bare-both"], candidates=tuple(f"i{i}" for i in range(30)))
    whole = [values(answer) for answer in engine.score(requests)]
    engine.passes.batch_tokens = tokens
    for one, other in zip(whole, engine.score(requests), strict=True):
        assert np.abs(one - values(other)).max() < CLOSE


@pytest.mark.parametrize("task", (*TASKS, *BARE))
def test_the_last_event_scores_as_in_evaluation(base, trained, varied, task):
    """Where all of a user's history fits half a window, serving and evaluation are one arithmetic."""
    log = genre.Interactions.from_frame(
        trained.log.frame.group_by("user_id", maintain_order=True).head(8).drop("row"),
        items=trained.log.catalogue.frame,
        users=trained.log.users,
        name="short",
    )
    loaded = read_adapter(trained.registry, task, base)
    assert loaded.layout.max_events >= 2 * 8  # windows of evaluation overlap by half
    model, builder, chosen = restore(loaded, log, base)
    found = {}
    for _, events, scores in outputs(model, builder, chosen, 2, max_events=loaded.layout.max_events, batch_tokens=2048):
        found |= dict(zip(events.tolist(), scores, strict=True))
    model.release()
    requests, wanted = [], []
    for user, end in zip(log.user_ids, log.user_offsets[1:], strict=True):
        history, last = log.history(user), int(end) - 1
        if last in found:
            person = log.users.row(log.user_code(user), named=True)
            item = history[-1]["item_id"]
            requests.append(Request(task, history=history[:-1], user=person, candidates=[item]))
            wanted.append(found[last][log.item_codes[last]] if task in ("next_item", "bare-next") else found[last])
    assert len(wanted) > 20
    with Engine(base, trained.registry) as engine:
        got = [values(answer)[0] for answer in engine.score(requests)]
    assert np.abs(np.array(got) - wanted).max() < CLOSE


# --- what a request may ask ------------------------------------------------------------------------------------------


def test_candidates_come_back_in_the_order_asked_and_k_best_first(engine):
    candidates = ["i7", "i3", "i29", "i3", "i0"]
    asked, best = engine.score([Request("like", user_id="u2", candidates=candidates, k=k) for k in (None, 3)])
    assert ids(asked) == candidates and values(asked)[1] == pytest.approx(values(asked)[3], abs=1e-6)
    order = np.argsort(-values(asked), kind="stable")[:3]
    assert values(best).tolist() == sorted(values(best), reverse=True)
    assert np.abs(values(best) - values(asked)[order]).max() < 1e-6


@pytest.mark.parametrize("task", ["like", "next_item"])
def test_seen_allowed_and_denied_items(engine, log, task):
    history = log.history("u2")[:6]
    seen = {event["item_id"] for event in history}
    person = {"user": {"age": 22}, "history": history}
    every = set(log.catalogue.item_ids)
    fresh = sorted(every - seen)
    requests = [
        Request(task, k=100, **person),
        Request(task, k=100, exclude_seen=False, **person),
        Request(task, k=100, deny=fresh[:3], **person),
        Request(task, k=100, allow=[*fresh[:4], *sorted(seen)], **person),
        Request(task, candidates=[*fresh[:4], *sorted(seen)], deny=[fresh[0], "no such item"], allow=fresh[:2], **person),
        Request(task, candidates=sorted(seen), **person),
        Request(task, k=5, allow=[], **person),
    ]
    found = [set(ids(answer)) for answer in engine.score(requests)]
    assert found[0] == every - seen and found[1] == every
    assert found[2] == every - seen - set(fresh[:3])
    assert found[3] == set(fresh[:4])
    assert found[4] == {fresh[1]}
    assert found[5] == seen  # who names candidates gets them
    assert found[6] == set()


def test_a_user_id_is_its_history_and_columns(engine, log):
    person = log.users.row(log.user_code("u5"), named=True)
    by_id, by_hand, empty = engine.score(
        [
            Request("like", user_id="u5", candidates=["i0", "i1"]),
            Request("like", history=log.history("u5"), user=person, candidates=["i0", "i1"]),
            Request("like", history=[], candidates=["i0", "i1"]),
        ]
    )
    assert np.abs(values(by_id) - values(by_hand)).max() < 1e-6
    assert np.isfinite(values(empty)).all()


def test_unknown_user_columns_say_unknown_and_strange_ones_are_ignored(engine):
    plain, strange, said = engine.score(
        [
            Request("like", history=[], candidates=["i0"]),
            Request("like", history=[], user={"shoe": 43}, candidates=["i0"]),
            Request("like", history=[], user={"age": "unknown"}, candidates=["i0"]),
        ]
    )
    assert values(plain)[0] == pytest.approx(values(strange)[0]) and values(plain)[0] == pytest.approx(values(said)[0])


@pytest.mark.parametrize("name", ["like", "next_item", "text"])
def test_items_may_be_given_by_their_columns(engine, varied, name):
    """As candidates, in the history, twice the same, and beside catalogue items whose scores they leave alone."""
    new, other = {"title": "war 99"}, {"title": "love 98"}
    history = [{"item_id": "i3", "rating": 5.0}, {"item": new, "rating": 2.0}]
    both, plain, wrong = engine.score(
        [
            Request(name, history=history, candidates=["i1", new, other, new]),
            Request(name, history=history, candidates=["i1"]),
            Request(name, history=history, candidates=[{"colour": "red"}]),
        ]
    )
    got = values(both)
    assert ids(both) == ["i1", "war 99", "love 98", "war 99"] and np.isfinite(got).all()
    assert got[1] == pytest.approx(got[3], abs=1e-5) and abs(got[1] - got[2]) > 1e-6
    assert got[0] == pytest.approx(values(plain)[0], abs=CLOSE)
    assert "unknown column" in wrong.error and "colour" in wrong.error


def test_an_inline_copy_of_a_text_item_scores_as_the_item(engine, varied, log):
    title = log.catalogue.titles()[4]
    (answer,) = engine.score([Request("text", user_id="u3", candidates=["i4", {"title": title}])])
    assert values(answer)[0] == pytest.approx(values(answer)[1], abs=1e-6)


RATED = {"item_id": "i0", "rating": 5}
BAD = [
    ({"adapter": "no-such", "history": [], "candidates": ["i0"]}, "no-such"),
    ({"adapter": "like", "candidates": ["i0"]}, "history or a user_id"),
    ({"adapter": "like", "history": []}, "candidates or k"),
    ({"adapter": "like", "history": [], "k": 0}, "k cannot be used"),
    ({"adapter": "like", "history": [], "k": 1, "task": "rating"}, "unknown task"),
    ({"adapter": "like", "user_id": "nobody", "k": 1}, "nobody"),
    ({"adapter": "like", "history": [{"rating": 5}], "k": 1}, "names no item"),
    ({"adapter": "like", "history": [{"item_id": "ghost", "rating": 5}], "k": 1}, "ghost"),
    ({"adapter": "like", "history": [{"item_id": "i0", "rating": "good"}], "k": 1}, "is not a number"),
    ({"adapter": "like", "history": [{"item_id": "i0", "stars": 5}], "k": 1}, "history[0] has an unknown field: got stars"),
    ({"adapter": "like", "history": [{"item_id": "i0", "rating": 5, "Rating": 5}], "k": 1}, "unknown field: got Rating"),
    ({"adapter": "next_item", "history": [RATED, {"item_id": "i1"}], "k": 1}, "history[1] has no rating: got item_id; expected"),
    ({"adapter": "like", "history": [{"item_id": "i0", "click": 1}], "k": 1}, "history[0] has no rating: got item_id, click"),
    ({"adapter": "like", "history": [], "candidates": ["ghost"]}, "ghost"),
    ({"adapter": "like", "history": [], "candidates": [{}]}, "an item cannot be read"),
    ({"adapter": "encoder-planted", "history": [], "k": 1}, "behaviour encoder"),
    (5, "a request is not a JSON object: got 5"),
]


def test_a_bad_request_fails_alone(engine):
    """Every kind of bad request in one call, good ones between them."""
    requests = []
    for number, (bad, _) in enumerate(BAD):
        requests += [bad, Request("rating", user_id=f"u{number}", candidates=["i1", "i2"], id=str(number))]
    answers = engine.score(requests)
    assert len(answers) == len(requests)
    for (_, text), answer in zip(BAD, answers[::2], strict=True):
        assert answer.error is not None and text in answer.error and not answer.results
    for number, answer in enumerate(answers[1::2]):
        assert answer.id == str(number) and len(values(answer)) == 2
    assert engine.occupancy()["requests"] == 0


def test_no_request_is_no_response(engine):
    assert engine.score([]) == []


# --- who is resident -------------------------------------------------------------------------------------------------


def test_a_swap_under_load_loses_no_request_and_no_score_is_of_another_version(base, trained, varied):
    registry = trained.registry
    versions = [varied(LIKE, "hot", rank=rank) for rank in (4, 4, 8)]
    request = Request("hot", user_id="u9", candidates=["i0", "i13", "i22"])
    steady = Request("rating", user_id="u9", candidates=["i0", "i13", "i22"])
    answers, failures, begin = [], [], threading.Barrier(9)
    with Engine(base, registry, lanes=6, data=trained.log) as engine:
        wanted = {}
        for version in versions:
            assert engine.swap("hot", version.ref) == version.digest
            wanted[version.digest] = values(engine.score([request])[0])
        still = values(engine.score([steady])[0])

        def work():
            begin.wait()
            try:
                for _ in range(12):
                    answers.append(engine.score([request, steady, request]))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        begin.wait()
        for turn in range(20):
            engine.swap("hot", versions[turn % 3].ref)
        for thread in threads:
            thread.join()
        assert engine.resident()["hot"] == versions[19 % 3].digest
    assert not failures and len(answers) == 96
    for first, other, second in answers:
        for answer in (first, second):
            assert np.abs(values(answer) - wanted[answer.digest]).max() < CLOSE
        assert np.abs(values(other) - still).max() < CLOSE
    digests = list(wanted)
    assert min(np.abs(wanted[a] - wanted[b]).max() for a in digests for b in digests if a != b) > 10 * CLOSE


def test_a_failed_swap_leaves_the_old_version_serving(engine):
    before = engine.load("like")
    request = Request("like", user_id="u0", candidates=["i0"])
    first = values(engine.score([request])[0])
    with pytest.raises(NotFoundError):
        engine.swap("like", "like:ffffffffffff")
    answer = engine.score([request])[0]
    assert answer.digest == before and values(answer) == pytest.approx(first, abs=1e-6)


def test_a_promotion_is_served_after_a_swap_only(base, trained, varied):
    one, two = varied(LIKE, "promoted", rank=2), varied(LIKE, "promoted", rank=2)
    trained.registry.promote(one.ref, "champion")
    with Engine(base, trained.registry, data=trained.log) as engine:
        assert engine.load("promoted@champion") == one.digest
        trained.registry.promote(two.ref, "champion")
        assert engine.load("promoted@champion") == one.digest
        assert engine.swap("promoted@champion") == two.digest
        assert engine.resident() == {"promoted@champion": two.digest} and engine.occupancy()["lanes"] == 1


def test_the_least_recently_used_adapter_is_evicted_but_for_pinned_ones(base, trained, varied):
    with Engine(base, trained.registry, lanes=2, data=trained.log) as engine:
        engine.load("like", pin=True)
        engine.load("rating")
        engine.load("next_item")
        assert set(engine.resident()) == {"like", "next_item"}
        answers = [engine.score([Request("rating", user_id="u0", candidates=["i0"])])[0] for _ in range(2)]
        assert set(engine.resident()) == {"like", "rating"} and values(answers[0]) == values(answers[1])
        assert engine.score([Request("next_item", user_id="u0", k=2)])[0].error is None
        engine.load("rank2", pin=True)
        with pytest.raises(InputError, match="every lane is pinned: got 2 lanes"):
            engine.load("rating")
        (refused,) = engine.score([Request("rating", user_id="u0", k=1)])
        assert "every lane is pinned" in refused.error
        engine.unload("rank2")
        engine.load("rating")
        with pytest.raises(RequestError, match="no version is loaded under that reference: got rank2"):
            engine.unload("rank2")


def test_without_pins_the_one_used_longest_ago_goes(base, trained):
    with Engine(base, trained.registry, lanes=2) as engine:
        engine.load("like")
        engine.load("rating")
        engine.score([Request("like", history=[], candidates=["i0"])])
        engine.load("next_item")
        assert set(engine.resident()) == {"like", "next_item"}


def test_names_of_one_version_share_a_lane(engine):
    assert engine.load("like") == engine.load("like@production") == engine.load("like@latest")
    assert engine.occupancy()["lanes"] == 1 and len(engine.resident()) == 3


def test_adapters_of_one_encoder_share_its_tables(engine):
    residents = [engine.cache.acquire(task) for task in TASKS]
    engine.cache.release(residents)
    assert len({id(resident.loaded.shared) for resident in residents}) == 1
    assert len({id(resident.space) for resident in residents}) == 1


# --- the base --------------------------------------------------------------------------------------------------------


def test_close_restores_the_bare_base_bit_for_bit(base, trained):
    names = [name for name, _ in base.model.named_modules()]
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = base.hidden(base.embedding(ids))
        with Engine(base, trained.registry, data=trained.log) as engine:
            engine.score(mixed(TASKS))
            assert torch.equal(base.hidden(base.embedding(ids)), wanted)  # a batch that is routed nowhere
            assert base.occupied_by == "an engine"
        assert torch.equal(base.hidden(base.embedding(ids)), wanted)
    assert [name for name, _ in base.model.named_modules()] == names
    after = base.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert base.occupied_by is None
    engine.close()  # twice is harmless


def test_a_base_is_lent_once(base, trained):
    with Engine(base, trained.registry) as engine:
        with pytest.raises(InputError, match="the base already carries adapters: got an engine; expected a bare base"):
            Engine(base, trained.registry)
        with pytest.raises(InputError, match="the base already carries adapters: got an engine"):
            assemble(recipe(trained.base, LIKE, encoder={"text": False}), trained.log, base)
        assert engine.score([Request("like", history=[], candidates=["i0"])])[0].error is None
    model, _, _ = restore(read_adapter(trained.registry, "like", base), trained.log, base)
    with pytest.raises(InputError, match="got one adapter's model"):
        Engine(base, trained.registry)
    model.release()
    with pytest.raises(InputError, match="lanes: got 0; expected at least 1"):
        Engine(base, trained.registry, lanes=0)


def test_a_version_is_not_restored_on_an_engines_base(engine, base, trained):
    with pytest.raises(InputError, match="the base already carries adapters: got an engine"):
        restore(read_adapter(trained.registry, "like", base), trained.log, base)


def test_a_released_head_only_adapter_leaves_the_base_free(base, trained, varied):
    model, _, _ = restore(read_adapter(trained.registry, "heads", base), trained.log, base)
    model.release()
    assert base.occupied_by is None


def test_refs_choose_the_version_and_responses_keep_the_requests_adapter(engine, trained):
    exact = [trained.registry.resolve(name).ref for name in ("rating", "like")]
    requests = [Request(name, user_id="u0", candidates=["i0", "i4"]) for name in ("like@production", "no-such")]
    by_refs = engine.score(requests, refs=exact)
    plain = engine.score([Request(ref, user_id="u0", candidates=["i0", "i4"]) for ref in exact])
    assert [answer.adapter for answer in by_refs] == ["like@production", "no-such"]
    for one, other in zip(by_refs, plain, strict=True):
        assert one.digest == other.digest and np.abs(values(one) - values(other)).max() < 1e-6
    with pytest.raises(InputError, match="refs: got 1 references; expected one for each of 2 requests"):
        engine.score(requests, refs=exact[:1])


def test_a_call_takes_turns_where_its_candidates_are_many(trained, base, monkeypatch):
    asked = [Request("next_item@production", user_id=f"u{user}", k=3, exclude_seen=False) for user in range(8)]
    with Engine(base, trained.registry, data=trained.log) as engine:
        whole, turns, run = engine.score(asked), [], engine.passes.run
        monkeypatch.setattr("genre.engine.core.TURN_CODES", 50)
        monkeypatch.setattr(engine.passes, "run", lambda jobs, tokens: (turns.append(len(jobs)), run(jobs, tokens)))
        parts = engine.score(asked)
    assert turns == [2, 2, 2, 2]  # of 30 items a user
    for one, other in zip(whole, parts, strict=True):
        assert [item.item_id for item in one.results] == [item.item_id for item in other.results]
