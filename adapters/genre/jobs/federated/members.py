"""The clients that take part, and what they have to agree on before anything is trained.

Owns: what a client told about itself, the feedback values and classes that all have in common. Ignores: rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genre.data.sequences.layout import FeedbackVocabulary
from genre.errors import DataError


@dataclass
class Member:
    """A client that takes part.

    Attributes:
        node: Its number in the transport.
        facts: What it told about itself.
        rounds: The rounds that it answered.
        metrics: On its own test part, by task.
    """

    node: int
    facts: dict[str, Any]
    rounds: list[int] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that it gave."""
        return str(self.facts["name"])


def common_feedback(members: Sequence[Member]) -> dict[str, Any] | None:
    """The feedback values that any client has; None for events without feedback.

    Raises:
        DataError: The clients read feedback from different columns.
    """
    given = {member.name: member.facts["feedback"] for member in members}
    columns = {name: None if one is None else one["column"] for name, one in given.items()}
    check_same(columns, "the feedback column")
    values = [value for one in given.values() if one is not None for value in one["values"]]
    if not values:
        return None
    observed = np.array(values, dtype=object if isinstance(values[0], str) else np.float64)
    vocabulary = FeedbackVocabulary.fit(str(next(iter(columns.values()))), observed)
    return {"column": vocabulary.column, "values": list(vocabulary.values)}


def common_classes(members: Sequence[Member]) -> dict[str, int]:
    """For each categorical task the most classes that a client has."""
    counts: dict[str, int] = {}
    for member in members:
        for task, count in member.facts["classes"].items():
            counts[task] = max(counts.get(task, 0), int(count))
    return counts


def check_names(members: list[Member]) -> None:
    """Check that every client has a short name of its own."""
    names = [member.name for member in members]
    for name in names:
        if not name or len(name) > 64 or not name.isprintable():
            raise DataError("the name of a client", got=repr(name[:80]), expected="1 to 64 printable characters")
        if names.count(name) > 1:
            raise DataError("two clients have the same name", got=name, expected="a name each")


def check_same(values: Mapping[str, Any], what: str) -> None:
    """Check that all clients have the same value."""
    first, expected = next(iter(values.items()))
    for name, value in values.items():
        if value != expected:
            got = f"{str(value)[:60]} at {name}, {str(expected)[:60]} at {first}"
            raise DataError(f"the clients differ in {what}", got=got, expected="the same everywhere")
