"""Off-policy values against obp on the whole distribution, by hand, and where the truth is known."""

import sys

import numpy as np
import pytest

from standins import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from off_policy import Rounds, estimate, greedy, softmax, uniform  # noqa: E402

KINDS, ITEMS = 3, 5


class Bandit:
    """Contexts of three kinds, five items, a click share for each pair; the value of any policy is known."""

    def __init__(self, seed=0):
        draw = np.random.default_rng(seed)
        self.share = draw.uniform(0.02, 0.4, (KINDS, ITEMS))
        self.logging = draw.dirichlet(np.ones(ITEMS) * 2, KINDS).clip(0.03)
        self.logging /= self.logging.sum(1, keepdims=True)

    def rounds(self, count, seed):
        draw = np.random.default_rng(seed)
        kind = draw.integers(0, KINDS, count)
        action = (draw.random(count)[:, None] > self.logging[kind].cumsum(1)).sum(1).clip(0, ITEMS - 1)
        reward = (draw.random(count) < self.share[kind, action]).astype(float)
        return kind, Rounds(action, reward, self.logging[kind, action], np.ones((count, ITEMS), dtype=bool))

    def value(self, policy):
        """Of [kinds, items] probabilities; kinds are equally frequent."""
        return float((self.share * policy).sum(1).mean())


def test_by_hand():
    """Two rounds, two items: the policy shows item 0 always, the log showed each with one half."""
    rounds = Rounds(np.array([0, 1]), np.array([1.0, 1.0]), np.array([0.5, 0.5]), np.ones((2, 2), dtype=bool))
    always = np.array([[1.0, 0.0]] * 2)
    found = estimate(rounds, {"always": always}, np.full((2, 2), 0.25), resamples=0)
    assert found["always"]["ips"]["value"] == (2 * 1 + 0 * 1) / 2 and found["always"]["snips"]["value"] == 2 / 2
    assert found["always"]["dr"]["value"] == ((0.25 + 2 * 0.75) + (0.25 + 0)) / 2
    assert found["always"]["weights"] == {
        "effective_rounds": 1.0,
        "rounds_with_weight": 1,
        "rewards_with_weight": 1,
        "few_rewards": True,
        "clip": 100.0,
        "clipped": 0,
        "largest": 2.0,
        "mean": 1.0,
    }
    assert found["logging"]["on_policy"]["value"] == 1 and found["always"]["minus_logging"]["ips"]["value"] == 0
    clipped = estimate(rounds, {"always": always}, np.full((2, 2), 0.25), clip=1.5, resamples=0)["always"]
    assert clipped["ips"]["value"] == 1.5 / 2 and clipped["weights"]["clipped"] == 1


def test_no_reward_under_the_weights_gives_no_interval():
    rounds = Rounds(np.array([0, 1] * 20), np.array([0.0, 1.0] * 20), np.full(40, 0.5), np.ones((40, 2), dtype=bool))
    always = np.array([[1.0, 0.0]] * 40)
    found = estimate(rounds, {"always": always, "uniform": uniform(rounds.candidates)}, np.full((40, 2), 0.1), resamples=20)
    assert (
        found["always"]["ips"] == {"value": 0.0, "interval": None} and found["always"]["minus_logging"]["dr"]["interval"] is None
    )
    assert found["always"]["weights"]["rewards_with_weight"] == 0 and found["uniform"]["ips"]["interval"] is not None


def test_two_actions_give_what_the_whole_distribution_gives():
    """Folding what was not shown into one action changes none of obp's estimators."""
    from obp import ope

    world = Bandit()
    kind, rounds = world.rounds(500, 1)
    draw = np.random.default_rng(2)
    policy, expected = draw.dirichlet(np.ones(ITEMS), KINDS)[kind], draw.random((KINDS, ITEMS))[kind]
    found = estimate(rounds, {"drawn": policy}, expected, resamples=0)["drawn"]
    log = {"reward": rounds.reward, "action": rounds.action, "pscore": rounds.propensity, "action_dist": policy[:, :, None]}
    assert found["ips"]["value"] == pytest.approx(ope.InverseProbabilityWeighting().estimate_policy_value(**log))
    whole = ope.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**log)
    assert found["snips"]["value"] == pytest.approx(whole)
    whole = ope.DoublyRobust().estimate_policy_value(**log, estimated_rewards_by_reg_model=expected[:, :, None])
    assert found["dr"]["value"] == pytest.approx(whole)


@pytest.mark.parametrize("model", ["true", "wrong"])
def test_intervals_cover_a_known_value(model):
    """Of twelve logs; a right model of the reward narrows the doubly robust interval, a wrong one does not bend it."""
    world = Bandit()
    policies = {"greedy": greedy(world.share, np.ones_like(world.share, dtype=bool)), "uniform": np.full((KINDS, ITEMS), 0.2)}
    held = {(name, way): 0 for name in policies for way in ("ips", "snips", "dr")}
    width = dict.fromkeys(held, 0.0)
    for seed in range(12):
        kind, rounds = world.rounds(800, 100 + seed)
        expected = world.share[kind] if model == "true" else np.full((800, ITEMS), 0.9)
        found = estimate(rounds, {name: one[kind] for name, one in policies.items()}, expected, resamples=60, seed=seed)
        for (name, way), count in held.items():
            low, high = found[name][way]["interval"]
            held[name, way] = count + (low <= world.value(policies[name]) <= high)
            width[name, way] += high - low
    assert min(held.values()) >= 9
    assert (width["greedy", "dr"] < width["greedy", "ips"]) == (model == "true")


def test_policies():
    candidates = np.array([[True, True, False], [True, True, True]])
    scores = np.array([[0.1, 0.1, 9.0], [0.1, 0.2, 0.7]])
    assert greedy(scores, candidates).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert uniform(candidates).tolist() == [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert softmax(np.log(scores), candidates) == pytest.approx(np.array([[0.5, 0.5, 0], [0.1, 0.2, 0.7]]))


GOOD = {"action": [0, 1], "reward": [0.0, 1.0], "propensity": [0.5, 0.5], "candidates": [[True, True]] * 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propensity": [0.5, 0.0]}, "the propensity of round 1 is none: got 0.0; expected above 0, at most 1"),
        ({"action": [0, 2]}, "round 1 shows what is not a candidate: got place 2"),
        ({"candidates": [[True, True], [True, False]]}, "round 1 shows what is not a candidate: got place 1"),
        ({"reward": [np.nan, 1.0]}, "the reward of round 0 is not a finite number"),
        ({"reward": [1.0]}, "the rounds' arrays differ in length: expected 2 of each"),
    ],
)
def test_bad_rounds_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Rounds(**{name: np.array(value) for name, value in (GOOD | changes).items()})


def test_what_is_no_policy_is_refused():
    rounds = Rounds(**{name: np.array(value) for name, value in GOOD.items()})
    with pytest.raises(ValueError, match="policy 'half' is not a distribution over the candidates"):
        estimate(rounds, {"half": np.full((2, 2), 0.25)}, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="has another shape"):
        estimate(rounds, {"short": np.full((1, 2), 0.5)}, np.zeros((2, 2)))
