"""The random numbers of privacy: the operating system's, which no seed brings back.

Owns: uniform and normal draws, the one function by which anything of the users leaves. Ignores: what is released.

    noise = Noise(seed=None)
    drawn = noise.bernoulli(0.05, 943)                               # which users take part in a step
    noisy = noise.release(total, clip=1.0, sigma=0.9)                # total + N(0, (sigma · clip)²)

Bits are turned into normals by Box and Muller's formula in double precision. As in any implementation with floating-point numbers
the result lies on a grid, which who sees all bits of a release could use (Mironov, On Significance of the Least Significant
Bits for Differential Privacy, 2012); weights are released in single precision, after many steps.
"""

import math
import secrets

import numpy as np
import torch
from torch import Tensor


class Noise:
    """A source of noise.

    Args:
        seed: Fixes all draws, for tests; None draws from the operating system, and nothing of it is kept.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.random = None if seed is None else np.random.default_rng(seed)

    def uniform(self, count: int) -> np.ndarray:
        """(count,) float64 in (0, 1), of 53 bits each."""
        if self.random is not None:
            bits = self.random.integers(0, 2**64, count, dtype=np.uint64)
        else:
            bits = np.frombuffer(secrets.token_bytes(8 * count), dtype=np.uint64)
        return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def bernoulli(self, probability: float, count: int) -> np.ndarray:
        """(count,) bool, each true by itself with this probability."""
        return self.uniform(count) < probability

    def normal(self, count: int) -> np.ndarray:
        """(count,) float64 of variance one."""
        half = -(-count // 2)
        radius = np.sqrt(-2 * np.log(self.uniform(half)))
        angle = 2 * math.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def release(self, total: Tensor, *, clip: float, sigma: float) -> tuple[Tensor, Tensor]:
        """Make a sum over users public: the Gaussian mechanism.

        Args:
            total: (d,) a sum to which each user added a vector of norm at most `clip`.
            clip: That norm.
            sigma: Noise multiplier.

        Returns:
            (d,) float32 the noisy sum, and (d,) the noise alone, for checks.
        """
        noise = torch.from_numpy(self.normal(total.numel()) * (sigma * clip)).to(total.device, torch.float32).view_as(total)
        return total.float() + noise, noise

    def seed(self) -> int:
        """A seed for random numbers that are no noise, such as dropout's."""
        return int(self.uniform(1)[0] * 2**62)
