"""Checkpoints of a run: written whole or not at all, read again bit for bit, and a log that does not run ahead of them.

Owns: the file's place and form. Ignores: what trains.

    run folder/checkpoints/last.pt     weights, best weights, optimizer, random numbers, state
"""

import json
from pathlib import Path
from typing import Any

import torch

from genre.errors import InputError
from genre.files import atomic


def write_checkpoint(folder: Path, name: str, payload: dict[str, Any]) -> None:
    """Write a checkpoint aside and rename it into place, so that a cut never leaves half of one."""
    with atomic(folder / "checkpoints" / f"{name}.pt") as aside:
        torch.save(payload, aside)


def read_checkpoint(folder: Path, device: torch.device) -> dict[str, Any]:
    """The run folder's last checkpoint; what a killed run left half-written beside it is removed.

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
            "the checkpoint cannot be read", got=f"{file}: {str(error).splitlines()[0][:120]}", todo="train without --resume"
        ) from None
    return found


def fitted_encoder(folder: Path) -> bool:
    """Whether the run folder's last checkpoint is of a run that fits its own encoder."""
    file = folder / "checkpoints" / "last.pt"
    if not file.exists():
        return False
    return any(name.startswith("encoder.") for name in read_checkpoint(folder, torch.device("cpu"))["weights"])


def trim_log(file: Path, step: int, epoch: int) -> None:
    """Take the lines out of a run's log that a checkpoint knows nothing of: they are about to be written again.

    Args:
        file: `log.jsonl`.
        step: The checkpoint's.
        epoch: The checkpoint's; validations of this epoch and later ones go too.
    """
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            found = json.loads(line)
        except ValueError:  # cut while it was written
            continue
        validation = any(key.startswith("valid.") for key in found)
        if found["step"] <= step and not (validation and found["epoch"] >= epoch):
            kept.append(line)
    with atomic(file) as aside:
        aside.write_text("".join(kept), encoding="utf-8")
