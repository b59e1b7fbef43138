"""Statistics of attacks on privacy: who was guessed to have trained a model, and what that proves about epsilon.

Owns: figures of membership attacks with intervals, likelihood ratios from a few shadow models, a lower bound on epsilon from one
run. Ignores: models, losses, how users are inserted.

    figures = membership(scores, member, users)                    # AUC, true positives at 1 % false positives
    bound = epsilon_bound(scores, included, delta=1e-5)            # epsilon is at least bound.epsilon, 95 % sure

Nicholas Carlini et al., "Membership Inference Attacks From First Principles" (2022); Thomas Steinke, Milad Nasr and Matthew
Jagielski, "Privacy Auditing with One (1) Training Run" (2023), theorem 5.2.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import beta, binom

from genre.evaluation.metrics.auc import AucOrder
from genre.evaluation.metrics.bootstrap import LEVEL, RESAMPLES, user_draws

FALSE_POSITIVES = 0.01
"""The rate of false positives at which true positives are counted."""
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Shares of the canaries that are guessed about; fixed before scores are seen, each tested at its part of 1 - `LEVEL`."""
MOST_EPSILON = 64.0
"""Bounds are not looked for above this."""
_BLOCK = 2**21


@dataclass(frozen=True)
class Membership:
    """The figures of an attack that tells members from others.

    Attributes:
        auc: Of the scores; .5 is chance.
        auc_interval: 95 %, users drawn again.
        tpr: Share of members above a threshold that at most `FALSE_POSITIVES` of the others pass.
        tpr_interval: 95 %, exact for a binomial of as many trials as there are users who are members.
        members, others: Users.
        trials: Scores in all: a user counts once for each attacked model.
    """

    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    members: int
    others: int
    trials: int


def membership(scores: np.ndarray, member: np.ndarray, users: np.ndarray, *, seed: int = 0) -> Membership:
    """Return the figures of an attack.

    Args:
        scores: (n,) finite, higher for those that the attack takes for members.
        member: (n,) bool, those that are.
        users: (n,) codes; a user may come several times, once for each attacked model.
        seed: Of the draws of users.
    """
    names, codes = np.unique(users, return_inverse=True)
    order = AucOrder(member.astype(np.float64), scores)
    drawn = [
        order(weights[:, codes])
        for weights in user_draws(len(names), RESAMPLES, seed, block=max(1, _BLOCK // max(1, len(scores))))
    ]
    values = np.concatenate(drawn)
    edges = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(values[~np.isnan(values)], edges)
    tpr = true_positives(scores, member)
    members, others = (len(np.unique(users[each])) for each in (member, ~member))
    return Membership(
        auc=float(order(np.ones((1, len(scores))))[0]),
        auc_interval=(float(low), float(high)),
        tpr=tpr,
        tpr_interval=exact_interval(tpr * members, members),
        members=members,
        others=others,
        trials=len(scores),
    )


def true_positives(scores: np.ndarray, member: np.ndarray, rate: float = FALSE_POSITIVES) -> float:
    """The largest share of members above a threshold that at most `rate` of the others are above; ties with it do not count."""
    others = np.sort(scores[~member])[::-1]
    allowed = int(np.floor(rate * len(others) + 1e-9))
    threshold = others[allowed] if allowed < len(others) else -np.inf
    return float((scores[member] > threshold).mean())


def receiver_curve(scores: np.ndarray, member: np.ndarray, *, points: int = 200) -> list[tuple[float, float]]:
    """(false positives, true positives) at some thresholds, from (0, 0) to (1, 1), close together where few are false."""
    others, members = np.sort(scores[~member])[::-1], np.sort(scores[member])
    places = np.unique(np.geomspace(1, len(others), min(points, len(others))).astype(np.int64)) - 1
    passed = 1 - np.searchsorted(members, others[places], side="left") / len(members)
    middle = [(float(place + 1) / len(others), float(share)) for place, share in zip(places, passed, strict=True)]
    return [(0.0, true_positives(scores, member, 0.0)), *middle, (1.0, 1.0)]


def exact_interval(right: float, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share by Clopper and Pearson; `right` may be a mean count, no whole number."""
    tail = (1 - LEVEL) / 2
    low = 0.0 if right <= 0 else float(beta.ppf(tail, right, trials - right + 1))
    high = 1.0 if right >= trials else float(beta.ppf(1 - tail, right + 1, trials - right))
    return low, high


def confidence_of(losses: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of p = exp(-loss), which is nearer to a Gaussian than the loss is; same shape."""
    bounded = np.maximum(losses, 1e-6)
    return -bounded - np.log(-np.expm1(-bounded))


def likelihood_ratios(seen: np.ndarray, confidence: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Score the users of a model against shadow models, with and without shadows that they trained.

    A user's confidence is taken for Gaussian in models that they trained and in those that they did not, with a mean of their
    own and, as the shadows are few, one variance for all. Every user must train as many of the shadows: means of fewer are
    less certain, and who trained the attacked model could be told from that alone.

    Args:
        seen: (U,) confidence of the attacked model.
        confidence: (S, U) of each shadow.
        inside: (S, U) bool, users who trained the shadow.

    Returns:
        (U,) log likelihood ratios (online), NaN where no shadow was trained on the user, or every one; and (U,) how far the
        confidence lies above that of shadows without the user, in standard deviations (offline), NaN where there is none.
    """
    (mean_in, rest_in, free_in), (mean_out, rest_out, free_out) = (_about_means(confidence, mask) for mask in (inside, ~inside))
    freedom = free_in + free_out
    spread = max(np.sqrt((rest_in + rest_out) / freedom), 1e-6) if freedom else 1.0  # of one scale for all users
    above = (seen - mean_out) / spread
    return (above**2 - ((seen - mean_in) / spread) ** 2) / 2, above


def _about_means(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, float, int]:
    """(U,) means of the values of a mask, both (S, U), NaN where there are none; squares about them, and their freedom."""
    counts = mask.sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = np.where(mask, values, 0).sum(axis=0) / np.where(counts > 0, counts, np.nan)
    rest = np.where(mask, values - np.nan_to_num(means), 0)
    return means, float((rest**2).sum()), int((counts - 1)[counts > 1].sum())


@dataclass(frozen=True)
class EpsilonBound:
    """A lower bound on epsilon.

    Attributes:
        epsilon: The bound; 0 if nothing is proven.
        guesses, right: Of the share of canaries that gives the bound.
        canaries: m.
        delta: As given.
    """

    epsilon: float
    guesses: int
    right: int
    canaries: int
    delta: float


def epsilon_bound(scores: np.ndarray, included: np.ndarray, *, delta: float = 0.0) -> EpsilonBound:
    """Bound the epsilon of a training run from below, 95 % sure, by guessing which canaries it had.

    Canaries are guessed from both ends: those with the highest scores as included, as many with the lowest as left out, nothing
    about the others. Several numbers of guesses are tried (`SHARES`), each at its part of the error, so the best one counts.

    Args:
        scores: (m,) finite, higher for canaries that are taken for included; any function of the trained model.
        included: (m,) bool, each drawn with probability 1/2 on its own.
        delta: Of (epsilon, delta).
    """
    order, m = np.argsort(-scores, kind="stable"), len(scores)
    best = EpsilonBound(0.0, 0, 0, m, delta)
    sides = list(dict.fromkeys(max(1, min(round(share * m / 2), m // 2)) for share in SHARES))  # nobody is guessed twice
    for side in sides if m > 1 else ():
        right = int(included[order[:side]].sum() + (~included[order[m - side :]]).sum())
        found = least_epsilon(m, 2 * side, right, delta=delta, error=(1 - LEVEL) / len(sides))
        if found > best.epsilon or not best.guesses:
            best = EpsilonBound(found, 2 * side, right, m, delta)
    return best


def least_epsilon(canaries: int, guesses: int, right: int, *, delta: float, error: float) -> float:
    """The largest epsilon that so many right guesses refute at a level of `error`; 0 if they refute none."""
    if chance(canaries, guesses, right, 0.0, delta) > error:
        return 0.0
    if chance(canaries, guesses, right, MOST_EPSILON, delta) <= error:
        return MOST_EPSILON
    return float(brentq(lambda each: chance(canaries, guesses, right, each, delta) - error, 0.0, MOST_EPSILON))


def chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The largest probability of so many right guesses or more under (epsilon, delta)-differential privacy.

    With f(v) = P[Binomial(guesses, e^ε / (1 + e^ε)) ≥ v] it is f(v) + 2 m δ max_i (f(v - i) - f(v)) / i, at most 1.
    """
    tails = binom.sf(np.arange(-1, right), guesses, expit(epsilon))  # f(0), …, f(right)
    found = float(tails[-1])
    if delta and right:
        rises = tails[-2::-1] - tails[-1]  # i = 1, …, right
        found += 2 * canaries * delta * float((rises / np.arange(1, right + 1)).max())
    return min(found, 1.0)
