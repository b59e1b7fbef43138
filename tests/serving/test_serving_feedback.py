"""What is drawn and with which probability; lists and rewards in the served log, over HTTP and as a data set."""

import itertools
import math
import os
import signal
import sqlite3
import threading
import time
import uuid

import httpx
import numpy as np
import pytest
from serving_fakes import Process, open_engine, serving, wait_until

from genre import cli
from genre.data.importers.log import import_log
from genre.errors import DataError, DiskError, InputError
from genre.evaluation.exploring import Exploration
from genre.serving.served import Impression, Reward, ServedLog

SCORES = np.array([2.0, 1.0, 0.5, -1.0])
REF = "next_item@production"


@pytest.mark.parametrize("text", ["epsilon=0.3", "epsilon=0", "softmax=2", "top-k-sampling=3"])
def test_propensities_are_those_of_the_draws(text):
    policy, rng = Exploration.parse(text, pool=4), np.random.default_rng(3)
    pool = min(policy.pool, 4)
    lists, count = {}, 4000
    for _ in range(count):
        chosen, shares = policy.draw(SCORES, 2, rng)
        lists.setdefault(tuple(chosen.tolist()), [math.prod(shares), 0])[1] += 1
    for probability, seen in lists.values():
        assert abs(seen / count - probability) < 5 * math.sqrt(probability * (1 - probability) / count) + 1e-9
    if policy.amount:
        assert lists.keys() == set(itertools.permutations(range(pool), 2))
    assert sum(probability for probability, _ in lists.values()) == pytest.approx(1.0)


def test_softmax_is_of_scores_over_the_temperature_and_far_scores_do_not_overflow():
    _, shares = Exploration.parse("softmax=0.5").draw(np.array([1.0, 0.0]), 1, np.random.default_rng(0))
    assert shares[0] in (pytest.approx(1 / (1 + math.exp(-2))), pytest.approx(1 / (1 + math.exp(2))))
    chosen, shares = Exploration.parse("softmax=1").draw(np.array([1e4, -1e4]), 5, np.random.default_rng(0))
    assert (chosen.tolist(), shares.tolist()) == ([0, 1], [1.0, 1.0])


@pytest.mark.parametrize(
    "text", ["epsilon", "epsilon=2", "epsilon=x", "softmax=0", "greedy=1", "top-k-sampling=2.5", "softmax=nan"]
)
def test_a_policy_that_is_none(text):
    with pytest.raises(InputError, match=r"--explore cannot be used: got .*; expected epsilon=0 to 1"):
        Exploration.parse(text)


def _impression(**given):
    row = {"impression": uuid.uuid4().hex, "adapter": REF, "digest": "d" * 64, "user": "7", "policy": "best"}
    return Impression(**(row | {"items": ["1", "2"], "scores": [2.0, 1.0], "propensities": [0.9, 0.5]} | given))


@pytest.fixture
def served(tmp_path):
    log = ServedLog(tmp_path / "served.sqlite")
    yield log
    log.close()


def test_a_reward_counts_once_and_the_first_one_stays(served):
    shown = _impression()
    assert served.show([shown]).result(10) == ["recorded"]
    rewards = [Reward(shown.impression, "1", 1.0)] * 2
    rewards += [Reward(shown.impression, "1", 0.0), Reward(shown.impression, "9", 1.0), Reward("none", "1", 1.0)]
    assert served.reward(rewards).result(10) == ["recorded", "repeated", "different", "not shown", "unknown"]


def test_old_impressions_go_and_a_full_log_takes_rewards_only(tmp_path):
    path = tmp_path / "served.sqlite"
    log = ServedLog(path)
    old, new = _impression(), _impression()
    log.show([old, new]).result(10)
    log.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE impressions SET time = ? WHERE impression = ?", (time.time() - 3 * 86_400, old.impression))
    connection.close()
    log = ServedLog(path, days=2, most_bytes=1)
    assert log.reward([Reward(old.impression, "1", 1.0), Reward(new.impression, "1", 1.0)]).result(10) == ["unknown", "recorded"]
    with pytest.raises(
        DiskError, match=r"served.sqlite is full: got [\d,]+ bytes; expected at most 1; import it and move it away"
    ):
        log.show([_impression()]).result(10)
    log.close()


@pytest.mark.parametrize("bounds", [{"days": -1}, {"days": 0}, {"days": math.nan}, {"most_bytes": 0}])
def test_bounds_that_are_none(tmp_path, bounds):
    with pytest.raises(InputError, match=r"--served-(days|bytes) cannot be used: got .*; expected "):
        ServedLog(tmp_path / "served.sqlite", **bounds)
    assert not list(tmp_path.iterdir())


def test_a_row_that_cannot_be_held_is_refused_alone_and_a_closed_log_answers(served):
    odd = [served.reward([Reward("\ud800", "1", 1.0)]), served.show([_impression(scores=[1.0])])]
    good = served.show([_impression()])
    for future in odd:
        with pytest.raises(DiskError, match="cannot be written: got .*; expected values that SQLite can hold"):
            future.result(10)
    assert good.result(10) == ["recorded"]
    served.close()
    with pytest.raises(DiskError, match=r"served.sqlite is closed"):
        served.show([_impression()]).result(10)


def test_files_that_say_nothing_of_users(served, tmp_path):
    served.show([_impression(user=None)]).result(10)
    with pytest.raises(DataError, match=r"no list of .*served.sqlite has a user_id: got 1 without; .*/v1/recommend"):
        import_log(served.path, format="served")
    for path, got in ((tmp_path / "none", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(DataError, match=f"is no served log: got {got}; expected the file of"):
            import_log(path, format="served")


def test_one_service_has_a_log_and_no_other_file_is_one(served, tmp_path):
    with pytest.raises(InputError, match=r"--served-log cannot be used: got .*, which another service uses"):
        ServedLog(served.path)
    (tmp_path / "text").write_text("no database, but long enough to be looked at as one" * 40)
    with pytest.raises(InputError, match=r"--served-log cannot be used: got .*expected a served log, or a new file"):
        ServedLog(tmp_path / "text")
    with pytest.raises(InputError, match="--served-log cannot be used"):
        ServedLog(tmp_path / "none" / "served.sqlite")
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE films (id)")
    connection.close()
    with pytest.raises(InputError, match="expected a served log of this version"):
        ServedLog(tmp_path / "other.sqlite")
    with pytest.raises(DataError, match="text is no served log"):
        import_log(tmp_path / "text", format="served")


@pytest.fixture(scope="module")
def exploring(trained, tmp_path_factory):
    """A service that draws lists and keeps them; yields a client and the path of its log."""
    path = tmp_path_factory.mktemp("feedback") / "served.sqlite"
    with (
        open_engine(trained) as engine,
        serving(engine, [REF, "like@production"], served=ServedLog(path), explore="epsilon=0.5", explore_pool=6) as (_, client),
    ):
        yield client, path


def _recommend(client, **fields):
    return client.post("/v1/recommend", json={"requests": [{"adapter": REF, "k": 3} | fields]}).json()["responses"][0]


def _send(client, *rows):
    return client.post("/v1/feedback", json={"feedback": list(rows)}).json()["outcomes"]


def test_a_list_has_its_propensities_and_takes_rewards(exploring, trained, tmp_path):
    client, path = exploring
    user = str(trained.log.user_ids[0])
    row = _recommend(client, user_id=user)
    assert (row["policy"], len(row["results"])) == ("epsilon=0.5", 3)
    assert all(
        item["propensity"] in (pytest.approx(0.5 / left), pytest.approx(0.5 + 0.5 / left))
        for item, left in zip(row["results"], (6, 5, 4), strict=True)
    )
    item = row["results"][1]["item_id"]
    reward = {"impression_id": row["impression_id"], "item_id": item, "reward": 1}
    assert _send(
        client, reward, reward, reward | {"reward": 2}, reward | {"reward": "x"}, {}, reward | {"item_id": "nobody's"}
    ) == [
        {"outcome": "recorded"},
        {"outcome": "repeated"},
        {"error": "another reward is known: got 2; expected the reward that was sent first, which stays"},
        {"error": "reward cannot be used: got 'x'; expected a number"},
        {"error": "a reward has no impression_id"},
        {"error": 'the item was not in this impression: got "nobody\'s"; expected one of its results'},
    ]
    _recommend(client, history=[])  # of nobody: in the log, but no event of a user
    assert cli.main(["data", "import", str(path), "--format", "served", "--out", str(tmp_path / "fed"), "-q"]) == 0
    log = import_log(path, format="served")
    mine = log.frame.filter(log.frame["impression_id"] == row["impression_id"]).sort("position")
    assert mine["item_id"].to_list() == [item["item_id"] for item in row["results"]]
    assert mine["propensity"].to_list() == pytest.approx([item["propensity"] for item in row["results"]])
    assert (mine["click"].to_list(), mine["reward"].to_list()) == ([0, 1, 0], [0.0, 1.0, 0.0])
    assert log.info.skipped["impressions without a user_id"] == 1


def test_an_item_of_several_candidates_is_shown_and_kept_once(exploring):
    client, _ = exploring
    row = _recommend(client, history=[], candidates=["i1", "i1", {"title": "new"}, {"title": "new"}, "i2"])
    shown = [item["item_id"] for item in row["results"]]
    assert sorted(shown) == ["i1", "i2", "new"]
    rewards = [{"impression_id": row["impression_id"], "item_id": item, "reward": 1} for item in shown]
    assert _send(client, *rewards) == [{"outcome": "recorded"}] * 3


def test_a_list_is_no_longer_than_the_pool(exploring):
    client, _ = exploring
    assert len(_recommend(client, history=[], k=20)["results"]) == 6


def test_scores_are_never_drawn_nor_kept_and_diversity_is_not_drawn(exploring):
    client, _ = exploring
    row = client.post("/v1/score", json={"requests": [{"adapter": REF, "history": [], "k": 3}]}).json()["responses"][0]
    assert not {"impression_id", "policy"} & row.keys()
    row = _recommend(client, history=[], diversity=0.2)
    assert (row["policy"], [item["propensity"] for item in row["results"]]) == ("best", [1.0] * 3)


def test_calls_that_cannot_be_read(exploring):
    client, _ = exploring
    assert client.post("/v1/feedback", json={"feedback": []}).status_code == 422
    assert client.post("/v1/feedback", json={"rewards": [1]}).status_code == 422
    assert client.post("/v1/feedback", content="{}", headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/v1/feedback", json={"feedback": [{}] * 257}).status_code == 422
    assert _send(client, 7, None)[0] == {"error": "a reward is not a JSON object: got 7; expected an object"}
    assert "/v1/feedback" in client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("explore", [None, "epsilon=0.5"])
def test_without_room_lists_are_answered_all_the_same(trained, tmp_path, explore):
    log = ServedLog(tmp_path / "served.sqlite", most_bytes=1)
    with open_engine(trained) as engine, serving(engine, [REF], served=log, explore=explore) as (_, client):
        row = _recommend(client, history=[])
        assert len(row["results"]) == 3
        assert "impression_id" not in row and ("policy" in row) == (explore is not None)
        assert 'genre_impressions_total{outcome="lost"} 1.0' in client.get("/metrics").text


def test_without_a_served_log_there_is_no_feedback(asked):
    assert asked.client.post("/v1/feedback", json={"feedback": [{}]}).status_code == 404


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_acknowledged_rewards_outlive_kills_and_count_once(trained, tmp_path):
    """20,000 rewards from 16 clients over four kills of the process: about two minutes."""
    path, acknowledged, lock = tmp_path / "served.sqlite", {}, threading.Lock()
    data = tmp_path / "data"
    trained.log.write(data)
    arguments = ["--registry", trained.registry.url, "--base", str(trained.base), "--adapters", REF, "--data", str(data)]
    url, done = [""], threading.Event()

    def client(seed):
        rng = np.random.default_rng(seed)
        while not done.is_set():
            try:
                with httpx.Client(base_url=url[0], timeout=5) as caller:
                    row = _recommend(caller, history=[], k=10)
                    rewards = [
                        {"impression_id": row["impression_id"], "item_id": item["item_id"], "reward": float(rng.integers(2))}
                        for item in row["results"]
                    ]
                    for again in (rewards, rewards[:5]):
                        for reward, outcome in zip(again, _send(caller, *again), strict=True):
                            assert outcome.get("outcome") in ("recorded", "repeated")
                            with lock:
                                acknowledged[reward["impression_id"], reward["item_id"]] = reward["reward"]
            except (httpx.HTTPError, KeyError):
                time.sleep(0.05)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    try:
        for want in (4000, 8000, 12_000, 16_000, 20_000):
            with Process(tmp_path / "log", *arguments, "--served-log", str(path)) as process:
                url[0] = process.url
                wait_until(lambda want=want: len(acknowledged) >= want, 240)
                os.kill(process.process.pid, signal.SIGKILL)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    with sqlite3.connect(path) as connection:
        kept = {(one, item): reward for one, item, reward in connection.execute("SELECT impression, item, reward FROM shown")}
    connection.close()
    assert len(acknowledged) >= 20_000
    assert {key: kept.get(key) for key in acknowledged} == acknowledged
