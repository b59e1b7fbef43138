"""Checkpoints of a run: written whole or not at all, and read again bit for bit.

Owns: the file's place and form, the counters of a run. Ignores: what trains.

    run folder/checkpoints/last.pt     weights, best weights, optimizer, random numbers, state
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genre.errors import InputError, first_line
from genre.files import atomic
from genre.training.runtime import random_states, set_random_states

PARTS = frozenset({"weights", "state", "best", "average", "optimizer", "random", "random_device"})
"""What a checkpoint holds at least."""


@dataclass
class TrainingState:
    """The counters of a run; what a checkpoint holds beside weights and optimizer."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    targets: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_value: float | None = None
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stale(self) -> int:
        """Epochs since the best validated one; 0 where nothing was validated."""
        return 0 if self.best_value is None else self.epoch - 1 - self.best_epoch


def snapshot(
    state: TrainingState,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Mapping[str, Tensor]],
    devices: Iterable[torch.device],
) -> dict[str, Any]:
    """Everything that the next step depends on.

    Args:
        state: The counters.
        optimizer: With its moments.
        tensors: `weights`, `best` and `average`, each by parameter; they go to the CPU.
        devices: Those whose random numbers are drawn, beside the CPU's.
    """
    return {
        "state": vars(state).copy(),
        "optimizer": optimizer.state_dict(),
        **{part: {key: value.detach().cpu() for key, value in held.items()} for part, held in tensors.items()},
        "random": torch.get_rng_state(),
        "random_device": random_states(list(devices)),
    }


def check_parameters(payload: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint is of the same trained parameters.

    Raises:
        InputError: It is not.
    """
    theirs = {(name, tuple(value.shape)) for name, value in payload["weights"].items()}
    own = {(name, tuple(value.shape)) for name, value in parameters.items()}
    if theirs != own:
        different = sorted({name for name, _ in theirs ^ own})[:3]
        raise InputError("the checkpoint is of another recipe", got=different, expected="the same trained parameters")


def restore_random(payload: Mapping[str, Any], device: torch.device) -> None:
    """Go on with a checkpoint's random numbers; those of an older one, which has one device's, are that device's."""
    torch.set_rng_state(payload["random"])
    there = payload["random_device"] or {}
    set_random_states({str(device): there} if isinstance(there, Tensor) else there)


def write_checkpoint(folder: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint aside and rename it into place, so that a cut never leaves half of one."""
    with atomic(folder / "checkpoints" / "last.pt") as aside:
        torch.save(payload, aside)


def read_checkpoint(folder: Path, device: torch.device) -> dict[str, Any]:
    """Read the run folder's last checkpoint; what a killed run left half-written beside it is removed.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    file = folder / "checkpoints" / "last.pt"
    if not file.exists():
        raise InputError(
            "there is nothing to resume", got=str(folder), expected="checkpoints/last.pt", todo="train without --resume"
        )
    for left in file.parent.glob(f".{file.name}.*"):
        left.unlink(missing_ok=True)
    try:
        found: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # torch's reader raises many kinds
        raise InputError(
            "the checkpoint cannot be read", got=f"{file}: {first_line(error, 120)}", todo="train without --resume"
        ) from None
    lacking = sorted(PARTS - found.keys()) if isinstance(found, dict) else sorted(PARTS)
    if lacking:
        got = f"{file} without {lacking[0]}"
        raise InputError("the checkpoint cannot be read", got=got, expected="all that a run keeps", todo="train without --resume")
    return found


def fitted_encoder(folder: Path) -> bool:
    """True if the run folder's last checkpoint is of a run that fits its own encoder."""
    file = folder / "checkpoints" / "last.pt"
    if not file.exists():
        return False
    return any(name.startswith("encoder.") for name in read_checkpoint(folder, torch.device("cpu"))["weights"])
