"""The history cache never changes an answer: an engine with it against one without, over whatever a service sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import genre
from architectures import CAUSAL, config_of, write_model
from builders import LIKE, NEXT, RATING, publish_stirred, recipe
from genre.engine import Engine, Request
from genre.engine.history_store import HistoryStore
from genre.errors import InputError
from genre.modules.base.loading import IN_PARTS
from genre.modules.base.prefixes import takes_prefixes

CLOSE = 1e-5


@pytest.fixture(scope="module")
def registry(tiny, trained, log, tmp_path_factory):
    """Adapters of every kind that decides what may be shared, on the planted log."""
    folder = tmp_path_factory.mktemp("kept")
    registry = genre.Registry(folder / "registry")
    encoder = trained.registry.resolve("encoder-planted")
    registry.publish(trained.registry.fetch(encoder), encoder.manifest)
    base = genre.Base.load(str(tiny))
    made = {
        "like": ((LIKE,), {}),
        "other": ((LIKE,), {}),
        "next": ((NEXT,), {}),
        "joint": ((LIKE, RATING, NEXT), {}),
        "top": ((LIKE,), {"adapter": {"layers": [1]}}),
        "top-next": ((NEXT,), {"adapter": {"layers": [1]}}),
        "both": ((LIKE,), {"sequence": {"item": "both"}}),
        "words": ((LIKE,), {"sequence": {"item": "text"}, "encoder": {"use": "none"}}),
        "items": ((NEXT,), {"sequence": {"feedback": "none"}}),
        "blocks": ((LIKE,), {"sequence": {"window": "blocks"}}),
    }
    for seed, (name, (tasks, sections)) in enumerate(made.items()):
        wanted = recipe(tiny, *tasks, name=name, **sections)
        ref = None if name == "words" else "encoder-planted"
        publish_stirred(registry, wanted, log, base, folder / name, seed=seed, encoder=ref)
    return registry


@pytest.fixture(scope="module")
def plain(tiny, registry, log):
    with Engine(genre.Base.load(str(tiny)), registry, lanes=12, data=log) as engine:
        yield engine


@pytest.fixture
def cached(base, registry, log):
    with Engine(base, registry, lanes=12, data=log, history_cache=2**24) as engine:
        yield engine


def values(answers):
    assert not [answer.error for answer in answers if answer.error]
    return [np.array([scored.score for scored in answer.results]) for answer in answers]


def ordered(answers):
    """Scores by item, so that equal scores in another order are no difference."""
    return [dict(sorted((scored.item_id, scored.score) for scored in answer.results)) for answer in answers]


def agree(plain, cached, requests):
    for one, other in zip(ordered(plain.score(requests)), ordered(cached.score(requests)), strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=CLOSE, atol=CLOSE)


@pytest.fixture
def seen(cached, monkeypatch):
    """The tokens of a row of each pass."""
    run, seen = cached.base.run, []
    monkeypatch.setattr(cached.base, "run", lambda x, *rest, **more: seen.append(x.shape[1]) or run(x, *rest, **more))
    return seen


def test_a_user_who_comes_back_costs_the_new_events_alone(plain, cached, log, seen):
    history = log.history("u1")[:10]
    for end in (6, 7, 9):
        agree(plain, cached, [Request("like", history=history[:end], user_id="u1", candidates=["i1", "i2"])])
    whole = seen[0]
    assert seen == [whole, 2 + 2, 4 + 2]  # two tokens an event, one a candidate
    agree(plain, cached, [Request("like", history=history[:9], user_id="u1", candidates=["i5"])])
    assert seen[3:] == [1] and cached.history_store.counters.hits == 3


def test_a_window_that_moves_in_blocks_leaves_a_prefix(plain, cached, registry, log, seen):
    """Sixteen events are read at most, the one asked for among them."""
    assert registry.resolve("blocks").manifest.sequence["window"] == "blocks"
    assert "window" not in registry.resolve("like").manifest.sequence
    history, whole = log.history("u1"), {}
    for name in ("like", "blocks"):
        seen.clear()
        for end in range(14, 25):
            agree(plain, cached, [Request(name, history=history[:end], user_id="u1", candidates=["i1"])])
        whole[name] = [tokens > 3 for tokens in seen]
    assert whole["like"] == [True, False] + 9 * [True]
    assert whole["blocks"] == [True, False, True] + 7 * [False] + [True]


def cut(monkeypatch, tokens):
    """Pieces of so few tokens that the histories here have several."""
    monkeypatch.setattr("genre.engine.histories.PIECE", tokens)
    monkeypatch.setattr("genre.engine.histories.PIECE_BYTES", 1)


class Shop:
    """Users whose histories grow, change and are asked about in every way, drawn from a seed."""

    names = ("like", "other", "next", "joint", "top", "top-next", "both", "words", "items", "blocks")

    def __init__(self, log, seed):
        self.draw = np.random.default_rng(seed)
        self.items = log.catalogue.item_ids
        self.histories = {f"u{user}": log.history(f"u{user}")[:3] for user in range(6)}

    def item(self):
        if self.draw.random() < 0.15:
            return {"title": f"new {self.draw.integers(3)}", "item_id": f"x{self.draw.integers(3)}"}
        return str(self.draw.choice(self.items))

    def happen(self):
        """One or a few more events of a user; now and then an old one changes, or goes, or several are shown together."""
        history = self.histories[str(self.draw.choice(list(self.histories)))]
        for _ in range(self.draw.integers(1, 3)):
            history.append({"item": self.item(), "rating": [None, 1.0, 5.0][self.draw.integers(3)]})
        kind = self.draw.random()
        place = int(self.draw.integers(len(history)))
        if kind < 0.1:
            history[place] = {**history[place], "rating": 3.0}
        elif kind < 0.2:
            del history[place]
        elif kind < 0.35:
            for event in history[-2:]:
                event["impression_id"] = 7 if kind < 0.25 else str(self.draw.integers(1e9))

    def request(self):
        name = str(self.draw.choice(self.names))
        user = str(self.draw.choice(list(self.histories)))
        task = str(self.draw.choice(["like", "rating", "next_item"])) if name == "joint" else None
        fields = {"history": list(self.histories[user]), "task": task}
        if self.draw.random() < 0.7:
            fields["user_id"] = user
        if self.draw.random() < 0.5:
            fields["user"] = {"age": int(self.draw.integers(2))}
        if "next" in name or name == "items" or task == "next_item":
            return Request(name, k=int(self.draw.integers(1, 40)), exclude_seen=False, **fields)
        return Request(name, candidates=[self.item() for _ in range(self.draw.integers(1, 30))], **fields)


@pytest.mark.parametrize(
    ("capacity", "tokens", "piece", "seed"), [(2**24, 8192, 32, 1), (2**24, 200, 3, 2), (400_000, 8192, 8, 3)]
)
def test_whatever_is_asked_the_answers_are_those_without_a_cache(
    plain, base, registry, log, monkeypatch, capacity, tokens, piece, seed
):
    cut(monkeypatch, piece)
    shop = Shop(log, seed)
    with Engine(base, registry, lanes=4, host=2, data=log, history_cache=capacity, batch_tokens=tokens) as cached:
        for _ in range(16):
            shop.happen()
            agree(plain, cached, [shop.request() for _ in range(shop.draw.integers(1, 9))])
        counters = cached.history_store.counters
        assert counters.hits > 5 and counters.misses > 15 and counters.device_bytes <= capacity
        assert (counters.evictions > 5) is (capacity < 2**20)


def grow(log, name, user="u1", ends=(6, 8, 9), **fields):
    history = log.history(user)
    return [[Request(name, history=history[:end], user_id=user, candidates=["i1", "i2"], **fields)] for end in ends]


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_states_in_fewer_bits_stay_close(plain, base, registry, log, storage):
    store = HistoryStore(2**24, storage=storage)
    with Engine(base, registry, data=log, history_cache=store) as cached:
        for requests in grow(log, "like"):
            for one, other in zip(values(plain.score(requests)), values(cached.score(requests)), strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-2)
        assert store.counters.hits == 2
    assert len(store) == 0  # closed with the engine


@pytest.mark.parametrize(
    ("options", "close"), [({"dtype": "bfloat16"}, 2e-2), ({"quantization": "nf4"}, 1e-4), ({"quantization": "int8"}, 2e-2)]
)
def test_other_precisions_answer_as_without_a_cache(tiny, registry, log, options, close):
    if "quantization" in options:
        pytest.importorskip("bitsandbytes", reason="int8 and nf4 are its")
    given = {**options, **({"dtype": torch.bfloat16} if "dtype" in options else {})}
    one, other = (genre.Base.load(str(tiny), **given) for _ in range(2))
    with Engine(one, registry, data=log) as plain, Engine(other, registry, data=log, history_cache=2**24) as cached:
        for requests in [*grow(log, "like"), *grow(log, "joint", task="rating")]:
            for a, b in zip(values(plain.score(requests)), values(cached.score(requests)), strict=True):
                np.testing.assert_allclose(a, b, rtol=close, atol=close)
        assert cached.history_store.counters.hits == 4


IN_ONE = [name for name, (kind, _) in CAUSAL.items() if kind.removesuffix("Config").lower() in IN_PARTS]


@pytest.mark.parametrize("name", IN_ONE)
def test_every_kind_of_base_goes_on_from_what_is_kept(name, tmp_path, log):
    """Grouped heads, sliding windows of eight tokens in some layers, scaled and missing positions."""
    kind, options = CAUSAL[name]
    folder = write_model(tmp_path / "base", config_of(kind, options))
    one, other = (genre.Base.load(str(folder)) for _ in range(2))
    own = genre.Registry(tmp_path / "registry")
    wanted = recipe(folder, LIKE, name="words", sequence={"item": "text"}, encoder={"use": "none"}, data={"max_events": 8})
    publish_stirred(own, wanted, log, one, tmp_path / "words")
    with Engine(one, own, data=log) as plain, Engine(other, own, data=log, history_cache=2**24) as cached:
        for requests in grow(log, "words", ends=(3, 5, 6)):
            agree(plain, cached, requests)
        assert cached.history_store.counters.hits == 2


def test_a_swap_answers_by_the_new_version_and_drops_the_old_one(plain, cached, log):
    first, second = grow(log, "served", ends=(6, 8))
    cached.swap("served", "like")
    agree_as("like", plain, cached, first)
    held = len(cached.history_store)
    cached.swap("served", "other")
    assert held == 1 and len(cached.history_store) == 0
    agree_as("other", plain, cached, second)
    cached.swap("served", "like")
    agree_as("like", plain, cached, second)
    cached.unload("served")
    assert len(cached.history_store) == 0


def agree_as(name, plain, cached, requests):
    wanted = plain.score([replace(request, adapter=name) for request in requests])
    for one, other in zip(values(wanted), values(cached.score(requests)), strict=True):
        np.testing.assert_allclose(one, other, rtol=CLOSE, atol=CLOSE)


def test_more_candidates_than_a_row_holds_read_the_history_once(plain, base, registry, log):
    with Engine(base, registry, data=log, history_cache=2**24, batch_tokens=60) as cached:
        items = log.catalogue.item_ids
        request = Request("like", history=log.history("u1")[:12], candidates=list(items) * 5)
        agree_as("like", plain, cached, [request])
        assert cached.history_store.counters.misses == 1 and cached.history_store.counters.hits > 1


def test_a_user_who_is_forgotten_during_a_call_leaves_nothing(cached, log, monkeypatch):
    (request,), _, _ = grow(log, "like")
    run = cached.base.run

    def forget(*given, **more):
        cached.history_store.forget("u1")
        return run(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(cached.base, "run", forget)
        values(cached.score([request]))
    assert len(cached.history_store) == 0
    values(cached.score([request]))
    assert len(cached.history_store) == 1


def test_what_has_no_prefix_is_answered_without_a_cache(bert, text_bases):
    assert not takes_prefixes(bert)
    spread = genre.Base.load(str(text_bases / "llama"))
    assert takes_prefixes(spread)
    spread.model.config.model_type = "unheard of"
    assert not takes_prefixes(spread)


def test_layers_that_no_version_adapts_are_kept_once_for_all(plain, cached, log, monkeypatch):
    run, passes = cached.base.run, []
    monkeypatch.setattr(
        cached.base, "run", lambda x, *rest, **more: passes.append((*rest[:2], x.shape[1])) or run(x, *rest, **more)
    )
    history = log.history("u1")
    fields = {"history": history[:9], "user_id": "u1"}
    asked = [Request("top", candidates=["i1"], **fields)], [Request("top-next", k=3, exclude_seen=False, **fields)]
    agree(plain, cached, asked[0])
    whole = passes[0][2]
    assert passes == [(0, 2, whole)]
    agree(plain, cached, asked[1])
    assert passes[1:] == [(0, 1, 1), (1, 2, whole - 1)]  # the last token is read, so it is computed
    agree(plain, cached, [replace(asked[1][0], history=history[:10])])
    assert passes[3:] == [(0, 2, 2)]
    for name, end in (("top", 6), ("top-next", 8)):
        more = {"candidates": ["i1"]} if name == "top" else {"k": 3, "exclude_seen": False}
        agree(plain, cached, [Request(name, history=log.history("u2")[:end], user_id="u2", **more)])
    assert passes[-2][:2] == (0, 1) and passes[-2][2] == 4 and passes[-1][:2] == (1, 2)
    keys = {key[0] for key in cached.history_store._found}
    assert keys == {"below layer 1", *(cached.resident()[name] for name in ("top", "top-next"))}


@pytest.mark.parametrize("size", [-1, True, 1.5, "2GiB", 10**30])
def test_a_size_that_is_none_is_refused_and_leaves_the_base_bare(base, registry, size):
    with pytest.raises(InputError, match="history.cache: got"):
        Engine(base, registry, history_cache=size)
    base.need_bare()


def test_a_cache_of_no_bytes_keeps_nothing(plain, base, registry, log):
    with Engine(base, registry, data=log, history_cache=0) as cached:
        for requests in grow(log, "like"):
            agree(plain, cached, requests)
        assert len(cached.history_store) == 0


def test_an_old_event_that_was_edited_is_read_anew(plain, cached, log):
    history = [{"item_id": event["item_id"], "rating": 5.0} for event in log.history("u1")[:8]]
    new = {"item": {"title": "war 99"}, "rating": 5.0}
    together = [{**event, "impression_id": "a"} for event in history[4:6]]
    others = [
        history,
        [*history[:5], {**history[5], "rating": 1.0}, *history[6:]],
        [*history[:5], {**history[5], "item_id": "i29"}, *history[6:]],
        [*history[:4], *together, *history[6:]],
        [*history[:5], new, *history[6:]],
        [*history[:5], {**new, "item": {"title": "love 98"}}, *history[6:]],
    ]
    found = []
    for events in [*others, *others[::-1]]:
        request = Request("like", history=events, user_id="u1", candidates=["i1", "i2"])
        agree(plain, cached, [request])
        found.append(values(plain.score([request]))[0])
    assert min(np.abs(one - other).max() for i, one in enumerate(found[:6]) for other in found[:i]) > 10 * CLOSE
    assert cached.history_store.counters.hits == 11


def test_pieces_of_a_history_that_changed_are_not_found_behind_it(plain, cached, log, monkeypatch, seen):
    """The last events are the same again, and pieces of them are still there, but what they saw is not."""
    cut(monkeypatch, 3)
    history = [{"item_id": event["item_id"], "rating": 5.0} for event in log.history("u1")[:10]]
    edited = [*history[:3], {**history[3], "rating": 1.0}, *history[4:]]
    for events in (history, edited, history[:6], history):
        agree(plain, cached, [Request("like", history=events, user_id="u1", candidates=["i1"])])
    assert (seen[0] - 21) % 3 == 0  # six events end with a piece
    # The feedback of the fourth event and what follows; that again for six events; what follows these.
    assert seen[1:] == [1 + 6 * 2 + 1, 1 + 2 * 2 + 1, 4 * 2 + 1]


def test_the_end_of_a_history_leaves_first(cached, log, monkeypatch):
    cut(monkeypatch, 4)
    for requests in [*grow(log, "like"), *grow(log, "like")]:
        values(cached.score(requests))
        places = [key[-1] for key in cached.history_store._shelves[0].entries]
        assert places == sorted(places, reverse=True) and len(places) > 5
