"""Off-policy values against obp, by hand, and where the truth is known."""

import numpy as np
import pytest

from genre.errors import DataError
from genre.evaluation.exploring import Exploration
from genre.evaluation.off_policy import ESTIMATORS, Rounds, estimate

KINDS, ITEMS = 3, 5


class Bandit:
    """Contexts of three kinds, five items, a click share for each pair; the value of any policy of one item is known."""

    def __init__(self, seed=0):
        draw = np.random.default_rng(seed)
        self.share = draw.uniform(0.02, 0.4, (KINDS, ITEMS))
        self.logging = draw.dirichlet(np.ones(ITEMS) * 2, KINDS).clip(0.03)
        self.logging /= self.logging.sum(1, keepdims=True)

    def rounds(self, count, seed, policy, expected):
        """Lists of one item; `policy` and `expected` are (kinds, items)."""
        draw = np.random.default_rng(seed)
        kind = draw.integers(0, KINDS, count)
        action = (draw.random(count)[:, None] > self.logging[kind].cumsum(1)).sum(1).clip(0, ITEMS - 1)
        reward = (draw.random(count) < self.share[kind, action]).astype(float)
        every = np.ones((count, ITEMS), dtype=bool)
        return Rounds.of_choices(action, reward, self.logging[kind, action], every, policy[kind], expected[kind])

    def value(self, policy):
        """Of (kinds, items) probabilities; kinds are equally frequent."""
        return float((self.share * policy).sum(1).mean())


def of_lists(rewards, propensities, policies, users=None):
    values = [np.array(each, dtype=float) for each in (rewards, propensities, policies)]
    zero = np.zeros_like(values[0])
    return Rounds(*values, zero, zero, np.arange(len(rewards)) if users is None else np.array(users))


def greedy(share):
    return np.eye(ITEMS)[share.argmax(1)]


def test_by_hand():
    """Two rounds, two items: the policy shows item 0 always, the log showed each with one half."""
    every, always, model = np.ones((2, 2), dtype=bool), np.array([[1.0, 0.0]] * 2), np.full((2, 2), 0.25)
    rounds = Rounds.of_choices(np.array([0, 1]), np.ones(2), np.full(2, 0.5), every, always, model)
    found = estimate(rounds, resamples=0)
    doubly = ((0.25 + 2 * 0.75) + (0.25 + 0)) / 2
    assert _values(found) == {"ips": (2 * 1 + 0 * 1) / 2, "snips": 2 / 2, "dr": doubly, "switch_dr": doubly}
    assert found["weights"] == {
        "effective_lists": 1.0,
        "lists_with_weight": 1,
        "rewards_with_weight": 1,
        "few_rewards": True,
        "clip": 100.0,
        "clipped": 0,
        "largest": 2.0,
        "mean": {"value": 1.0, "interval": None},
    }
    assert found["logging"]["value"] == 1 and found["minus_logging"]["ips"]["value"] == 0
    clipped = estimate(rounds, clip=1.5, switch=1.0, resamples=0)
    assert clipped["estimates"]["ips"]["value"] == 1.5 / 2 and clipped["weights"]["clipped"] == 1
    assert clipped["estimates"]["switch_dr"]["value"] == 0.25


def test_a_list_by_hand():
    """The second place weighs with the product of both; a list may end early."""
    nan = np.nan
    rounds = of_lists([[1, 2], [3, nan]], [[0.5, 0.5], [0.25, nan]], [[0.25, 1.0], [0.5, nan]])
    found = estimate(rounds, resamples=0)["estimates"]
    assert found["ips"]["value"] == ((0.5 * 1 + 1.0 * 2) + 2 * 3) / 2
    assert found["snips"]["value"] == (0.5 * 1 + 2 * 3) / (0.5 + 2) + (1.0 * 2 / 1.0) * 1 / 2
    assert found["dr"]["value"] == found["ips"]["value"]  # of a model that says 0


def test_no_reward_under_the_weights_gives_no_interval():
    rewards, propensities = [[0.0], [1.0]] * 20, [[0.5]] * 40
    never = estimate(of_lists(rewards, propensities, [[1.0], [0.0]] * 20), resamples=20)
    assert never["estimates"]["ips"] == {"value": 0.0, "interval": None}
    assert never["minus_logging"]["dr"]["interval"] is None and never["weights"]["rewards_with_weight"] == 0
    assert estimate(of_lists(rewards, propensities, [[0.5]] * 40), resamples=20)["estimates"]["ips"]["interval"] is not None


def test_single_items_equal_obp():
    from obp import ope

    world, draw = Bandit(), np.random.default_rng(2)
    policy, expected = draw.dirichlet(np.ones(ITEMS), KINDS), draw.random((KINDS, ITEMS))
    count, draw = 500, np.random.default_rng(1)
    kind = draw.integers(0, KINDS, count)
    action = np.array([draw.choice(ITEMS, p=world.logging[each]) for each in kind])
    reward = (draw.random(count) < world.share[kind, action]).astype(float)
    every = np.ones((count, ITEMS), dtype=bool)
    rounds = Rounds.of_choices(action, reward, world.logging[kind, action], every, policy[kind], expected[kind])
    found = _values(estimate(rounds, clip=np.inf, switch=2.0, resamples=0))
    log = {"reward": reward, "action": action, "pscore": world.logging[kind, action], "action_dist": policy[kind][:, :, None]}
    model = {"estimated_rewards_by_reg_model": expected[kind][:, :, None]}
    assert found["ips"] == pytest.approx(ope.InverseProbabilityWeighting().estimate_policy_value(**log), abs=1e-12)
    normalized = ope.SelfNormalizedInverseProbabilityWeighting()
    assert found["snips"] == pytest.approx(normalized.estimate_policy_value(**log), abs=1e-12)
    assert found["dr"] == pytest.approx(ope.DoublyRobust().estimate_policy_value(**log, **model), abs=1e-12)
    switch = ope.SwitchDoublyRobust(tau=2.0)
    assert found["switch_dr"] == pytest.approx(switch.estimate_policy_value(**log, **model), abs=1e-12)


def test_lists_equal_obp():
    from obp import ope

    draw, lists, places = np.random.default_rng(3), 60, 3
    reward = draw.integers(0, 2, (lists, places)).astype(float)
    propensity, policy = draw.uniform(0.2, 1, (lists, places)), draw.uniform(0, 1, (lists, places))
    expected, outlook = draw.random((lists, places)), draw.random((lists, places))
    rounds = Rounds(reward, propensity, policy, expected, outlook, np.arange(lists))
    log = {
        "slate_id": np.repeat(np.arange(lists), places),
        "reward": reward.ravel(),
        "position": np.tile(np.arange(places), lists),
        "pscore_cascade": propensity.cumprod(1).ravel(),
        "evaluation_policy_pscore_cascade": policy.cumprod(1).ravel(),
    }
    found = _values(estimate(rounds, clip=np.inf, resamples=0))
    assert found["ips"] == pytest.approx(ope.SlateRewardInteractionIPS(len_list=places).estimate_policy_value(**log))


def _values(found):
    return {name: entry["value"] for name, entry in found["estimates"].items()}


@pytest.mark.parametrize("model", ["true", "wrong"])
def test_intervals_cover_a_known_value(model):
    """Of twelve logs; a right model of the reward narrows the doubly robust interval, a wrong one does not bend it."""
    world = Bandit()
    policies = {"greedy": greedy(world.share), "uniform": np.full((KINDS, ITEMS), 0.2)}
    held = {(name, way): 0 for name in policies for way in ESTIMATORS[:3]}
    width = dict.fromkeys(held, 0.0)
    expected = world.share if model == "true" else np.full((KINDS, ITEMS), 0.9)
    for seed in range(12):
        for name, policy in policies.items():
            found = estimate(world.rounds(800, 100 + seed, policy, expected), resamples=100, seed=seed)["estimates"]
            for way in ESTIMATORS[:3]:
                low, high = found[way]["interval"]
                held[name, way] += low <= world.value(policy) <= high
                width[name, way] += high - low
    assert min(held.values()) >= 9
    assert (width["greedy", "dr"] < width["greedy", "ips"]) == (model == "true")


@pytest.mark.slow  # 400 logs, a minute
def test_intervals_cover_the_truth_in_95_percent_of_400_worlds():
    held = dict.fromkeys(ESTIMATORS[:3], 0)
    for seed in range(400):
        world = Bandit(seed)
        draw = np.random.default_rng(10_000 + seed)
        policy = draw.dirichlet(np.ones(ITEMS), KINDS)
        rounds = world.rounds(3_000, 20_000 + seed, policy, np.full((KINDS, ITEMS), 0.2))
        found = estimate(rounds, clip=np.inf, resamples=1_000, seed=seed)["estimates"]
        for way in held:
            low, high = found[way]["interval"]
            held[way] += low <= world.value(policy) <= high
    print(held)
    assert all(0.93 * 400 <= count <= 0.97 * 400 for count in held.values()), held


def test_users_are_drawn_whole():
    """Equal lists of one user tell as much as one of them: intervals do not narrow."""
    rewards, propensities, policies = [[1.0], [0.0]] * 30, [[0.5]] * 60, [[0.7], [0.3]] * 30
    once = estimate(of_lists(rewards, propensities, policies), resamples=200)
    four = (np.repeat(each, 4, axis=0) for each in (rewards, propensities, policies))
    again = estimate(of_lists(*four, users=np.repeat(np.arange(60), 4)), resamples=200)
    assert again["estimates"] == {
        name: {"value": pytest.approx(each["value"]), "interval": pytest.approx(each["interval"])}
        for name, each in once["estimates"].items()
    }


def test_weights_of_a_policy_outside_the_log_do_not_average_to_one():
    """Half of the time the policy wants an item that the log never shows: its weights average to one half."""
    found = estimate(of_lists([[1.0]] * 50, [[1.0]] * 50, [[0.5]] * 50), resamples=50)
    assert found["weights"]["mean"] == {"value": 0.5, "interval": [0.5, 0.5]}


def test_places_give_the_probabilities_that_draws_have():
    scores = np.array([2.0, 1.0, 0.5, -1.0])
    for text in ("epsilon=0.3", "softmax=2", "top-k-sampling=3", "epsilon=0"):
        policy = Exploration.parse(text, pool=4)
        chosen, propensities = policy.draw(scores, 3, np.random.default_rng(0))
        every = list(policy.places(scores, chosen.tolist()))
        assert [shares[index] for shares, index in zip(every, chosen, strict=True)] == pytest.approx(propensities.tolist())
        assert all(shares.sum() == pytest.approx(1) for shares in every)
    outside = list(Exploration.parse("softmax=1", pool=2).places(scores, [3, None, 0, 1, 0]))
    assert outside[0] == pytest.approx(outside[1]) and outside[3].tolist() == [0, 1] and outside[4].tolist() == [0, 0]


GOOD = {name: [[0.5], [0.5]] for name in ("reward", "propensity", "policy", "expected", "outlook")} | {"users": [0, 1]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propensity": [[0.5], [0.0]]}, "propensity of round 1, place 1: got 0.0; expected above 0, at most 1"),
        ({"policy": [[1.5], [0.0]]}, "policy of round 0, place 1: got 1.5; expected from 0 to 1"),
        ({"outlook": [[np.inf], [0.0]]}, "outlook of round 0, place 1: got inf; expected a finite number"),
        ({"reward": [[np.nan], [1.0]]}, "a round has a gap: got NaN before a reward"),
        ({"policy": [[1.0]]}, r"policy of the rounds has another shape: got \(1, 1\); expected \(2, 1\)"),
        ({"users": [0, 2]}, "users of the rounds: got .*; expected a code from 0 without gaps"),
        ({"reward": np.zeros((0, 1))}, "there are no rounds: got 0; expected at least one"),
    ],
)
def test_bad_rounds_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        Rounds(**{name: np.array(value) for name, value in (GOOD | changes).items()})


def test_what_is_no_choice_is_refused():
    every, half = np.array([[True, True], [True, False]]), np.full((2, 2), 0.5)
    with pytest.raises(DataError, match="a policy is no distribution over the candidates"):
        Rounds.of_choices(np.array([0, 0]), np.ones(2), np.ones(2), every, half, half)
    for action in ([0, 1], [0, 2]):
        with pytest.raises(DataError, match="a round shows what is no candidate"):
            Rounds.of_choices(np.array(action), np.ones(2), np.ones(2), every, half, half)
