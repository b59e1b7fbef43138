"""The ads benchmark from end to end on a small generated log, and its parts against plain computations."""

import sys

import numpy as np
import pytest

import genre
from genre.data.splits import TEST, TRAIN, split
from genre.evaluation.off_policy import ESTIMATORS
from genre.evaluation.targets import targets
from standins import ROOT, deep_base
from worlds import open_bandit

sys.path.insert(0, str(ROOT / "benchmarks"))

import ads  # noqa: E402

SMALL = ["base.depth=2", "train.epochs=1", "train.tracker=none"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ads")
    deep_base(folder / "causal", layers=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        open_bandit(rounds=60)
        yield folder


@pytest.fixture(scope="module")
def ads_log(place):
    return ads.open_log("data/open-bandit")


@pytest.fixture(scope="module")
def wanted(place):
    return genre.Recipe.read(ads.RECIPE, ["data.path=data/open-bandit", f"base.name={place / 'causal'}", *SMALL])


def test_from_training_to_values(place, ads_log, wanted, capsys):
    """Every figure is there with its interval; engine and evaluation agree; a random log's own value is that of chance."""
    base = genre.Base.load(str(place / "causal"), depth=2)
    result = ads.measure(wanted, ads_log, base, place / "run", 30)
    task = result["tasks"]["click"]
    assert (task["n"], task["users"]) == (72, 72) and task["clicks"] > 10
    assert list(task["methods"]) == ["adapter", "prior", "item_mean", "position_mean", "logistic_regression"]
    for name, entry in task["methods"].items():
        assert set(entry["metrics"]) == set(ads.METRICS) and all(each["n"] == 72 for each in entry["metrics"].values())
        assert (name == "adapter") != ("adapter_better_by" in entry)
    assert task["methods"]["prior"]["metrics"]["auc"]["value"] == 0.5
    assert 0 < task["adapter_ece_if_perfect"]["mean"] < 0.5
    assert result["engine_and_evaluation_apart"] < 1e-4
    assert set(result["off_policy"]) == {"random", "bts"}
    assert sum(found["uniform"]["lists"] for found in result["off_policy"].values()) == 72
    for found in result["off_policy"].values():
        assert all(set(found[name]["estimates"]) == set(ESTIMATORS) for name in found)
    random = result["off_policy"]["random"]["uniform"]
    for way in ESTIMATORS[:2]:  # every weight is one
        assert random["estimates"][way]["value"] == pytest.approx(random["logging"]["value"])
    assert random["weights"]["effective_lists"] == pytest.approx(random["lists"])
    ads.show({"off_policy": result["off_policy"], "tasks": result["tasks"]})
    assert "| adapter greedy |" in capsys.readouterr().out


def test_candidates_are_the_items_of_the_campaign(ads_log):
    campaigns = ads_log.catalogue.column("campaign").to_numpy()
    members = {name: np.flatnonzero(campaigns == name) for name in ("all", "men", "women")}
    events = np.arange(len(ads_log))
    action, codes, candidates = ads.choices_of(ads_log, events, members)
    assert np.array_equal(codes[events, action], ads_log.item_codes)
    assert np.array_equal(candidates.sum(1), [{"all": 6}.get(name, 4) for name in ads_log.column("campaign")])


def test_policies():
    candidates = np.array([[True, True, False], [True, True, True]])
    scores = np.array([[0.1, 0.1, 9.0], [0.1, 0.2, 0.7]])
    assert ads.greedy(scores, candidates).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert ads.uniform(candidates).tolist() == [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert ads.softmax(np.log(scores), candidates) == pytest.approx(np.array([[0.5, 0.5, 0], [0.1, 0.2, 0.7]]))


def test_baselines_see_training_events_alone(ads_log, wanted):
    """The regression without interactions has one item order for all people; the position's share is a plain mean."""
    chosen = split(ads_log, wanted.data.split)
    label = ads_log.column("click")
    changed = np.where(chosen.part == TEST, 1 - label, label)
    first, second = (ads.Regression(ads_log, chosen.part, values) for values in (label, changed))
    assert np.array_equal(first.item, second.item) and np.array_equal(first.person, second.person)
    scores = first(np.arange(20)[:, None], np.arange(ads_log.catalogue.size)[None, :])
    assert len({tuple(np.argsort(row)) for row in scores}) == 1 and ((scores > 0) & (scores < 1)).all()
    found = targets(ads_log, chosen, TEST, label)
    position, train = ads_log.column("position"), chosen.part == TRAIN
    expected = label[train & (position == position[found.event[0]])].mean()
    assert ads.position_mean(ads_log, chosen.part, label, found)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resamples", "0"], "--resamples is too small: got 0; expected 1 or more"),
        (["--resamples", "many"], "invalid int value: 'many'"),
        (["--epochs", "2"], "unrecognized arguments: --epochs 2"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ads.py", *arguments])
    with pytest.raises(SystemExit) as error:
        ads.main()
    assert error.value.code == 2 and message in capsys.readouterr().err
