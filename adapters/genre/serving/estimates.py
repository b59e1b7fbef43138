"""The weight of a request before it is queued.

Owns: arithmetic on the lengths in a manifest and in a request. Ignores: texts and their tokens, queues, limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genre.data.sequences.instruction import fields_of
from genre.engine import Request
from genre.engine.reranking import POOL
from genre.errors import DataError, ManifestError
from genre.modules.text_vectors import MAX_TEXT_TOKENS
from genre.registry import Manifest
from genre.tasks import BEAM

PER_TOKEN = 2
"""Candidates, or results where they are more, that count as one token of the base: it is Python that reads and writes them."""
PER_EVENT = 64
"""Events of a history that count as one token, whether the base reads them or not."""
PER_SCAN = 65_536
"""Items of the catalogue that count as one token each time that they are looked at."""
PER_PREFIX = 6
"""Tokens for each prefix of a beam, or candidate, of a task that generates items: of three levels that are read one by one."""
PER_PAIRS = 256
"""Pairs of diverse items that count as one token: each is a product of two item vectors."""


@dataclass(frozen=True)
class TokenEstimate:
    """The work of a request, in tokens: an upper bound from the lengths in a version's manifest and in the request.

    What is no token of the base but of the same order of work in numbers counts as a share of one: events that are read,
    candidates that are ranked, results that are written.

    Attributes:
        instruction: Bytes of the instruction; a token is at least one.
        columns: The user's columns that it names.
        item: Tokens of an item slot.
        event: Tokens of an item slot and its feedback slot, if there is one.
        events: Events of one row at most.
        catalogue: Items that a row without candidates is scored against, by branches.
        ranking: Tasks that score the whole catalogue by one dot product, without branches.
        beams: Tasks that generate items, and the width of their searches.
        text: Tokens of one text, for a version that reads labelled texts.
        inline: Tokens of an inline item's text at most, where the base embeds it for an encoder.
    """

    instruction: int = 0
    columns: frozenset[str] = frozenset()
    item: int = 0
    event: int = 0
    events: int = 0
    catalogue: int = 0
    ranking: frozenset[str] = frozenset()
    beams: Mapping[str, int] = field(default_factory=dict)
    text: int = 0
    inline: int = 0

    @classmethod
    def of(cls, manifest: Manifest, catalogue: int) -> "TokenEstimate":
        """Read the lengths of a manifest; `catalogue` is the number of items.

        Raises:
            ManifestError: A length is missing or no number.
        """
        try:
            return cls._of(manifest, catalogue)
        except (KeyError, TypeError, ValueError, OverflowError, DataError) as error:
            got = f"{type(error).__name__}: {error}"[:160]
            raise ManifestError(f"the layout of {manifest.name}:{manifest.version} cannot be read", got=got) from None

    @classmethod
    def _of(cls, manifest: Manifest, catalogue: int) -> "TokenEstimate":
        sequence: Mapping[str, Any] = manifest.sequence
        if manifest.reads == "texts":
            return cls(text=int(sequence["max_tokens"]))
        item = 1 if sequence["item"] == "token" else int(sequence["max_item_tokens"]) + 1
        ranking = frozenset(str(task["name"]) for task in manifest.tasks if task.get("kind") == "next_item")
        generated = [task for task in manifest.tasks if task.get("head") == "generate"]
        feedback = 1 if sequence["soft_feedback"] else 4
        event = item + (0 if sequence["feedback"] is None else feedback)
        return cls(
            instruction=_bytes(sequence["instruction"]) + 1,
            columns=frozenset(fields_of(str(sequence["instruction"]))),
            item=item,
            event=event,
            events=int(sequence["max_events"]),
            catalogue=catalogue,
            ranking=ranking,
            beams={str(task["name"]): int(str(task.get("beam") or BEAM)) for task in generated},
            inline=0 if manifest.encoder is None else MAX_TEXT_TOKENS,
        )

    def tokens(self, request: Request, events: int) -> int:
        """Tokens of one request's rows at most, with `events` events in its history."""
        if request.texts is not None:
            return len(request.texts) * self.text
        asked = request.candidates if request.candidates is not None else request.allow
        work = events // PER_EVENT + max(self.results(request), len(asked or ())) // PER_TOKEN
        scans = len(request.where or ()) + (asked is None)
        pairs = POOL * min(request.k or 0, POOL) if request.diversity else 0
        work += scans * self.catalogue // PER_SCAN + pairs // PER_PAIRS
        work += self.prefix(request) + min(events, self.events) * self.event
        if self.inline:
            named = (event.get("item_id", event.get("item")) for event in request.history or ())
            work += sum(map(self._embedded, named)) + sum(map(self._embedded, request.candidates or ()))
        task = request.task or next(iter(self.ranking), "")
        if task in self.beams:
            width = (
                max(request.beam or self.beams[task], request.k or 0) if request.candidates is None else len(request.candidates)
            )
            work += PER_PREFIX * min(width, self.catalogue if asked is None else len(asked))
        if request.task in self.ranking or (request.task is None and len(self.ranking) == 1):
            return work
        return work + (self.catalogue if asked is None else len(asked)) * self.item

    def prefix(self, request: Request) -> int:
        """Tokens of the instruction at most, with those of the request's columns of the user that it names."""
        user = request.user or {}
        return self.instruction + sum(_bytes(user[name]) for name in self.columns & user.keys())

    def results(self, request: Request) -> int:
        """The number of results of one request at most."""
        if request.texts is not None:
            most = len(request.texts)
        else:
            asked = request.candidates if request.candidates is not None else request.allow
            most = self.catalogue if asked is None else len(asked)
        return most if request.k is None else min(most, request.k)

    def _embedded(self, item: Any) -> int:
        """Tokens of an item that is given by its columns at most; 0 for an id."""
        if not isinstance(item, Mapping):
            return 0
        return min(self.inline, 1 + sum(_bytes(value) for value in item.values() if isinstance(value, str)))


def _bytes(value: Any) -> int:
    """Bytes of a text, which are tokens at most: of a rare character a tokenizer makes one for each of its bytes."""
    return len(str(value).encode())
