"""What a service begins with, and what of its operators' acts outlives it.

Owns: the difference between what the command line names and what is served, both ways. Ignores: the file's form, HTTP.

    memory.start(["like@production"], {})        # what was unloaded is left out, what was loaded comes back
    fleet.add("rating@production"); memory.save()    ->  True, where there is a state file

A remembered reference that cannot be loaded any more is told in the log and does not keep the service from starting.
"""

import threading
from collections.abc import Callable, Mapping, Sequence

from genre.errors import GenreError
from genre.registry.names import PRODUCTION
from genre.serving.canary import Canaries
from genre.serving.fleet import Fleet
from genre.serving.logs import Log
from genre.serving.state import Halt, State, StateFile


class Memory:
    """The memory of one service.

    Args:
        file: Where it is kept; None forgets all at the end.
    """

    def __init__(self, file: StateFile | None, fleet: Fleet, canaries: Canaries, log: Log) -> None:
        self.file, self.fleet, self.canaries, self.log = file, fleet, canaries, log
        self._given: frozenset[str] = frozenset()
        self._missing: set[str] = set()
        self._shares: dict[str, float] = {}
        self._waiting: dict[str, Halt] = {}  # canaries that could not be set again, with the versions that were given up
        self._saving = threading.Lock()

    def start(self, refs: Sequence[str], shares: Mapping[str, float], *, found: bool = False) -> None:
        """Serve what the command line names, as operators have changed it.

        Args:
            refs: What is to be served.
            shares: Canaries.
            found: Nobody named `refs`, they were found in the registry: what cannot be loaded is told and left out, if
                anything else can.

        Raises:
            GenreError: Something that the command line names cannot be served.
        """
        kept = State() if self.file is None else self.file.state
        wanted = [ref for ref in refs if ref not in kept.unloaded]
        left_out = [ref for ref in wanted if not self._again(ref, self._load(ref))] if found else []
        for ref in wanted:
            if not found or left_out == wanted:
                self.fleet.add(ref)
        self._given = frozenset(refs).difference(left_out)
        self._missing = {ref for ref in kept.loaded if ref not in self._given and not self._again(ref, self._load(ref))}
        self._shares = {name: held.share for name, held in kept.canary.items() if held.share is not None}
        self._waiting = dict(kept.canary)
        for name, share in (dict(shares) | self._shares).items():
            set_ = self._canary(name, share, kept.canary.get(name, Halt()))
            if name in self._shares or f"{name}@{PRODUCTION}" in kept.unloaded:
                if not self._again(f"the canary of {name}", set_):
                    continue
            else:
                set_()
            self._waiting.pop(name, None)

    def _load(self, ref: str) -> Callable[[], object]:
        return lambda: self.fleet.add(ref)

    def _canary(self, name: str, share: float, held: Halt) -> Callable[[], object]:
        return lambda: self.canaries.set(name, share, halted=held.halted, reason=held.reason)

    def _again(self, what: str, do: Callable[[], object]) -> bool:
        try:
            do()
        except GenreError as error:
            self.log.write("not served", level="warning", ref=what, why=str(error))
            return False
        return True

    def unload(self, ref: str) -> None:
        """Serve a reference no longer, or forget one that could not be served again.

        Raises:
            NotFoundError: It is neither.
        """
        if ref not in self._missing or self.fleet.get(ref) is not None:
            self.fleet.drop(ref)
        self._missing.discard(ref)

    def share(self, name: str, share: float) -> None:
        """An operator has set the share of a name's candidate."""
        self._shares[name] = share
        self._waiting.pop(name, None)

    def save(self) -> bool:
        """Keep what is served now, if it has changed; whether it will be there after a restart."""
        if self.file is None:
            return False
        with self._saving:
            try:
                self.file.save(self._state())
            except GenreError as error:
                self.log.write("state not saved", level="error", error=str(error))
                return False
        return True

    def _state(self) -> State:
        public = {served.ref for served in self.fleet.all() if served.public}
        given_up = {name: (held.halted, held.reason) for name, held in self._waiting.items() if held.halted is not None}
        now = {name: (canary.version, canary.reason) for name, canary in self.canaries.all() if canary.state == "halted"}
        halted: dict[str, tuple[str | None, str | None]] = {**given_up, **now}
        canary = {}
        for name in sorted(self._shares.keys() | halted.keys()):
            version, reason = halted.get(name, (None, None))
            canary[name] = Halt(share=self._shares.get(name), halted=version, reason=reason)
        loaded, unloaded = public - self._given | self._missing, self._given - public
        return State(loaded=tuple(sorted(loaded)), unloaded=tuple(sorted(unloaded)), canary=canary)

    def close(self) -> None:
        """Keep what is served and let the file go."""
        if self.file is not None:
            self.file.close()
