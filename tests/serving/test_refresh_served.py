"""The loop closed: a real service shows and takes rewards, and the next version learns from its log and is judged on it."""

import json
import shutil
import sqlite3
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from serving_fakes import serving

import genre
from builders import recipe
from fakes import planted_log
from genre import cli
from genre.data.forgetting import forget_users
from genre.data.interactions import Interactions
from genre.data.shown import lists_of
from genre.errors import DataError, InputError
from genre.jobs.evaluate import evaluate
from genre.jobs.refresh.feedback import Feedback, ServedOptions
from genre.jobs.refresh.job import refresh
from genre.jobs.refresh.plan import RefreshOptions, plan
from genre.jobs.refresh.policy_gate import PolicyGate, PolicyVerdict
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.serving.served import ServedLog

USERS, TIMES, PLACES, POOL = 60, 6, 3, 24
LISTS, POLICY = USERS * TIMES, "softmax=0.5"
REF = "click@production"
CLICK = {"name": "click", "kind": "feedback", "label": "click", "metrics": ["auc"], "seen": "kept"}
GATE = PolicyGate(pool=POOL, places=1, least=20)


def good(item):
    """Half of the items, for everybody, since a service shows them."""
    return int(item[1:]) % 2 == 0


def first_log():
    """Clicks on the other half of the items: who learnt from them shows what nobody likes any more."""
    log = planted_log(users=USERS, items=POOL, events=6)
    clicks = pl.Series("click", [int(not good(item)) for item in log.frame["item_id"]])
    return Interactions.from_frame(
        log.frame.drop("row", "rating").with_columns(clicks), log.catalogue.frame, log.users, name="shop"
    )


@pytest.fixture(scope="module")
def shop(tiny, tmp_path_factory):
    """A folder with a data set, a version of another time, and what a service showed by it; times are a minute apart."""
    folder = tmp_path_factory.mktemp("shop")
    log, registry, base = first_log(), genre.Registry(folder / "registry"), Base.load(str(tiny))
    log.write(folder / "shop")
    wanted = recipe(tiny, CLICK, data={"path": str(folder / "shop")}, train={"epochs": 3})
    registry.publish(genre.train(wanted, log=log, base=base, registry=registry, folder=folder / "run"), alias="production")
    path, draw = folder / "served.sqlite", np.random.default_rng(1)
    settings = {"served": ServedLog(path), "explore": POLICY, "explore_pool": POOL}
    with genre.Engine(base, registry, data=log) as engine, serving(engine, [REF], **settings) as (_, client):
        for _ in range(TIMES):
            rows = [{"adapter": REF, "user_id": user, "k": PLACES} for user in log.user_ids]
            answers = client.post("/v1/recommend", json={"requests": rows}).json()["responses"]
            rewards = [
                {"impression_id": answer["impression_id"], "item_id": item["item_id"], "reward": 1}
                for answer in answers
                for item in answer["results"]
                if good(item["item_id"]) != (draw.random() < 0.1)
            ]
            for start in range(0, len(rewards), 100):
                outcomes = client.post("/v1/feedback", json={"feedback": rewards[start : start + 100]}).json()["outcomes"]
                assert {each["outcome"] for each in outcomes} == {"recorded"}
    age(path, time.time() - 86_400)
    return folder


def age(path, first):
    """Spread the lists of a served log over time, in their order."""
    with sqlite3.connect(path) as connection:
        order = [row[0] for row in connection.execute("SELECT impression FROM impressions ORDER BY time, impression")]
        rows = [(first + 60 * place, impression) for place, impression in enumerate(order)]
        connection.executemany("UPDATE impressions SET time = ? WHERE impression = ?", rows)
    connection.close()


def edit(path, statement, *values):
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


@pytest.fixture
def place(shop, tmp_path, monkeypatch):
    """A copy of the shop's registry and served log; the recipe still names the shop's data set."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shop / "registry", tmp_path / "registry")
    shutil.copy(shop / "served.sqlite", tmp_path / "served.sqlite")
    return tmp_path


@pytest.fixture
def registry(place):
    return genre.Registry(place / "registry")


def read(registry, place, **options):
    options = {"paths": (place / "served.sqlite",), "joined": place / "joined"} | options
    return Feedback.read(registry, REF, ServedOptions(**options))


def test_what_was_shown_is_learnt_once_and_the_better_policy_takes_over(registry, place, base):
    old, feedback = registry.resolve(REF), read(registry, place, gate=GATE)
    done = refresh(registry, REF, feedback, base=base)
    report, policy = done.report, done.report["policy"]
    assert report["decision"] == "promoted" and registry.resolve(REF).digest == done.version.digest, report["compared"]
    assert policy["new"] > policy["old"] + 0.1 and policy["interval"][0] > 0 and policy["policy"] == POLICY
    assert (policy["outcome"], policy["reason"]) == ("not worse", None) and policy["effective_lists"] >= GATE.least
    assert "off-policy value by snips" in registry.history("click", "production")[-1].checks[-1]
    assert report["data"]["served"]["lists"] == LISTS and report["data"]["served"]["rewards"] > 0
    assert report["data"]["new"] == LISTS * PLACES + (first_log().timestamps > report["data"]["since"]).sum()
    # the joined log is a data set: the version's own figure comes out of it, by the usual command
    joined = Interactions.read(place / "joined")
    assert joined.digest == done.version.manifest.data.digest == report["data"]["digest"]
    again = evaluate(registry, REF, joined, base, baselines="none")["tasks"]["click"]["adapter"]["auc"]
    assert again["value"] == pytest.approx(report["tasks"]["click"]["new"], abs=1e-6)
    assert joined.info.users_key == feedback.log.info.users_key  # who trained it can be told with either folder's key
    assert done.version.manifest.parents == (old.digest,)
    made = plan(joined, report["data"]["since"], replay=0.2, valid=0.1, test=0.3, block=16, seed=0)
    turned = feedback.judge(registry, done.version, old, made, 0.01, base, Reporter.silent())
    assert turned.outcome == "worse" and turned.difference == pytest.approx(-policy["difference"]) and turned.interval[1] < 0

    # nothing counts twice: neither from the joined log that the new version names, nor from the first data set
    own = Feedback.read(registry, REF, ServedOptions((place / "served.sqlite",)))
    assert own.folder == place / "joined" and own.log.digest == joined.digest
    for same in (own, read(registry, place)):
        found = refresh(registry, REF, same, base=base)
        assert found.report["decision"] == "nothing new" and found.version is None
        assert f"the served log holds {LISTS} lists" in found.report["why"]

    # what the first refresh held out is new to the second one, what trained is not; lists that no served log has any more stay
    since, times = done.version.manifest.data.time_span[1], joined.timestamps
    assert report["data"]["train"] == ((times > report["data"]["since"]) & (times <= since)).sum()
    age(place / "served.sqlite", time.time() - 40_000)
    for table in ("impressions", "shown"):
        edit(place / "served.sqlite", f"UPDATE {table} SET impression = 'again ' || impression")
    more = read(registry, place)
    assert len(lists_of(more.log)) == 2 * LISTS * PLACES
    second = refresh(registry, REF, more, RefreshOptions(overrides=("train.epochs=1",)), base=base).report
    assert second["data"]["since"] == since and second["data"]["new"] == (times > since).sum() + LISTS * PLACES


def test_a_policy_that_is_not_shown_to_be_no_worse_is_kept_back_and_not_made_again(registry, place, tiny, capsys):
    before = registry.aliases("click")
    asked = ["refresh", REF, "--registry", "registry", "--base", str(tiny), "--served", "served.sqlite", "--joined", "joined"]
    asked += ["--gate", "off-policy", "--explore-pool", str(POOL), "--least-lists", "100", "--places", "1", "--estimator", "dr"]
    asked += ["--set", "train.epochs=1", "--json", "refresh.json"]
    assert cli.main(asked) == 0
    out, found = capsys.readouterr().out, json.loads((place / "refresh.json").read_text())
    assert f"off-policy value by dr under {POLICY}" in out
    assert found["decision"] == "kept" and found["policy"]["outcome"] == "cannot be told" and "click@production stays" in out
    assert f"(the weights are worth {found['policy']['effective_lists']:,.0f} equal lists, expected at least 100" in out
    assert found["data"]["served"]["asked"]["gate"]["places"] == 1
    assert registry.aliases("click") == before | {"candidate": found["new"]["ref"].split(":")[1]}
    assert cli.main(asked) == 0
    assert f"{found['new']['ref']} was trained on the same log and did not take over" in capsys.readouterr().out


def test_what_stops_before_a_decision_leaves_no_version(registry, place, base, monkeypatch):
    """A policy that is not known is refused before training; an interruption of the comparison is as if nothing had been made."""
    shutil.copy(place / "served.sqlite", place / "strange.sqlite")
    edit(place / "strange.sqlite", "UPDATE impressions SET policy = 'ucb=1'")
    with pytest.raises(InputError, match="--explore cannot be used: got 'ucb=1'"):
        refresh(registry, REF, read(registry, place, paths=(place / "strange.sqlite",), gate=GATE), base=base)
    assert not (place / "joined").exists()

    def interrupted(*_, **__):
        assert len(registry.versions("click")) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr("genre.jobs.refresh.policy_gate.policy_rounds", interrupted)
    options, before = RefreshOptions(overrides=("train.epochs=1",)), registry.versions("click")
    with pytest.raises(KeyboardInterrupt):
        refresh(registry, REF, (again := read(registry, place, gate=GATE)), options, base=base)
    assert registry.versions("click") == before
    assert again.made_before(registry, registry.resolve(REF), options) is None


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({}, "not worse", None),
        ({"interval": [-0.2, 0.3]}, "cannot be told", "the interval of the difference reaches below the margin"),
        ({"interval": [-0.2, -0.05], "value": -0.1}, "worse", None),
        (
            {"effective": 99.4},
            "cannot be told",
            "the weights are worth 99 equal lists, expected at least 100: wait for more lists",
        ),
        ({"users": 19}, "cannot be told", "the lists are of 19 users, expected at least 20"),
        ({"rewards": 9}, "cannot be told", "the values rest on 9 rewards, expected at least 10"),
        ({"interval": None}, "cannot be told", "the values rest on 50 rewards, expected at least 10"),
    ],
)
def test_what_decides(changes, outcome, reason):
    given = {"interval": [-0.001, 0.1], "value": 0.05, "effective": 200.0, "rewards": 50, "users": 30} | changes
    enough = {"effective_lists": 300.0, "rewards_with_weight": 60}
    weights = {"old": enough, "new": {"effective_lists": given["effective"], "rewards_with_weight": given["rewards"]}}
    found = {"old": 0.2, "new": 0.25, "difference": {"value": given["value"], "interval": given["interval"]}, "weights": weights}
    verdict = PolicyVerdict.of(found, PolicyGate(places=1), "softmax=1", 400, given["users"], 0.01)
    assert (verdict.outcome, verdict.reason) == (outcome, reason) and verdict.margin == pytest.approx(0.002)
    assert verdict.line().endswith(f": {outcome}")


def test_too_few_held_out_lists_train_nothing(registry, place, base):
    gate = PolicyGate(least=1000)
    done = refresh(registry, REF, read(registry, place, gate=gate), base=base)
    assert done.report["decision"] == "too small" and not (place / "joined").exists()
    assert "explored lists of click; expected at least 1,000: wait for more lists" in done.report["why"]


def test_logs_of_which_nothing_can_be_learnt_yet(registry, place, base):
    """All younger than what settles; shown to nobody who is named; empty."""
    path = place / "served.sqlite"
    assert (
        f"{LISTS} younger than 1e+09 s that wait (--settle)"
        in refresh(registry, REF, read(registry, place, settle_s=1e9), base=base).report["why"]
    )
    edit(path, "UPDATE impressions SET user = NULL")
    nameless = refresh(registry, REF, read(registry, place), base=base).report
    assert (
        nameless["decision"] == "nothing new"
        and f"holds 0 lists with 0 rewards, and {LISTS} without a user_id" in nameless["why"]
    )
    ServedLog(place / "empty.sqlite").close()
    empty = refresh(registry, REF, read(registry, place, paths=(place / "empty.sqlite",)), base=base).report
    assert empty["decision"] == "nothing new" and "the served log holds 0 lists with 0 rewards" in empty["why"]
    assert not (place / "joined").exists()


def test_who_was_forgotten_stays_out_and_no_other_data_set_is_replaced(registry, place, shop):
    """Neither the served log nor a joined log from before brings a user back."""
    shutil.copytree(shop / "shop", place / "own")
    asked = ServedOptions((place / "served.sqlite",))
    first = Feedback.read(registry, REF, asked, str(place / "own"))
    first.keep(Reporter.silent())
    assert first.folder == place / "own-served" and (place / "own-served").is_dir()
    forget_users(place / "own", ["u3"])
    again = Feedback.read(registry, REF, asked, str(place / "own"))
    assert "u3" in first.log.user_ids and "u3" not in again.log.user_ids and again.facts["forgotten"] == TIMES
    assert len(lists_of(first.log)) - len(lists_of(again.log)) == TIMES * PLACES
    with pytest.raises(InputError, match=r"own is no joined log: got another data set; expected a new folder; .*--joined"):
        Feedback.read(registry, REF, replace(asked, joined=place / "own"), str(place / "own"))


def test_a_log_that_nothing_was_drawn_for_says_nothing_of_another_policy(registry, place, base):
    edit(place / "served.sqlite", "UPDATE impressions SET policy = 'best'")
    edit(place / "served.sqlite", "UPDATE shown SET propensity = 1")
    with pytest.raises(DataError, match=r"says nothing of another policy: got no list that was drawn by chance; .*--explore"):
        refresh(registry, REF, read(registry, place, gate=GATE), base=base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gate", "off-policy", "--data", "shop"], "--gate has no effect here: got no --served"),
        (["--served", "served.sqlite", "--from-start"], "--served has no effect here: got --from-start"),
        (["--served", "served.sqlite", "--gate", "value"], "no such gate: got --gate value; expected metrics or off-policy"),
        (["--served", "served.sqlite", "--places", "2"], "--places has no effect here: got --gate metrics"),
        (["--settle", "5", "--data", "shop"], "--settle has no effect here: got no --served"),
        (["--served", "served.sqlite", "--settle", "-1"], "--settle is out of range: got -1.0"),
        (["--served", "served.sqlite", "--gate", "off-policy", "--estimator", "ips"], "--estimator cannot be used: got ips"),
        (["--served", "nowhere"], "nowhere is no served log: got no such file"),
        (["--served", "served.sqlite", "--reward", "stars"], "stars"),
        ([], "no data set is named: got neither --data nor GENRE_DATA; expected --data DIR, or --served FILE"),
    ],
)
def test_options_that_do_not_fit(place, capsys, options, message):
    assert cli.main(["refresh", REF, "--registry", "registry", *options]) == 2
    assert message in capsys.readouterr().err
