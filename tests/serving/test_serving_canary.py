"""The canary: its share, its side per user, its counts, and the way back when it fails."""

import contextlib
import io

import pytest
from serving_fakes import ADMIN, TOKEN, add_version, copy_of, open_engine, serving, wait_until

from builders import LIKE
from genre.engine import Request
from genre.errors import InputError
from genre.serving import Service, Settings
from genre.serving.canary import fraction
from genre.serving.deployments import Deployments
from genre.serving.logs import Log
from genre.serving.metrics import Metrics

OTHER = {**LIKE, "name": "fond"}  # a version whose task has another name: rows that name the old one fail


@pytest.fixture
def registry(trained, tmp_path):
    return copy_of(trained.registry, tmp_path / "registry")


@pytest.fixture
def engine(trained, registry):
    with open_engine(trained, registry) as engine:
        yield engine


@pytest.fixture
def publish(registry, trained, base, tmp_path):
    """Publish a version of like and let `candidate` name it."""

    def publish(seed, task=LIKE):
        version = add_version(registry, trained, base, tmp_path / f"version-{seed}", task, seed=seed, name="like")
        registry.promote(version, "candidate")
        return version

    return publish


def ask(client, users=range(60), **more):
    rows = [{"adapter": "like@production", "user_id": f"u{user}", "candidates": ["i0", "i7"], **more} for user in users]
    return client.post("/v1/score", json={"requests": rows}).json()["responses"]


def state(client):
    return client.get("/v1/adapters").json()["adapters"][0]["canary"]


def test_a_share_of_the_users_gets_the_candidate_always_the_same_ones(engine, registry, publish):
    candidate, production = publish(1), registry.resolve("like@production")
    with serving(engine, ["like@production"], canary={"like": 0.3}) as (service, client):
        chosen = {f"u{user}" for user in range(60) if fraction("like", Request("like", user_id=f"u{user}")) < 0.3}
        assert 5 < len(chosen) < 30
        for _ in range(2):
            answers = ask(client)
            assert {f"u{user}" for user, answer in enumerate(answers) if answer["digest"] == candidate.digest} == chosen
            assert {answer["digest"] for answer in answers} == {candidate.digest, production.digest}
            assert {answer["adapter"] for answer in answers} == {"like@production"}
        found = state(client)
        assert found["state"] == "running" and found["version"] == candidate.version and found["share"] == 0.3
        assert found["rows"] == 2 * len(chosen) and found["failures"] == 0
        counts = {one["version"]: one["rows"] for one in client.get("/v1/adapters").json()["adapters"][0]["versions"]}
        assert counts == {candidate.version: 2 * len(chosen), production.version: 120 - 2 * len(chosen)}
        assert [one["ref"] for one in client.get("/v1/adapters").json()["adapters"]] == ["like@production"]
        row = {"adapter": "like@candidate", "history": [], "candidates": ["i0"]}
        assert "no such adapter" in client.post("/v1/score", json={"requests": [row]}).json()["responses"][0]["error"]
        assert service.metrics.registry.get_sample_value("genre_canary_share", {"adapter": "like"}) == 0.3


def test_a_candidate_that_fails_loses_its_traffic_and_nobody_notices(engine, registry, publish):
    log = io.StringIO()
    publish(1, OTHER)
    production = registry.resolve("like@production")
    with serving(engine, ["like@production"], canary={"like": 1.0}, stream=log, follow_s=0.02, batch_rows=4) as (service, client):
        answers = ask(client, task="like")
        assert {answer.get("digest") for answer in answers} == {production.digest}  # every row was answered, by production
        found = state(client)
        assert (
            found["state"] == "halted" and found["failures"] >= 3 and "rows failed where production answered" in found["reason"]
        )
        wait_until(lambda: "like@candidate" not in engine.resident())
        assert registry.aliases("like")["candidate"] != production.version  # the registry is left as it is
        assert log.getvalue().count("canary rolled back") == 1
        count = service.metrics.registry.get_sample_value
        assert count("genre_canary_rollbacks_total", {"adapter": "like"}) == 1
        assert count("genre_canary_share", {"adapter": "like"}) == 0
        better = publish(2)
        wait_until(lambda: state(client)["state"] == "running")
        assert {answer["digest"] for answer in ask(client)} == {better.digest}
        assert state(client)["rows"] == 60 and state(client)["failures"] == 0


def test_what_both_versions_refuse_is_not_the_candidates_fault(engine, publish):
    publish(1)
    with serving(engine, ["like@production"], canary={"like": 1.0}) as (_, client):
        assert all("unknown task" in answer["error"] for answer in ask(client, task="nothing"))
        assert state(client)["state"] == "running" and state(client)["rows"] == 60 and state(client)["failures"] == 0


def test_old_failures_leave_the_window(engine, publish):
    publish(1, OTHER)
    with serving(engine, ["like@production"], canary={"like": 1.0}, canary_failures=3, canary_window=4, batch_rows=1) as (
        _,
        client,
    ):
        for _ in range(3):  # two failures, then four good rows, again and again
            ask(client, range(2), task="like")
            ask(client, range(4))
        assert state(client)["state"] == "running" and state(client)["failures"] == 6


def test_a_candidate_that_cannot_be_loaded_is_given_up_before_any_traffic(engine, registry, trained, tmp_path):
    import genre
    from builders import publish_stirred, recipe
    from fakes import make_base

    other = genre.Base.load(str(make_base(tmp_path / "other", seed=5)))
    text = {"sequence": {"item": "text", "text": ["title"]}, "encoder": {"use": "none"}}
    version = publish_stirred(
        registry, recipe(tmp_path / "other", LIKE, **text), trained.log, other, tmp_path / "foreign", seed=3
    )
    registry.promote(version, "candidate")
    with serving(engine, ["like@production"], canary={"like": 1.0}) as (_, client):
        assert state(client)["state"] == "halted" and "cannot be loaded" in state(client)["reason"]
        assert all("results" in answer for answer in ask(client))


def test_promoting_the_candidate_ends_the_canary_and_an_operator_may_set_it(engine, registry, publish):
    candidate, production = publish(1), registry.resolve("like@production")
    with serving(engine, ["like@production"], token=TOKEN) as (_, client):

        def act(path, **body):
            return client.post(f"/v1/admin/{path}", json=body, headers=ADMIN)

        assert {answer["digest"] for answer in ask(client)} == {production.digest}
        assert act("canary", name="like", share=0.5).json()["canary"]["state"] == "running"
        assert {answer["digest"] for answer in ask(client)} == {production.digest, candidate.digest}
        act("promote", ref="like@candidate")
        assert state(client)["state"] == "waiting" and {answer["digest"] for answer in ask(client)} == {candidate.digest}
        assert len(engine.resident()) == 1
        act("rollback", name="like")
        assert state(client)["state"] == "running"
        assert act("canary", name="like", share=0).json()["canary"] is None and state(client) is None
        assert {answer["digest"] for answer in ask(client)} == {production.digest} and len(engine.resident()) == 1


def test_without_a_candidate_the_canary_waits(engine, registry):
    with serving(engine, ["like@production"], canary={"like": 1.0}) as (_, client):
        assert state(client) == {"share": 1.0, "state": "waiting", "version": None, "rows": 0, "failures": 0, "reason": None}
        assert all("results" in answer for answer in ask(client))


def test_a_canary_needs_its_production(engine):
    service = Service(engine, Settings.make(canary={"rating": 0.5}), stream=io.StringIO())
    with pytest.raises(InputError, match="a canary needs the name's production to be served: got rating"):
        service.start(["like@production"])
    with pytest.raises(InputError, match="canary cannot be used.*between 0 and 1"):
        Settings.make(canary={"like": 2})


def test_rows_that_wait_for_a_candidate_that_goes_are_answered_by_production(engine, publish):
    publish(1)
    with serving(engine, ["like@production"], canary={"like": 1.0}) as (service, _):
        row = service.route(Request("like@production", user_id="u1", candidates=["i0"]))
        assert row.deployment.ref == "like@candidate" and service.reroute(row) is row
        service.deployments.drop("like@candidate")  # as when it becomes production, before the canary has been told
        now = service.reroute(row)
        assert now is not None and (now.deployment.ref, now.fallback) == ("like@production", None)
        assert service.route(Request("like@production", user_id="u1", candidates=["i0"])).deployment.ref == "like@production"


def test_a_candidate_is_hidden_from_its_first_moment(engine, publish):
    class Watched(Deployments):
        def _set(self, deployment):
            seen.append(deployment.public)
            super()._set(deployment)

    publish(3)
    seen: list[bool] = []
    deployments = Watched(engine, Log(io.StringIO()), Metrics(), contextlib.nullcontext)
    assert not deployments.add("like@candidate", public=False).public and seen == [False]
    assert not deployments.add("like@candidate", public=False).public and set(seen) == {False}, "brought up to date, still hidden"
    assert deployments.add("like@candidate").public and deployments.add("like@candidate", public=False).public, (
        "who was public stays so"
    )
