"""The time that a run has left after the present epoch: its further epochs, validation, the test part, the baselines.

Owns: these estimates, from the pace of the steps so far and, once there was one, the time of a validation. Ignores: how time is
shown.

    left = TimeLeft(assembly, test=True, baselines=40.0)
    left.later(epoch=0, steps=120)(0.5)     # {"2 more epochs": 120.0, "validation": 24.0, "test": 8.0, "baselines": 40.0}
"""

import numpy as np

from genre.data.interactions import Interactions
from genre.data.splits import TEST, VALID
from genre.progress import Later
from genre.training.assembly import Assembly

FORWARD = 1 / 3
"""Time of a forward pass, relative to a step of training on the same tokens."""


class TimeLeft:
    """Estimates of what follows an epoch.

    Args:
        assembly: The run.
        test: Whether the test part is evaluated after training.
        baselines: Seconds of the baselines after that.
    """

    def __init__(self, assembly: Assembly, *, test: bool = False, baselines: float = 0.0) -> None:
        self.epochs = assembly.recipe.train.epochs
        self.train, self.valid, self.test = (_events(assembly, part) for part in (None, VALID, TEST))
        self.tested = test
        self.baselines = baselines
        self.validation_s: float | None = None

    def later(self, epoch: int, steps: int) -> Later:
        """The phases after an epoch, counted from 0, that takes so many steps."""

        def estimate(step_s: float) -> dict[str, float]:
            more = self.epochs - epoch - 1
            per_event = FORWARD * steps * step_s / max(self.train, 1)
            validation = per_event * self.valid if self.validation_s is None else self.validation_s
            ratio = self.test / self.valid if self.valid else 0.0
            found = {f"{more} more epoch{'s' if more > 1 else ''}": more * steps * step_s, "validation": (more + 1) * validation}
            if self.tested:
                found["test"] = ratio * validation if self.valid else per_event * self.test
            return {name: seconds for name, seconds in (found | {"baselines": self.baselines}).items() if seconds > 0}

        return estimate


def _events(assembly: Assembly, part: int | None) -> int:
    """Events (or texts) that are read in an epoch, or to evaluate a part: about the windows of the users with targets there."""
    data = assembly.data
    wanted = assembly.train_mask if part is None else assembly.split.part == part
    if not isinstance(data, Interactions):
        return int(wanted.sum())
    targets = np.bincount(data.user_codes[wanted], minlength=len(data.user_ids))
    history = np.minimum(np.diff(data.user_offsets), assembly.recipe.data.max_events)
    return int((targets if part is None else targets + np.where(targets > 0, history, 0)).sum())
