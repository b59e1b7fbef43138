"""Tombstones: how gc and writers agree on an object store, which has no locks.

Owns: the log of a version's life and the claims of writers at work. Ignores: what is garbage (`maintenance`), where a version's
files lie (`remote`).

A version's life is a log of entries that are created once, as an alias journal is: `mark` (gc found it unused), `keep` (a writer
needs it after all), `bury` (gone for good), `renew` (published again, under the next generation). A generation that was buried
is never written or named again, so that its files can be deleted at leisure: a later publish of the same content has a folder of
its own. No log: generation 0 is alive. One real entry:

    .marks/2.json {"action": "keep", "created": "2026-03-01T12:00:00Z", "generation": 0, "id": "…"}

A writer first puts a claim, then reads the log of what it needs; gc first marks, then looks at the claims, then looks again at
what is named, then buries. So one of them always sees the other: a writer that claimed before the mark is waited for, one that
claimed later finds the mark and keeps the version, and `keep` and `bury` after the same mark are one number, of which one wins.
None of this depends on clocks. Two things do: the grace time, which gives people time to name a version that was published
without an alias and protects writers of earlier releases, and the age from which a claim is taken for that of a killed writer.
"""

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from genre.errors import ConflictError, IntegrityError, JobError
from genre.registry.limits import MAX_ENTRY_BYTES, parse_json
from genre.registry.manifest import render, utc_now
from genre.registry.stores.objects import Objects, time_of
from genre.registry.stores.store import is_entry

MARKS = ".marks"
WRITERS = ".writers"
CLAIM_S = 86_400.0
"""The age from which a claim is that of a killed writer. A writer that took half as long says that it came too late."""
_SLACK_S = 60.0
_CLOCK = "gc-"

Action = Literal["mark", "keep", "bury", "renew"]


@dataclass(frozen=True)
class Life:
    """The state of a version after entry `n` of its log (0: no entry); `since` is the entry's time by the store's clock."""

    n: int = 0
    action: Action = "keep"
    generation: int = 0
    since: float = 0.0


class Tombstones:
    """The lives of a store's versions; a version is given as its path, `<name>/<version>`."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Claim: gc waits for whatever is written or named inside the block."""
        claim, began = f"{WRITERS}/{uuid.uuid4().hex}", time.time()
        self.objects.put(claim, utc_now().encode())
        try:
            yield
        finally:
            with contextlib.suppress(JobError):  # it expires
                self.objects.remove(claim)
        if time.time() - began > CLAIM_S / 2:
            got, todo = f"{time.time() - began:,.0f} s", "do it again: what is there already is found"
            expected = f"at most {CLAIM_S / 2:,.0f} s, for gc takes a writer for a killed one after twice that"
            raise ConflictError("writing took too long to be safe beside gc", got=got, expected=expected, todo=todo)

    def life(self, path: str) -> Life:
        """Return the present state; IntegrityError if the last entry is damaged."""
        found = self.objects.find(path, MARKS)
        numbers = {int(file.rpartition("/")[2][:-5]): time_of(info) for file, info in found.items() if is_mark(file)}
        if not numbers:
            return Life()
        return self._read(path, max(numbers), numbers[max(numbers)])

    def keep(self, path: str) -> Life:
        """Take a mark back. Unless it is buried by now, inside `writing` the version stays alive until the block ends."""
        while (life := self.life(path)).action == "mark":
            self._append(path, life.n, "keep", life.generation)
        return life

    def renew(self, path: str) -> int:
        """Return the generation to publish into: the present one, kept, or a new one if that was buried."""
        while (life := self.keep(path)).action == "bury":
            if self._append(path, life.n, "renew", life.generation + 1):
                return life.generation + 1
        return life.generation

    def mark(self, path: str) -> None:
        """Mark a version as garbage; one that is marked or buried already stays so."""
        life = self.life(path)
        if life.action in ("keep", "renew"):
            self._append(path, life.n, "mark", life.generation)  # another gc may be first, or a writer: the next one marks again

    def settled(self, paths: Iterable[str], grace: float) -> dict[str, int]:
        """Return the versions to bury, each with the number of its mark: marked for `grace` seconds, no writer from before."""
        now, claims = self._clock()
        found = {}
        for path in paths:
            life = self.life(path)
            if life.action == "bury":
                found[path] = life.n - 1
            if life.action == "mark" and now - life.since >= grace:
                blocked = any(claim <= life.since + _SLACK_S for claim in claims if now - claim < CLAIM_S)
                found |= {} if blocked else {path: life.n}
        return found

    def bury(self, path: str, mark: int) -> bool:
        """Give a version up for good, unless something has happened to it since its mark."""
        life = self._read(path, mark)
        return self._append(path, mark, "bury", life.generation) or self._read(path, mark + 1).action == "bury"

    def _clock(self) -> tuple[float, list[float]]:
        """The present time by the store's clock, and those of the claims; both from one listing."""
        own = f"{WRITERS}/{_CLOCK}{uuid.uuid4().hex}"
        self.objects.put(own, b"")
        try:
            times = {path: time_of(info) for path, info in self.objects.find(WRITERS).items()}
        finally:
            self.objects.remove(own)
        return times.get(own, 0.0), [at for path, at in times.items() if not path.startswith(f"{WRITERS}/{_CLOCK}")]

    def _append(self, path: str, last: int, action: Action, generation: int) -> bool:
        raw = {"action": action, "created": utc_now(), "generation": generation, "id": uuid.uuid4().hex}
        return self.objects.create(f"{path}/{MARKS}/{last + 1}.json", render(raw))

    def _read(self, path: str, number: int, since: float = 0.0) -> Life:
        what = f"{path}/{MARKS}/{number}.json"
        data = self.objects.read(what, MAX_ENTRY_BYTES)
        damaged = IntegrityError(f"{what} is damaged", got="not an entry of gc", todo="restore it from a copy")
        if data is None:
            raise damaged
        raw: Any = parse_json(data, what, limit=MAX_ENTRY_BYTES)
        if not isinstance(raw, dict) or raw.get("action") not in ("mark", "keep", "bury", "renew"):
            raise damaged
        generation = raw.get("generation")
        if type(generation) is not int or generation < 0:
            raise damaged
        return Life(number, raw["action"], generation, since)


def is_mark(path: str) -> bool:
    """Return whether a path ends as an entry of a version's log does."""
    folder, _, file = path.rpartition("/")
    return folder.endswith(f"/{MARKS}") and is_entry(file)
