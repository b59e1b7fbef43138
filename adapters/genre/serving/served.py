"""What is served: a reference, the version that it means now, how much a request of it weighs.

Owns: the small frozen values that cross the service's threads. Ignores: how they change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genre.data.catalogue import Catalogue
from genre.engine import Request
from genre.registry import Manifest, Version
from genre.registry.names import parse_ref


@dataclass(frozen=True)
class Weight:
    """Tokens of a version's rows, from above: how long a slot can get is in its manifest.

    Attributes:
        instruction: Characters of the instruction; a token is at least one.
        item, event: Tokens of an item slot; of it and its feedback slot.
        events: Events of one row at most.
        catalogue: Items that a row without candidates is scored against, by branches.
        ranking: Tasks that score the whole catalogue by one dot product, without branches.
        text: Of one text, for a version that reads labelled texts.
    """

    instruction: int
    item: int
    event: int
    events: int
    catalogue: int
    ranking: frozenset[str]
    text: int = 0

    @classmethod
    def of(cls, manifest: Manifest, catalogue: int) -> "Weight":
        """From what the manifest says of its sequence and tasks."""
        sequence: Mapping[str, Any] = manifest.sequence
        if manifest.reads == "texts":
            return cls(0, 0, 0, 0, 0, frozenset(), int(sequence["max_tokens"]))
        item = 1 if sequence["item"] == "token" else int(sequence["max_item_tokens"]) + 1
        ranking = frozenset(str(task["name"]) for task in manifest.tasks if task.get("kind") == "next_item")
        event = item + (1 if sequence["soft_feedback"] else 4)
        return cls(len(str(sequence["instruction"])) + 1, item, event, int(sequence["max_events"]), catalogue, ranking)

    def tokens(self, request: Request, events: int) -> int:
        """Tokens of one request's rows at most, with `events` events in its history."""
        if request.texts is not None:
            return len(request.texts) * self.text
        user = sum(len(str(value)) for value in (request.user or {}).values()) if isinstance(request.user, Mapping) else 0
        trunk = self.instruction + user + min(events, self.events) * self.event
        if request.task in self.ranking or (request.task is None and len(self.ranking) == 1):
            return trunk
        asked = request.candidates if request.candidates is not None else request.allow
        return trunk + (self.catalogue if asked is None else len(asked)) * self.item


@dataclass(frozen=True)
class Served:
    """A reference and what it means.

    Attributes:
        ref: As the engine knows it: `name`, `name@alias` or `name:version`.
        version: The version behind it.
        weight: Of its requests.
        catalogue: The items that its requests may name.
        public: Whether requests may name it; a canary's candidate is served for others.
    """

    ref: str
    version: Version
    weight: Weight
    catalogue: Catalogue = field(repr=False, compare=False)
    public: bool = True

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.version.name

    @property
    def alias(self) -> str | None:
        """The alias that it follows; None for `name:version`."""
        return parse_ref(self.ref).alias

    def task(self, request: Request) -> str:
        """The task that a request asks of it; empty where it is not told and not clear."""
        names = [str(task["name"]) for task in self.version.manifest.tasks]
        if request.task is None:
            return names[0] if len(names) == 1 else ""
        return request.task if request.task in names else ""
