"""Client-level noise: clipped updates, Gaussian noise on their sum, and the epsilon of all rounds together.

Owns: these. Ignores: who adds the noise, what an update is of.

    >>> round(epsilon(1.0, rounds=10, delta=1e-2), 2), round(epsilon(4.0, rounds=10, delta=1e-2), 2)
    (11.61, 1.69)

The unit is a client: two runs are neighbours if one has a client's updates and the other zeros in their place, so the sum of
updates of length at most C moves by at most C. Noise N(0, (z C)²) on it is a Gaussian mechanism of μ = 1 / z, and k rounds of it
are one of μ = √k / z (Dong, Roth and Su, 2019), whose epsilon at a delta is exact (Balle and Wang, 2018).
"""

import math

import numpy as np

from genre.errors import InputError
from genre.training.private.noise import Noise


def clipped(update: np.ndarray, most: float) -> np.ndarray:
    """An update, (n,), scaled down to a length of at most `most`."""
    length = float(np.linalg.norm(update))
    return update if length <= most else update * (most / length)


def noisy(mean: np.ndarray, clients: int, *, clip: float, multiplier: float, source: Noise | None = None) -> np.ndarray:
    """A mean of clipped updates, (n,), with noise of deviation `multiplier` times `clip` on their sum.

    Args:
        mean: All clients count alike in it.
        clients: Their number.
        clip: The greatest length of an update.
        multiplier: Of the noise.
        source: By default the operating system, which nobody can repeat.
    """
    return mean + (source or Noise()).normal(len(mean)) * (multiplier * clip / clients)


def epsilon(multiplier: float, *, rounds: int, delta: float) -> float:
    """The epsilon at `delta` of so many rounds with noise of `multiplier` times the clipping length.

    Raises:
        InputError: An argument is out of range.
    """
    if not multiplier > 0 or not 0 < delta < 1 or rounds < 1:
        got = f"noise {multiplier:g}, delta {delta:g}, {rounds} rounds"
        raise InputError("the noise has no epsilon", got=got, expected="noise above 0, delta in (0, 1), 1 round or more")
    from scipy.optimize import brentq
    from scipy.stats import norm

    mu = math.sqrt(rounds) / multiplier

    def excess(value: float) -> float:
        second = math.exp(value + norm.logcdf(-value / mu - mu / 2))
        return float(norm.cdf(-value / mu + mu / 2) - second - delta)

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high))
