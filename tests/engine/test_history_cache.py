"""The history cache never changes an answer: an engine with it against one without, over whatever a service sees."""

import numpy as np
import pytest

import genre
from builders import LIKE, NEXT, RATING, publish_stirred, recipe
from genre.engine import Engine, Request

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


def spared(engine):
    return engine.history_store.counters.hits, engine.history_store.counters.tokens_spared


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


@pytest.mark.parametrize(("capacity", "tokens", "seed"), [(2**24, 8192, 1), (2**24, 200, 2), (300_000, 8192, 3)])
def test_whatever_is_asked_the_answers_are_those_without_a_cache(plain, base, registry, log, capacity, tokens, seed):
    shop = Shop(log, seed)
    with Engine(base, registry, lanes=4, host=2, data=log, history_cache=capacity, batch_tokens=tokens) as cached:
        for _ in range(25):
            shop.happen()
            agree(plain, cached, [shop.request() for _ in range(shop.draw.integers(1, 9))])
        counters = cached.history_store.counters
        assert counters.hits > 10 and counters.misses > 15 and counters.device_bytes <= capacity
        assert (counters.evictions > 5) is (capacity < 2**20)
