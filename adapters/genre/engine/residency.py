"""Who is resident: lanes, swaps, eviction, the host tier.

Owns: which tier a version is in, the order of use, what a swap makes visible and when. Ignores: requests, forward passes.

A reference means one version from its first use until a swap, whichever tier that version is in. The version used longest ago
gives up its lane to another, unless a reference to it is pinned or a request is under way; it then waits in host memory, and
leaves that the same way.

Threads: `_table` guards the tables and is held for moments; `_loading` makes loads, swaps and evictions follow each other and
is held while a version is read. A staged version counts its stager as a user, so that nobody takes it for unused before it has
a name. Forward passes go on meanwhile.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from genre.engine.names import Meaning, Names
from genre.engine.source import Source
from genre.engine.tiers import HostTier, Ready, Resident
from genre.errors import InputError, NotFoundError, RequestError
from genre.registry import Version


@dataclass(frozen=True)
class _Staged:
    """A version in a lane, with one user: who staged it."""

    meaning: Meaning
    resident: Resident


class Residency:
    """The tiers of one engine.

    Args:
        source: Where versions come from, and the lanes that they go into.
        capacity: Versions in lanes; a swap may hold one more until the old one's requests end.
        host: Versions in the host tier.

    Attributes:
        evictions: Versions that have left their lane so far.
    """

    def __init__(self, source: Source, *, capacity: int, host: int) -> None:
        self.source, self.lanes, self.capacity = source, source.lanes, capacity
        self._table = threading.RLock()
        self._changed = threading.Condition(self._table)
        self._loading = threading.Lock()
        self._resident: OrderedDict[str, Resident] = OrderedDict()
        self._host = HostTier(host)
        self._names = Names()
        self.evictions = 0

    def acquire(self, ref: str, *, wait: bool = True, pin: bool = False) -> Resident | None:
        """The version that a reference means, in a lane, with one more user; `release` it.

        Args:
            ref: The reference.
            wait: Wait for a lane where all are in use. Only for callers that hold none: the others get None, and must release
                what they hold before they ask again, or two of them would wait for each other.
            pin: Keep what the reference means in a lane from now on.

        Raises:
            InputError: Every lane is pinned.
            NotFoundError, ManifestError, IntegrityError: It cannot be loaded here.
        """
        while True:
            with self._table:
                found = self._find(ref)
                if found is not None:
                    found.users += 1
                    if pin:
                        self._names.pin(ref)
                    return found
            with self._loading:
                staged = self._stage(ref)
                if staged is not None:
                    with self._table:
                        self._say(ref, staged.meaning)
                        if pin:
                            self._names.pin(ref)
                        self._drop_unused()
                    return staged.resident
            if not wait:
                return None
            with self._changed:
                self._changed.wait_for(lambda: self._find(ref) is not None or self._can_make_room(0))

    def release(self, residents: Iterable[Resident]) -> None:
        """Let go of versions that `acquire` gave, once each."""
        with self._changed:
            for resident in residents:
                resident.users -= 1
            self._drop_unused()
            self._changed.notify_all()

    def swap(self, name: str, ref: str) -> str:
        """Let `name` mean what `ref` means in the registry now; returns the digest. See `Engine.swap`."""
        while True:
            with self._loading:
                staged = self._stage(ref, anew=True, spare=1)
                if staged is not None:
                    with self._table:
                        self._say(name, staged.meaning)
                    self.release([staged.resident])
                    return staged.meaning.digest
            with self._changed:
                self._changed.wait_for(lambda: self._can_make_room(1))

    def unload(self, ref: str) -> None:
        """Let a reference mean nothing again.

        Raises:
            RequestError: It means nothing.
        """
        with self._changed:
            if ref not in self._names:
                raise RequestError("nothing is loaded by that reference", got=ref, expected=str(self._names))
            self._unnamed(self._names.forget(ref))
            self._drop_unused()
            self._changed.notify_all()

    def unpin(self, ref: str) -> None:
        """Let what a reference means be evicted again."""
        with self._changed:
            self._names.pin(ref, False)
            self._changed.notify_all()

    def served(self) -> dict[str, str]:
        """References whose version is in a lane, and its digest."""
        with self._table:
            return {ref: meaning.digest for ref, meaning in self._names.items() if meaning.digest in self._resident}

    def occupancy(self) -> dict[str, int]:
        """How many versions are in lanes and in the host tier, the bytes of both, and the requests under way."""
        with self._table:
            return {
                "requests": sum(resident.users for resident in self._resident.values()),
                "lanes": len(self._resident), "lanes_bytes": self.lanes.memory_bytes(),
                "host": len(self._host), "host_bytes": self._host.memory_bytes,
            }  # fmt: skip

    def clear(self) -> None:
        """Forget everything; no request may be under way."""
        with self._loading, self._table:
            for resident in self._resident.values():
                self.lanes.erase(resident.place)
            self._resident.clear()
            self._host.clear()
            self._names.clear()

    # --- under `_table`

    def _find(self, ref: str) -> Resident | None:
        meaning = self._names.get(ref)
        found = None if meaning is None else self._resident.get(meaning.digest)
        if found is not None:
            self._resident.move_to_end(found.digest)
        return found

    def _say(self, ref: str, meaning: Meaning) -> None:
        self._unnamed(self._names.say(ref, meaning))

    def _unnamed(self, digest: str | None) -> None:
        """Nothing means a version any more: it needs no place in host memory; its lane is dropped when no request uses it."""
        if digest is not None:
            self._host.take(digest)

    def _drop_unused(self) -> None:
        """Free the lanes of versions that no reference means and no request uses."""
        for resident in [r for r in self._resident.values() if r.users == 0 and not self._names.means(r.digest)]:
            del self._resident[resident.digest]
            self.lanes.erase(resident.place)
            self.evictions += 1

    def _can_make_room(self, spare: int) -> bool:
        return len(self._resident) < self.capacity + spare or self._victim() is not None

    def _victim(self) -> Resident | None:
        """The version used longest ago of those that may go; None if all of them are in use.

        Raises:
            InputError: Every lane is pinned.
        """
        loose = [resident for resident in self._resident.values() if not self._names.pinned(resident.digest)]
        if not loose:
            raise InputError(
                "every lane is pinned", got=f"{self.capacity} lanes", todo="give the engine more lanes, or unpin a reference"
            )
        return next((resident for resident in loose if resident.users == 0), None)

    # --- under `_loading`

    def _stage(self, ref: str, *, anew: bool = False, spare: int = 0) -> _Staged | None:
        """Bring a version into a lane.

        Args:
            ref: The reference.
            anew: Ask the registry what it means now.
            spare: Lanes beyond the capacity that may be used: a swap stages beside the version that it replaces.

        Returns:
            None where every lane that could be freed is in use.
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
            ready = self._host.take(meaning.digest)
        if ready is None:
            if version is None:
                try:
                    version = self.source.registry.resolve(meaning.exact)
                except NotFoundError:  # it left all tiers, and the registry meanwhile
                    return self._stage(ref, anew=True, spare=spare)
            ready = self.source.read(version)
        if not self._make_room(spare):
            with self._table:
                self._host.put(ready)
            return None
        for head in ready.loaded.heads.values():
            head.to(self.source.base.device)
        resident = Resident(ready.loaded, ready.space, ready.first, self.lanes.put(ready.packed), users=1)
        with self._table:
            self._resident[resident.digest] = resident
        return _Staged(meaning, resident)

    def _look_up(self, ref: str, anew: bool) -> tuple[Meaning, Version | None]:
        with self._table:
            meaning = None if anew else self._names.get(ref)
        if meaning is not None:
            return meaning, None
        version = self.source.registry.resolve(ref)
        return Meaning(version.ref, version.digest), version

    def _make_room(self, spare: int) -> bool:
        """Evict until there is a free lane; False where every version that could go is in use."""
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
        """Move a version from its lane, which nobody finds any more, to the host tier."""
        packed = self.lanes.copy(victim.place) if self._host.most else None
        self.lanes.erase(victim.place)
        for head in victim.loaded.heads.values():
            head.to("cpu")
        with self._table:
            if self._names.means(victim.digest):
                self._host.put(Ready(victim.loaded, packed, victim.space, victim.first))
