"""The adapter cache: which versions are in slots and in the CPU tier, swaps, eviction.

Owns: what references mean, the order of use, what a swap makes visible and when. Ignores: requests, forward passes.

    read ──► slot ── evicted ──► CPU tier ── evicted ──► gone
               ▲                    │
               └──── used again ────┘

A reference means one version from its first use until a swap, whichever tier that version is in. The least recently used version
gives up its slot, unless a reference to it is pinned or a request is under way; it then waits in CPU memory, and leaves that the
same way.

Threads: `_table` guards the tables and is held for moments; `_loading` makes loads, swaps and evictions follow each other and is
held while a version is read. A staged version counts its stager as a user, so that nobody takes it for unused before it has a
reference. Forward passes go on meanwhile.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from genre.engine.adapter_source import AdapterSource, Ready, Resident
from genre.errors import InputError, NotFoundError, RequestError
from genre.registry import Version


@dataclass(frozen=True)
class Meaning:
    """The version that a reference means: `name:digest`, and the digest."""

    exact: str
    digest: str


class References:
    """The version that each reference means, and the pinned references; the caller holds the lock."""

    def __init__(self) -> None:
        self.meanings: dict[str, Meaning] = {}
        self.pins: set[str] = set()
        self._of: dict[str, set[str]] = {}

    def assign(self, ref: str, meaning: Meaning) -> str | None:
        """Change what a reference means, by one assignment.

        Returns:
            The digest that no reference means any more; None if there is none.
        """
        old = self.meanings.get(ref)
        self.meanings[ref] = meaning
        self._of.setdefault(meaning.digest, set()).add(ref)
        return self._leave(ref, old) if old is not None and old.digest != meaning.digest else None

    def remove(self, ref: str) -> str | None:
        """Remove a reference and its pin; same return value as `assign`. KeyError if it is not set."""
        old = self.meanings.pop(ref)
        self.pins.discard(ref)
        return self._leave(ref, old)

    def referenced(self, digest: str) -> bool:
        """True if any reference means a version."""
        return digest in self._of

    def pinned(self, digest: str) -> bool:
        """True if a pinned reference means a version."""
        return not self.pins.isdisjoint(self._of.get(digest, ()))

    def _leave(self, ref: str, old: Meaning) -> str | None:
        names = self._of[old.digest]
        names.discard(ref)
        if names:
            return None
        del self._of[old.digest]
        return old.digest


class CpuTier:
    """At most `capacity` versions that left their slot; the least recently used one goes first. The caller holds the lock."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: OrderedDict[str, Ready] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def put(self, ready: Ready) -> None:
        """Keep a version."""
        self._held[ready.digest] = ready
        self._held.move_to_end(ready.digest)
        while len(self._held) > self.capacity:
            self._held.popitem(last=False)

    def take(self, digest: str) -> Ready | None:
        """Remove and return a version."""
        return self._held.pop(digest, None)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the low-rank weights."""
        return sum(ready.packed.memory_bytes for ready in self._held.values() if ready.packed is not None)


@dataclass(frozen=True)
class _Staged:
    """A version in a slot, with one user: who staged it."""

    meaning: Meaning
    resident: Resident


class AdapterCache:
    """The versions in memory of one engine.

    Args:
        source: Where versions come from, and the slots that they go into.
        capacity: Versions in slots; a swap may hold one more until the old one's requests end.
        cpu_capacity: Versions in the CPU tier.
        unreferenced: Called with the digest of a version that no reference means any more, for what others keep of it.

    Attributes:
        evictions: Versions that have left their slot so far.
    """

    def __init__(
        self,
        source: AdapterSource,
        *,
        capacity: int,
        cpu_capacity: int,
        unreferenced: Callable[[str], None] = lambda digest: None,
    ) -> None:
        self.source = source
        self.slots = source.slots
        self.capacity = capacity
        self.unreferenced = unreferenced
        self.evictions = 0
        self._table = threading.RLock()
        self._changed = threading.Condition(self._table)
        self._loading = threading.Lock()
        self._resident: OrderedDict[str, Resident] = OrderedDict()
        self._cpu = CpuTier(cpu_capacity)
        self._references = References()

    def acquire(self, ref: str, *, wait: bool = True, pin: bool = False) -> Resident | None:
        """Bring the version of a reference into a slot, with one more user; pair with `release`.

        Args:
            ref: The reference.
            wait: Wait for a slot where all are in use. Only for callers that hold none: the others get None, and must release
                what they hold before they ask again, or two of them would wait for each other.
            pin: Keep what the reference means in a slot from now on.

        Raises:
            InputError: Every slot is pinned.
            NotFoundError, ManifestError, IntegrityError: It cannot be loaded here.
        """
        while True:
            with self._table:
                found = self._find(ref)
                if found is not None:
                    found.users += 1
                    if pin:
                        self._references.pins.add(ref)
                    return found
            with self._loading:
                staged = self._stage(ref)
                if staged is not None:
                    with self._table:
                        self._assign(ref, staged.meaning)
                        if pin:
                            self._references.pins.add(ref)
                        self._drop_unused()
                    return staged.resident
            if not wait:
                return None
            with self._changed:
                self._changed.wait_for(lambda: self._find(ref) is not None or self._can_make_room(0))

    def release(self, residents: Iterable[Resident]) -> None:
        """Release versions from `acquire`, once each."""
        with self._changed:
            for resident in residents:
                resident.users -= 1
            self._drop_unused()
            self._changed.notify_all()

    def swap(self, name: str, ref: str) -> str:
        """Point `name` at the version that `ref` names in the registry now; return its digest. See `Engine.swap`."""
        while True:
            with self._loading:
                staged = self._stage(ref, anew=True, spare=1)
                if staged is not None:
                    with self._table:
                        self._assign(name, staged.meaning)
                    self.release([staged.resident])
                    return staged.meaning.digest
            with self._changed:
                self._changed.wait_for(lambda: self._can_make_room(1))

    def unload(self, ref: str) -> None:
        """Remove a reference.

        Raises:
            RequestError: It means nothing.
        """
        with self._changed:
            if ref not in self._references.meanings:
                loaded = ", ".join(self._references.meanings) or "none"
                raise RequestError("no version is loaded under that reference", got=ref, expected=loaded)
            self._unreferenced(self._references.remove(ref))
            self._drop_unused()
            self._changed.notify_all()

    def unpin(self, ref: str) -> None:
        """Make the version of a reference evictable again."""
        with self._changed:
            self._references.pins.discard(ref)
            self._changed.notify_all()

    def served(self) -> dict[str, str]:
        """References whose version is in a slot, and its digest."""
        with self._table:
            meanings = self._references.meanings
            return {ref: meaning.digest for ref, meaning in meanings.items() if meaning.digest in self._resident}

    def occupancy(self) -> dict[str, int]:
        """Count versions in slots (`lanes`) and in the CPU tier (`host`), the bytes of both, and the requests under way."""
        with self._table:
            return {
                "requests": sum(resident.users for resident in self._resident.values()),
                "lanes": len(self._resident),
                "lanes_bytes": self.slots.memory_bytes(),
                "host": len(self._cpu),
                "host_bytes": self._cpu.memory_bytes,
            }

    def clear(self) -> None:
        """Drop all versions; no request may be in flight."""
        with self._loading, self._table:
            for resident in self._resident.values():
                self.slots.erase(resident.slot)
            self._resident.clear()
            self._cpu = CpuTier(self._cpu.capacity)
            self._references = References()

    # --- under `_table`

    def _find(self, ref: str) -> Resident | None:
        meaning = self._references.meanings.get(ref)
        found = None if meaning is None else self._resident.get(meaning.digest)
        if found is not None:
            self._resident.move_to_end(found.digest)
        return found

    def _assign(self, ref: str, meaning: Meaning) -> None:
        self._unreferenced(self._references.assign(ref, meaning))

    def _unreferenced(self, digest: str | None) -> None:
        """Drop a version from the CPU tier; its slot is freed when no request uses it."""
        if digest is not None:
            self._cpu.take(digest)
            self.unreferenced(digest)

    def _drop_unused(self) -> None:
        """Free the slots of versions that no reference means and no request uses."""
        for resident in [r for r in self._resident.values() if r.users == 0 and not self._references.referenced(r.digest)]:
            del self._resident[resident.digest]
            self.slots.erase(resident.slot)
            self.evictions += 1

    def _can_make_room(self, spare: int) -> bool:
        return len(self._resident) < self.capacity + spare or self._victim() is not None

    def _victim(self) -> Resident | None:
        """The least recently used version that may be evicted; None if all of them are in use.

        Raises:
            InputError: Every slot is pinned.
        """
        loose = [resident for resident in self._resident.values() if not self._references.pinned(resident.digest)]
        if not loose:
            todo = "give the engine more lanes, or unpin a reference"
            raise InputError("every lane is pinned", got=f"{self.capacity} lanes", todo=todo)
        return next((resident for resident in loose if resident.users == 0), None)

    # --- under `_loading`

    def _stage(self, ref: str, *, anew: bool = False, spare: int = 0) -> _Staged | None:
        """Bring a version into a slot.

        Args:
            ref: The reference.
            anew: Ask the registry what it means now.
            spare: Slots beyond the capacity that may be used: a swap stages beside the version that it replaces.

        Returns:
            None where every slot that could be freed is in use.
        """
        meaning, version = self._look_up(ref, anew)
        with self._table:
            resident = self._resident.get(meaning.digest)
            if resident is not None:
                self._resident.move_to_end(resident.digest)
                resident.users += 1
                return _Staged(meaning, resident)
            if not self._can_make_room(spare):
                return None
            ready = self._cpu.take(meaning.digest)
        if ready is None:
            if version is None:
                try:
                    version = self.source.registry.resolve(meaning.exact)
                except NotFoundError:  # it left all tiers, and the registry meanwhile
                    return self._stage(ref, anew=True, spare=spare)
            ready = self.source.read(version)
        if not self._make_room(spare):
            with self._table:
                self._cpu.put(ready)
            return None
        for head in ready.loaded.heads.values():
            head.to(self.source.base.device)
        resident = Resident(ready.loaded, ready.space, ready.first, self.slots.put(ready.packed), users=1)
        with self._table:
            self._resident[resident.digest] = resident
        return _Staged(meaning, resident)

    def _look_up(self, ref: str, anew: bool) -> tuple[Meaning, Version | None]:
        with self._table:
            meaning = None if anew else self._references.meanings.get(ref)
        if meaning is not None:
            return meaning, None
        version = self.source.registry.resolve(ref)
        return Meaning(version.exact, version.digest), version

    def _make_room(self, spare: int) -> bool:
        """Evict until there is a free slot; False where every version that could go is in use."""
        while True:
            with self._table:
                if len(self._resident) < self.capacity + spare:
                    return True
                victim = self._victim()
                if victim is None:
                    return False
                del self._resident[victim.digest]
                self.evictions += 1
            self._park(victim)

    def _park(self, victim: Resident) -> None:
        """Move a version from its slot, where it can no longer be found, to the CPU tier."""
        packed = self.slots.copy(victim.slot) if self._cpu.capacity else None
        self.slots.erase(victim.slot)
        for head in victim.loaded.heads.values():
            head.to("cpu")
        with self._table:
            if self._references.referenced(victim.digest):
                self._cpu.put(Ready(victim.loaded, packed, victim.space, victim.first))
