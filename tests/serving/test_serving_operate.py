"""Operating: who may, what moves, what is followed, what is refused so that nothing breaks."""

import io
import json
import shutil
from pathlib import Path

import pytest
from serving_fakes import ADMIN, TOKEN, add_version, copy_of, open_engine, serving, wait_until

import genre
from builders import LIKE, RATING
from fakes import make_base

ACTS = ("load", "unload", "promote", "rollback", "canary")
PLAIN = {"adapter": "like@production", "user_id": "u3", "candidates": ["i0", "i7"]}


@pytest.fixture
def registry(trained, tmp_path):
    return copy_of(trained.registry, tmp_path / "registry")


@pytest.fixture
def second(trained, registry, base, tmp_path):
    """Another version of like, under `latest` and `candidate`."""
    version = add_version(registry, trained, base, tmp_path / "second", LIKE, seed=1)
    registry.promote(version, "candidate")
    return version


@pytest.fixture
def engine(trained, registry):
    with open_engine(trained, registry) as engine:
        yield engine


def digest_of(client, row=PLAIN):
    (answer,) = client.post("/v1/score", json={"requests": [row]}).json()["responses"]
    assert "error" not in answer, answer
    return answer["digest"]


def act(client, path, /, **body):
    return client.post(f"/v1/admin/{path}", json=body, headers=ADMIN)


def test_without_a_token_there_are_no_admin_routes(asked):
    for name in ACTS:
        answer = asked.client.post(f"/v1/admin/{name}", json={"ref": "like"}, headers=ADMIN)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert not [path for path in asked.client.get("/openapi.json").json()["paths"] if "admin" in path]


def test_a_wrong_token_is_refused_and_no_token_is_ever_logged(engine):
    log = io.StringIO()
    with serving(engine, ["like@production"], token=TOKEN, token_guesses=100, stream=log) as (service, client):
        for headers in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer x"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": "Bearer \u00e4\u00f6".encode()},
            {"Authorization": b"Bearer \xff\xfe"},
        ):
            for name in ACTS:
                declared = {"Content-Type": "application/json", **headers}
                answer = client.post(f"/v1/admin/{name}", content=b"{", headers=declared)
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert act(client, "load", ref="rating").status_code == 200
        assert (
            TOKEN not in log.getvalue() and TOKEN not in repr(service.settings) and TOKEN not in client.get("/openapi.json").text
        )
        assert client.get("/v1/adapters").json()["admin"] is True


def test_who_guesses_tokens_waits_longer_and_longer_and_whoever_knows_it_never(engine):
    with serving(engine, ["like@production"], token=TOKEN, token_guesses=2) as (service, client):
        now = service.access.clock = Clock()
        wrong = {"Authorization": "Bearer another token"}

        def guess():
            return client.post("/v1/admin/load", json={}, headers=wrong)

        assert [guess().status_code for _ in range(4)] == [401, 401, 401, 429]
        assert (guess().json()["code"], guess().headers["Retry-After"]) == ("too_many_guesses", "1")
        assert digest_of(client)  # nobody else waits
        for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
            assert guess().headers.get("Retry-After") == str(seconds)
            now.seconds += seconds
            assert guess().status_code == 401
        assert guess().status_code == 429
        assert act(client, "load", ref="rating").status_code == 200  # within the wait, which it ends
        assert [guess().status_code for _ in range(4)] == [401, 401, 401, 429]


def test_a_call_without_a_token_or_not_as_json_is_no_guess(engine):
    """What the browser of somebody who reads another site can be made to send."""
    with serving(engine, ["like@production"], token=TOKEN, token_guesses=0) as (service, client):
        form = {"Content-Type": "text/plain"}
        for headers in ({}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Basic dXNlcjpwYXNz"}):
            assert client.post("/v1/admin/load", json={"ref": "rating"}, headers=headers).status_code == 401
            assert client.post("/v1/admin/load", content=b"{}", headers={**form, **headers}).status_code == 415
        wrong = {"Authorization": "Bearer another token", **form}
        assert [client.post("/v1/admin/load", content=b"{}", headers=wrong).status_code for _ in range(3)] == [415] * 3
        assert service.access.wait_s("127.0.0.1") == 0
        assert client.post("/v1/admin/load", json={}, headers={**wrong, "Content-Type": "application/json"}).status_code == 401
        assert service.access.wait_s("127.0.0.1") > 0
        assert act(client, "load", ref="rating").status_code == 200


class Clock:
    """Seconds that a test moves."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_only_so_many_guessers_are_remembered():
    from genre.serving.access import CLIENTS, AdminAccess

    guesses = AdminAccess(None, 0, Clock())
    for client in range(CLIENTS + 1):
        guesses.count_wrong(str(client))
    assert guesses.wait_s("0") == 0 and guesses.wait_s("1") == guesses.wait_s(str(CLIENTS)) == 1
    for _ in range(2000):
        guesses.count_wrong("1")
    assert guesses.wait_s("1") == 60


def test_a_short_token_is_refused_without_being_shown():
    with pytest.raises(genre.errors.InputError) as caught:
        genre.serving.Settings.make(token="short")
    assert "at least 16 characters" in str(caught.value) and "short" not in str(caught.value).replace("shorter", "")


def test_promote_and_roll_back_move_the_alias_and_the_answers(engine, registry, second):
    first = registry.resolve("like@production")
    with serving(engine, ["like@production"], token=TOKEN) as (_, client):
        assert digest_of(client) == first.digest
        answer = act(client, "promote", ref="like@candidate")
        assert answer.status_code == 200 and answer.json()["move"]["version"] == second.version
        assert answer.json()["serving"] == {"like@production": second.digest}
        assert digest_of(client) == second.digest and registry.aliases("like")["production"] == second.version
        answer = act(client, "rollback", name="like")
        assert answer.json()["move"]["action"] == "rollback" and digest_of(client) == first.digest
        again = act(client, "rollback", name="like")
        assert (again.status_code, again.json()["code"]) == (404, "not_found") and digest_of(client) == first.digest


def test_load_and_unload_go_by_name(engine, registry, second):
    with serving(engine, ["like@production"], token=TOKEN) as (_, client):
        pinned = {**PLAIN, "adapter": second.ref}
        assert "no such adapter" in client.post("/v1/score", json={"requests": [pinned]}).json()["responses"][0]["error"]
        assert act(client, "load", ref=second.ref).json()["digest"] == second.digest
        assert digest_of(client, pinned) == second.digest
        assert act(client, "load", ref="next_item").status_code == 200
        assert act(client, "unload", ref=second.ref).json()["serving"].keys() == {"like@production", "next_item"}
        assert second.ref not in engine.resident()
        assert "no such adapter" in client.post("/v1/score", json={"requests": [pinned]}).json()["responses"][0]["error"]
        assert act(client, "unload", ref=second.ref).status_code == 404
        assert act(client, "unload", ref="like@production").status_code == 200
        assert act(client, "unload", ref="next_item").status_code == 200
        assert client.get("/readyz").json() == {"ok": False, "reasons": ["no adapter is served"]}
        assert client.get("/livez").status_code == 200


REFUSED = [
    ("load", {"ref": "nothing"}, 404, "no adapter 'nothing'"),
    ("load", {"ref": "../like"}, 422, "not a usable name"),
    ("load", {"ref": "/etc/passwd"}, 422, "not a usable name"),
    ("load", {"ref": "like@../../x"}, 422, "not a usable alias"),
    ("load", {"ref": "like:../../etc/xx"}, 422, "not a version"),
    ("load", {"ref": "s3://bucket/like"}, 422, "not a version"),
    ("load", {"ref": "like\x00"}, 422, "not a usable name"),
    ("load", {"ref": "like:0123456789ab"}, 404, "no version like:0123456789ab"),
    ("load", {"ref": "encoder-planted"}, 422, "is a behaviour encoder"),
    ("load", {"ref": 5}, 422, "ref cannot be used: got 5; expected a text"),
    ("load", {}, 422, "the body has no ref"),
    ("load", {"ref": "like", "more": 1}, 422, "unknown field: got more"),
    ("promote", {"ref": "like", "alias": "a/b"}, 422, "not a usable alias"),
    ("promote", {"ref": "like", "floor": {"auc": "x"}}, 422, "floor.auc cannot be used"),
    ("promote", {"ref": "like", "floor": {"auc": True}}, 422, "floor.auc cannot be used"),
    ("promote", {"ref": "like", "floor": {"auc": 1.0}}, 409, "misses the floor in like.auc"),
    ("promote", {"ref": "like", "floor": {"fame": 1.0}}, 409, "no metric 'fame'"),
    ("promote", {"ref": "like", "not_worse": "yes"}, 422, "not_worse cannot be used: got 'yes'; expected true or false"),
    ("rollback", {"name": "nothing"}, 404, "no adapter 'nothing'"),
    ("rollback", {"name": "like"}, 404, "nothing to roll back to"),
    ("rollback", {"name": "like@production"}, 422, "not a usable name"),
    ("canary", {"name": "like", "share": 1.5}, 422, "share cannot be used"),
    ("canary", {"name": "like", "share": True}, 422, "share cannot be used: got True; expected a number"),
    ("canary", {"name": "rating", "share": 0.5}, 422, "needs the name's production to be served"),
]


def test_what_cannot_be_done_says_why_and_moves_nothing(engine, registry):
    before = {name: registry.aliases(name) for name in registry.names()}
    with serving(engine, ["like@production"], token=TOKEN) as (_, client):
        served = digest_of(client)
        for name, body, status, message in REFUSED:
            answer = act(client, name, **body)
            assert answer.status_code == status, (name, body, answer.text)
            assert message in answer.json()["error"] and registry.url not in answer.text, (name, body, answer.text)
        assert (
            client.post("/v1/admin/load", content=b"[" * 9999, headers={**ADMIN, "Content-Type": "application/json"}).status_code
            == 400
        )
        assert digest_of(client) == served
    assert {name: registry.aliases(name) for name in registry.names()} == before


@pytest.fixture
def foreign(trained, registry, tmp_path):
    """A version of like for another base: it cannot be loaded here."""
    other = genre.Base.load(str(make_base(tmp_path / "other", seed=5)))
    wanted = {"sequence": {"item": "text", "text": ["title"]}, "encoder": {"use": "none"}}
    from builders import publish_stirred, recipe

    return publish_stirred(registry, recipe(tmp_path / "other", LIKE, **wanted), trained.log, other, tmp_path / "foreign", seed=3)


def test_a_version_that_does_not_load_here_is_not_promoted_here(engine, registry, foreign):
    with serving(engine, ["like@production"], token=TOKEN) as (_, client):
        served = digest_of(client)
        answer = act(client, "promote", ref=foreign.ref)
        assert answer.status_code == 422 and "base.fingerprint" in answer.json()["error"]
        assert registry.aliases("like")["production"] == served[:12] and digest_of(client) == served


def test_a_second_service_follows_and_a_version_that_fails_leaves_the_old_one(trained, registry, second, foreign):
    log = io.StringIO()
    with (
        open_engine(trained, registry) as one,
        open_engine(trained, registry) as two,
        serving(one, ["like@production"], token=TOKEN) as (_, leader),
        serving(two, ["like@production"], follow_s=0.05, stream=log) as (service, follower),
    ):
        first = registry.resolve("like@production").digest
        assert digest_of(follower) == first
        act(leader, "promote", ref=second.ref)
        wait_until(lambda: digest_of(follower) == second.digest)
        registry.promote(foreign, "production")
        wait_until(lambda: '"event": "swap failed"' in log.getvalue())
        assert digest_of(follower) == second.digest and follower.get("/readyz").status_code == 200
        act(leader, "rollback", name="like")
        registry.promote(f"like:{first[:12]}", "production")
        wait_until(lambda: digest_of(follower) == first)
        count = service.metrics.registry.get_sample_value
        assert count("genre_swaps_total", {"adapter": "like"}) == 2
        assert count("genre_swap_failures_total", {"adapter": "like"}) >= 1
        (failed, *_) = [json.loads(line) for line in log.getvalue().splitlines() if "swap failed" in line]
        assert failed["version"] == foreign.version and failed["serving"] == second.version


def test_a_bare_name_means_production_and_then_what_is_served(trained, registry, second):
    with (
        open_engine(trained, registry) as engine,
        serving(engine, ["like@production", "like@candidate", "rating", "next_item@production", f"next_item@{'latest'}"]) as (
            _,
            client,
        ),
    ):
        for name, ref in (("like", "like@production"), ("rating", "rating@latest"), ("next_item", "next_item@production")):
            assert digest_of(client, {**PLAIN, "adapter": name}) == registry.resolve(ref).digest
        (error,) = client.post("/v1/score", json={"requests": [{**PLAIN, "adapter": "rating@production"}]}).json()["responses"]
        assert "no such adapter is served here" in error["error"]


def test_answers_under_swaps_are_each_of_the_version_they_name(trained, registry, second):
    """Every score belongs to the digest beside it, while production goes back and forth."""
    from concurrent.futures import ThreadPoolExecutor

    with open_engine(trained, registry) as engine:
        from genre.engine import Request

        rows = [{"adapter": "like@production", "user_id": f"u{user}", "candidates": ["i0", "i7", "i12"]} for user in range(6)]
        expected = {}
        for version in (registry.resolve("like@production"), second):
            for row in rows:
                (answer,) = engine.score([Request.from_json({**row, "adapter": version.ref})])
                expected[version.digest, row["user_id"]] = [item.score for item in answer.results]
            engine.unload(version.ref)
        with serving(engine, ["like@production"], token=TOKEN, follow_s=0.02) as (_, client), ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(client.post, "/v1/score", json={"requests": rows}) for _ in range(30)]
            moves = []
            for _ in range(3):
                moves += [act(client, "promote", ref=second.ref), act(client, "rollback", name="like")]
            assert all(move.status_code == 200 for move in moves)
            seen = set()
            for call in asked:
                for row, answer in zip(rows, call.result().json()["responses"], strict=True):
                    seen.add(answer["digest"])
                    scores = [item["score"] for item in answer["results"]]
                    assert scores == pytest.approx(expected[answer["digest"], row["user_id"]], abs=1e-5)
            assert seen <= {digest for digest, _ in expected}
            assert len(engine.resident()) == 1


def test_default_references_are_production_or_latest_and_only_those_that_fit(trained, registry, foreign, base, tmp_path):
    from genre.serving.deployments import served_by_default

    add_version(registry, trained, base, tmp_path / "new", RATING, seed=4, name="fresh")
    here = {"fresh", "like", "next_item", "rating"}  # other tests of the session publish too
    for name in set(registry.names()) - {*here, "encoder-planted"}:
        shutil.rmtree(Path(registry.url) / name)
    refs, others = served_by_default(registry)
    assert refs == ["fresh@latest", "like@production", "next_item@production", "rating@production"] and not others
    registry.promote(foreign, "production")
    kept, others = served_by_default(registry)
    assert kept == ["fresh@latest", "next_item@production", "rating@production"]
    assert list(others) == ["like@production"] and "base.fingerprint" in others["like@production"]
    with pytest.raises(genre.errors.InputError, match="there is no adapter to serve"):
        served_by_default(genre.Registry(tmp_path / "empty"))


def test_a_journal_that_has_not_grown_is_not_read_again(engine, registry, second, monkeypatch):
    for ref in ("like@candidate", "like@production") * 40:
        registry.promote(ref, "shadow")
    read, original = [], registry.store.read
    with serving(engine, ["like@production", "like@candidate"], follow_s=0) as (_, client):

        def shown():
            read.clear()
            monkeypatch.setattr(registry.store, "read", lambda *given: read.append(given[1]) or original(*given))
            adapters = client.get("/v1/adapters").json()["adapters"]
            monkeypatch.undo()
            assert [one["ref"] for one in adapters] == ["like@candidate", "like@production"]
            for one in adapters:
                assert one["aliases"] == registry.aliases("like")
                assert [move["n"] for move in one["history"]] == [move.n for move in registry.history("like")[-50:]]
            return read.count("aliases")

        before = len(registry.history("like"))
        assert before > 80 and shown() == before and shown() == 0
        registry.promote(second, "production")
        assert shown() == 1 and shown() == 0


def test_a_journal_that_cannot_be_read_is_shown_as_it_was(engine, registry, second):
    log = io.StringIO()
    with serving(engine, ["like@production"], follow_s=0, stream=log) as (_, client):
        before = client.get("/v1/adapters").json()["adapters"]
        entries = sorted((registry.store.root / "like" / "aliases").glob("*.json"))
        (entries[-1].parent / f"{len(entries) + 1}.json").write_text("{")
        assert client.get("/v1/adapters").json()["adapters"] == before
        assert '"event": "history unreadable"' in log.getvalue()


def test_a_journal_that_never_could_be_read_hides_no_adapter(engine, registry):
    log = io.StringIO()
    with serving(engine, ["like@production", "rating@production"], follow_s=0, stream=log) as (_, client):
        for entry in (registry.store.root / "like" / "aliases").glob("*.json"):
            entry.write_text("{")
        like, rating = client.get("/v1/adapters").json()["adapters"]
        assert (like["aliases"], like["history"]) == ({}, []) and rating["history"]
        assert '"event": "history unreadable"' in log.getvalue()


def test_an_explanation_does_not_bring_back_what_was_unloaded(engine, registry):
    """Explanations run beside the thread that scores, so that an unload may come between asking and explaining."""
    import threading
    from concurrent.futures import ThreadPoolExecutor

    asked = {"adapter": "like@production", "user_id": "u3", "item": "i0"}
    with (
        serving(engine, ["like@production", "rating@production"], token=TOKEN) as (service, client),
        ThreadPoolExecutor(2) as pool,
    ):
        busy = threading.Event()
        service.explain_aside(lambda: busy.wait(30))
        calls = [
            pool.submit(client.post, "/v1/explain", json={"requests": [{**asked, "method": method}]})
            for method in ("gradient", "leave_one_out")
        ]
        wait_until(lambda: len(service._explanations) == 3)
        assert act(client, "unload", ref="like@production").status_code == 200
        busy.set()
        for call in calls:
            (answer,) = call.result().json()["responses"]
            assert "the adapter is no longer served" in answer["error"]
        assert engine.resident().keys() == {"rating@production"}


def test_an_unload_waits_for_the_explanation_under_way(engine):
    from concurrent.futures import ThreadPoolExecutor

    with (
        serving(engine, ["like@production", "rating@production"], token=TOKEN) as (service, client),
        ThreadPoolExecutor(1) as pool,
    ):
        with service.deployments.held("like@production"):
            unloading = pool.submit(act, client, "unload", ref="like@production")
            wait_until(lambda: service.deployments.get("like@production") is None)
            assert not unloading.done() and "like@production" in engine.resident()
            assert digest_of(client, {**PLAIN, "adapter": "rating@production"})  # scoring goes on
        assert unloading.result().status_code == 200 and "like@production" not in engine.resident()


def test_titles_do_not_bring_back_what_was_unloaded(trained, registry):
    with (
        open_engine(trained, registry, data=False) as engine,
        serving(engine, ["like@production", "rating@production"]) as (
            service,
            client,
        ),
    ):
        gone = service.deployments.get("like@production")
        service.deployments.drop("like@production")
        assert service.lookup.titles(gone.catalogue).of("i0") == "love 0"
        assert client.get("/v1/items", params={"q": "love 0"}).json()["items"] == [{"item_id": "i0", "title": "love 0"}]
        assert engine.resident().keys() == {"rating@production"}


def test_what_was_found_and_does_not_load_is_left_out_and_what_was_named_is_not(trained, registry, foreign, tmp_path):
    from genre.serving import Service, Settings
    from genre.serving.state import StateFile

    registry.promote(foreign, "production")
    refs = ["like@production", "rating@production"]
    for state in (None, StateFile(tmp_path / "state.json")):
        with open_engine(trained, registry) as engine:
            log = io.StringIO()
            service = Service(engine, Settings.make(), stream=log, state=state)
            service.start(refs, found=True)
            service.stop()
            assert [served.ref for served in service.deployments.all()] == ["rating@production"]
            (told,) = [json.loads(line) for line in log.getvalue().splitlines() if '"not served"' in line]
            assert told["ref"] == "like@production" and "base.fingerprint" in told["why"]
    assert json.loads((tmp_path / "state.json").read_text())["unloaded"] == []  # nobody unloaded it: it may load next time
    with open_engine(trained, registry) as engine:
        for given, found in ((refs, False), (["like@production"], True)):
            with pytest.raises(genre.errors.ManifestError, match="base.fingerprint"):
                Service(engine, Settings.make(), stream=io.StringIO()).start(given, found=found)


def test_what_a_version_was_measured_against_is_shown_once_it_is_recorded(engine, registry, monkeypatch):
    monkeypatch.setattr("genre.serving.lookup.ASK_AGAIN_S", 0.0)
    figures = {"like": {"additive": {"auc": {"value": 0.7, "interval": [0.6, 0.8], "n": 9}}}}
    log = io.StringIO()
    with serving(engine, ["like@production"], follow_s=0, stream=log) as (_, client):

        def shown():
            (one,) = client.get("/v1/adapters").json()["adapters"]
            assert one["data"] == "planted" and one["protocol"]["like"].startswith("temporal")
            return one["baselines"]

        assert shown() == {}
        registry.record_baselines("like@production", {})
        (file,) = (registry.store.root / "like" / "baselines").glob("*.json")
        file.write_text("{")
        assert shown() == {} and '"event": "baselines unreadable"' in log.getvalue()
        registry.record_baselines("like@production", figures)
        assert shown() == figures and shown() == figures
