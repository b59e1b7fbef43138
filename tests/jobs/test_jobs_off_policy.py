"""The off-policy value of a version: against the service that drew the lists, against a known truth, and wrong logs."""

import json

import numpy as np
import polars as pl
import pytest

import genre
from genre import cli
from genre.data.interactions import Interactions
from genre.errors import DataError, InputError
from genre.evaluation.exploring import Exploration
from genre.jobs.off_policy import evaluate_policy

REF, LIKE = "next_item@production", "like@production"
PLACES = 3


@pytest.fixture(scope="module")
def base(trained):
    return genre.Base.load(str(trained.base))


def lists(trained, base, policy, count, *, ref=REF, seed=0, rewarded=()):
    """What a service that draws by `policy` would have logged for so many users, a reward for the items of `rewarded`."""
    draw, log = np.random.default_rng(seed), trained.log
    drawn = Exploration.parse(policy, pool=6)
    users = [log.user_ids[code] for code in draw.integers(0, len(log.user_ids), count)]
    with genre.Engine(base, trained.registry, data=log) as engine:
        answers = engine.score([genre.Request(ref, user_id=user, k=6) for user in users])
    rows = []
    for number, (user, answer) in enumerate(zip(users, answers, strict=True)):
        chosen, chances = drawn.draw(np.array([item.score for item in answer.results]), PLACES, draw)
        for place, (index, chance) in enumerate(zip(chosen.tolist(), chances.tolist(), strict=True)):
            item = answer.results[index].item_id
            reward = float(item in rewarded)
            rows.append((user, item, 2_000_000_000 + number, f"l{number}", place + 1, chance, reward, int(reward > 0)))
    names = ("user_id", "item_id", "timestamp", "impression_id", "position", "propensity", "reward", "click")
    frame = pl.DataFrame(rows, schema=names, orient="row")
    return Interactions.from_frame(frame, items=log.catalogue.frame, name="served")


def test_the_policy_that_drew_the_log_has_the_value_of_the_log(trained, base):
    """Histories of the mounted log, chances of the version: every weight is 1, so a service and this job agree on both."""
    log = lists(trained, base, "softmax=2", 40, rewarded=trained.log.catalogue.item_ids[:8])
    found = evaluate_policy(trained.registry, REF, log, "softmax=2", data=trained.log, base=base, pool=6, resamples=20)
    assert found["weights"]["largest"] == pytest.approx(1, abs=1e-5)
    assert found["weights"]["effective_lists"] == pytest.approx(40)
    for name in ("ips", "snips"):
        assert found["estimates"][name]["value"] == pytest.approx(found["logging"]["value"], abs=1e-6)
    assert (found["lists"], found["places"], found["reward"], found["policy"]) == (40, PLACES, "reward", "softmax=2")
    assert found["digest"] == trained.registry.resolve(REF).digest


def test_another_policy_has_its_own_value(trained, base):
    """What the greedy list would have earned is known, since a reward is the item's: every estimator comes near it."""
    good = trained.log.catalogue.item_ids[:8]
    log = lists(trained, base, "epsilon=0.6", 400, rewarded=good, seed=1)
    with genre.Engine(base, trained.registry, data=trained.log) as engine:
        served = {user: engine.score([genre.Request(REF, user_id=user, k=1)])[0] for user in log.user_ids}
    counts = log.frame.filter(pl.col("position") == 1).group_by("user_id").len().rows()
    truth = sum(count * (served[user].results[0].item_id in good) for user, count in counts) / 400
    found = evaluate_policy(trained.registry, REF, log, data=trained.log, base=base, pool=6, places=1, resamples=50)
    for name, figure in found["estimates"].items():
        assert figure["value"] == pytest.approx(truth, abs=0.12), name
    low, high = found["weights"]["mean"]["interval"]
    assert low < 1 < high and found["places"] == 1


def test_without_data_the_log_is_its_own_history(trained, base):
    """Of a version that reads no feedback, items without a reward are no history; a list is not its own history."""
    log = lists(trained, base, "softmax=1", 30, rewarded=trained.log.catalogue.item_ids[:10])
    some = evaluate_policy(trained.registry, LIKE, log, "softmax=0.2", base=base, reward="click", resamples=5)
    assert some["lists"] == 30 and 0 < some["weights"]["effective_lists"] <= 30
    assert all(np.isfinite(figure["value"]) for figure in some["estimates"].values())


def test_lists_without_propensities_are_left_out_and_counted(trained, base):
    log = lists(trained, base, "softmax=1", 20)
    frame = log.frame.drop("row").with_columns(
        pl.when(pl.col("impression_id") == "l3").then(None).otherwise(pl.col("propensity")).alias("propensity")
    )
    partly = Interactions.from_frame(frame, items=log.catalogue.frame, name="served")
    found = evaluate_policy(trained.registry, REF, partly, "softmax=1", data=trained.log, base=base, resamples=0)
    assert (found["lists"], found["left_out"], found["rewards"]) == (19, 1, 0.0)


def test_only_items_of_the_events_value_could_be_shown(trained, base):
    """Chance over two items of one aisle: each of the log's single items has weight one."""
    items = trained.log.catalogue.frame.with_columns(pl.Series("aisle", [n // 2 for n in range(trained.log.catalogue.size)]))
    shown = pl.DataFrame(
        {
            "user_id": ["a", "b", "c", "d"],
            "item_id": items["item_id"][:4],
            "timestamp": [1, 2, 3, 4],
            "aisle": [0, 0, 1, 1],
            "propensity": [0.5] * 4,
            "click": [1, 0, 1, 1],
        }
    )
    log = Interactions.from_frame(shown, items=items, name="aisles")
    found = evaluate_policy(trained.registry, REF, log, "epsilon=1", base=base, among="aisle", resamples=0)
    assert found["weights"]["largest"] == pytest.approx(1) and found["estimates"]["ips"]["value"] == 0.75
    wrong = Interactions.from_frame(shown.with_columns(pl.lit(1).alias("aisle")), items=items, name="aisles")
    with pytest.raises(DataError, match="an event shows what could not be shown"):
        evaluate_policy(trained.registry, REF, wrong, base=base, among="aisle")


def test_from_the_command_line(trained, base, tmp_path, capsys):
    lists(trained, base, "softmax=1", 20, rewarded=trained.log.catalogue.item_ids[:8]).write(tmp_path / "served")
    trained.log.write(tmp_path / "shop")
    shared = ["--registry", str(trained.registry.url), "--base", str(trained.base)]
    asked = ["--policy", REF, "--logged", str(tmp_path / "served"), "--data", str(tmp_path / "shop"), "--explore", "softmax=1"]
    assert cli.main(["evaluate", *asked, *shared, "--explore-pool", "6", "--json", str(tmp_path / "value.json")]) == 0
    said = capsys.readouterr().out
    assert "switch-DR" in said and "20 lists of at most 3 places" in said and "the weights' mean is 1.0000" in said
    assert json.loads((tmp_path / "value.json").read_text())["weights"]["largest"] == pytest.approx(1, abs=1e-4)


def test_logs_that_cannot_be_used(trained, base):
    with pytest.raises(DataError, match="the log has no propensities: got .*; expected a column propensity"):
        evaluate_policy(trained.registry, REF, trained.log, base=base)
    log = lists(trained, base, "softmax=1", 3)
    for options, message in [({"places": 0}, "places: got 0"), ({"clip": float("nan")}, "clip: got nan; expected above 0")]:
        with pytest.raises(InputError, match=message):
            evaluate_policy(trained.registry, REF, log, base=base, **options)
    with pytest.raises(DataError, match="gain"):
        evaluate_policy(trained.registry, REF, log, base=base, reward="gain")
