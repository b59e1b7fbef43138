"""Checkpoints of a run: written whole or not at all, and read again bit for bit.

Owns: the file's place and form, the counters of a run. Ignores: what trains.

    run folder/checkpoints/last.pt     weights, best weights, optimizer, random numbers, state
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from genre.errors import InputError, first_line
from genre.files import atomic

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
