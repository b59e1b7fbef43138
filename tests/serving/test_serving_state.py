"""What operators set outlives the service, where it has a state file."""

import io
import json

import pytest
from serving_fakes import ADMIN, TOKEN, add_version, copy_of, open_engine, serving, wait_until

from builders import LIKE
from genre.errors import InputError
from genre.serving.state import SavedCanary, SavedState, StateFile

GIVEN = ["like@production", "rating@production"]
OTHER = {**LIKE, "name": "fond"}  # a version whose task has another name: rows that name the old one fail


@pytest.fixture
def registry(trained, tmp_path):
    return copy_of(trained.registry, tmp_path / "registry")


@pytest.fixture
def begin(trained, registry, tmp_path):
    """Start a service with the same arguments and the same state file; yields a client."""
    import contextlib

    @contextlib.contextmanager
    def begin(refs=GIVEN, *, stream=None, **settings):
        with open_engine(trained, registry) as engine:
            settings = {"token": TOKEN, "stream": stream, **settings}
            with serving(engine, refs, state=StateFile(tmp_path / "state.json"), **settings) as (_, client):
                yield client

    return begin


def act(client, path, /, **body):
    answer = client.post(f"/v1/admin/{path}", json=body, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refs(client):
    return [one["ref"] for one in client.get("/v1/adapters").json()["adapters"]]


def test_what_was_loaded_and_unloaded_is_so_after_a_restart(begin, tmp_path):
    with begin() as client:
        assert refs(client) == GIVEN
        assert act(client, "load", ref="next_item")["remembered"] is True
        assert act(client, "unload", ref="rating@production")["remembered"] is True
        kept = json.loads((tmp_path / "state.json").read_text())  # as a kill would leave it
        assert kept == {"schema": 1, "loaded": ["next_item"], "unloaded": ["rating@production"], "canary": {}}
    with begin() as client:
        assert refs(client) == ["like@production", "next_item"]
        act(client, "load", ref="rating@production")
        act(client, "unload", ref="next_item")
    with begin() as client:
        assert refs(client) == GIVEN
    with begin([*GIVEN, "next_item@production"]) as client:  # what is new on the command line is served
        assert refs(client) == ["like@production", "next_item@production", "rating@production"]


def test_without_a_state_file_an_operator_is_told(trained, registry):
    with open_engine(trained, registry) as engine, serving(engine, GIVEN, token=TOKEN) as (_, client):
        assert act(client, "load", ref="next_item")["remembered"] is False


def test_what_cannot_be_served_again_is_told_and_can_be_forgotten(begin, tmp_path):
    (tmp_path / "state.json").write_text(
        json.dumps({"schema": 1, "loaded": ["gone@production", "next_item"], "canary": {"gone": {"share": 0.5}}})
    )
    log = io.StringIO()
    with begin(stream=log) as client:
        assert refs(client) == ["like@production", "next_item", "rating@production"]
        assert log.getvalue().count('"event": "not served"') == 2 and "no adapter 'gone'" in log.getvalue()
        act(client, "load", ref="like")
        assert "gone@production" in (tmp_path / "state.json").read_text()  # it may come back
        act(client, "unload", ref="gone@production")
        assert "gone@production" not in (tmp_path / "state.json").read_text()


def test_what_came_back_and_was_unloaded_stays_away(begin, registry, trained, base, tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"schema": 1, "loaded": ["fond@candidate"]}))
    with begin() as client:
        registry.promote(add_version(registry, trained, base, tmp_path / "new", OTHER, seed=1, name="fond"), "candidate")
        act(client, "load", ref="fond@candidate")
        act(client, "unload", ref="fond@candidate")
        assert json.loads((tmp_path / "state.json").read_text())["loaded"] == []


def test_a_version_that_was_given_up_is_remembered_while_its_canary_cannot_be_set(begin, tmp_path):
    canary = {"like": {"share": 0.5, "halted": "0123456789ab", "reason": "rows failed"}}
    kept = {"schema": 1, "unloaded": ["like@production"], "canary": canary}
    (tmp_path / "state.json").write_text(json.dumps(kept))
    with begin() as client:
        act(client, "load", ref="next_item")
        assert json.loads((tmp_path / "state.json").read_text())["canary"] == canary
        act(client, "unload", ref="next_item")
    assert json.loads((tmp_path / "state.json").read_text())["canary"] == canary


def test_a_share_that_an_operator_set_wins_over_the_command_line(begin, registry, trained, base, tmp_path):
    registry.promote(add_version(registry, trained, base, tmp_path / "new", LIKE, seed=1), "candidate")

    def canary(client):
        return next(one["canary"] for one in client.get("/v1/adapters").json()["adapters"] if one["ref"] == "like@production")

    with begin(canary={"like": 0.1}) as client:
        assert canary(client)["share"] == 0.1
        act(client, "canary", name="like", share=0.4)
    with begin(canary={"like": 0.1}) as client:
        assert canary(client)["share"] == 0.4 and canary(client)["state"] == "running"
        act(client, "canary", name="like", share=0)
    with begin(canary={"like": 0.1}) as client:
        assert canary(client) is None
        act(client, "unload", ref="like@production")
    with begin(canary={"like": 0.1}) as client:  # no canary without its production, and no reason not to start
        assert refs(client) == ["rating@production"]


def test_a_candidate_that_was_given_up_gets_no_traffic_after_a_restart(begin, registry, trained, base, tmp_path):
    bad = add_version(registry, trained, base, tmp_path / "bad", OTHER, seed=1, name="like")
    registry.promote(bad, "candidate")
    rows = [{"adapter": "like", "task": "like", "user_id": f"u{user}", "candidates": ["i0"]} for user in range(8)]

    def found(client):
        assert all("results" in row for row in client.post("/v1/score", json={"requests": rows}).json()["responses"])
        return client.get("/v1/adapters").json()["adapters"][0]["canary"]

    with begin(canary={"like": 1.0}) as client:
        assert found(client)["state"] == "halted"
    with begin(canary={"like": 1.0}) as client:
        assert found(client) | {"reason": ""} == {
            "share": 1.0,
            "state": "halted",
            "version": bad.version,
            "rows": 0,
            "failures": 0,
            "reason": "",
        }
        assert "rows failed where production answered" in found(client)["reason"]
        good = add_version(registry, trained, base, tmp_path / "good", LIKE, seed=2)
        registry.promote(good, "candidate")
        wait_until(lambda: found(client)["state"] == "running")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "EOF while parsing"),
        ("[]", "object"),
        ('{"schema": 2}', "schema cannot be used: got 2; expected at most 1"),
        ('{"loaded": "like"}', "loaded"),
        ('{"more": 1}', "the file has an unknown field: got more"),
        ('{"canary": {"like": {"share": 3}}}', "canary.like.share"),
    ],
)
def test_a_file_that_is_no_state_is_refused_in_one_line_and_left(tmp_path, text, said):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        StateFile(path)
    message = str(caught.value)
    assert "--state cannot be used" in message and said in message and "remove it to start over" in message
    assert "\n" not in message and path.read_text() == text


def test_the_file_must_be_usable_and_belongs_to_one_service(tmp_path):
    with pytest.raises(InputError, match="expected a file in a folder that exists"):
        StateFile(tmp_path / "none" / "state.json")
    with pytest.raises(InputError, match="--state cannot be used"):
        StateFile(tmp_path)
    one = StateFile(tmp_path / "state.json")
    with pytest.raises(InputError, match="which another service uses"):
        StateFile(tmp_path / "state.json")
    state = SavedState(loaded=("like",), canary={"like": SavedCanary(share=0.5, halted="0" * 12, reason="why")})
    one.save(state)
    one.close()
    again = StateFile(tmp_path / "state.json")
    assert again.state == state
    again.close()
