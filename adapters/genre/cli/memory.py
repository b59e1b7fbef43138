"""Device memory as `genre train --dry-run`, `genre train --plan` and `genre serve --dry-run` print it.

Owns: the lines. Ignores: how the figures come about.
"""

from typing import TYPE_CHECKING

from genre.cli.output import format_size

if TYPE_CHECKING:
    from genre.jobs.memory import ServiceMemory
    from genre.training.memory_plan import TrainingMemory


def training_lines(found: "TrainingMemory", device: str, *, checkpoint: bool) -> list[tuple[str, str]]:
    """The parts of a run's memory, and its peak with and without checkpointing."""
    parts = {"base": found.base, "adapter": found.adapter, "items": found.items, "copies": found.copies}
    held = ", ".join(f"{name} {format_size(size)}" for name, size in (parts | {"optimizer": found.optimizer}).items())
    again = "" if found.checkpointed is None else f", {format_size(found.checkpointed)} with checkpointed activations"
    peak = f"peak {format_size(found.total())}"
    if found.checkpointed is not None:
        peak += f", {format_size(found.total(checkpoint=True))} with train.checkpoint_activations"
        peak += " (as here)" if checkpoint else ""
    added = f"a step adds {format_size(found.step)}{again}, an evaluation batch {format_size(found.evaluation)}"
    return [("device", f"{held} on {device}; predicted"), ("", f"{added}; predicted"), ("", f"{peak}; predicted")]


def service_lines(found: "ServiceMemory", device: str) -> list[str]:
    """The parts of a service's memory, and their sum."""
    parts = {
        "base": found.base,
        "adapter slots": found.adapters,
        "heads": found.heads,
        "items": found.items,
        "history cache": found.histories,
        "a forward pass": found.passing,
        "in all": found.total,
    }
    lines = [f"memory on {device}, predicted from shapes; no weights were loaded"]
    return [*lines, *(f"  {name:<16}{format_size(size)}" for name, size in parts.items())]
