"""Changes by operators, kept over a restart.

Owns: the state file, and the difference between what the command line names and what is served, both ways: what was loaded and
unloaded, canary shares, candidates that were given up. Ignores: HTTP. Aliases are the registry's; they are not here.

    {"schema": 1, "loaded": ["like:a3f09c12be77"], "unloaded": ["rating@production"],
     "canary": {"like": {"share": 0.1, "halted": null, "reason": null}}}

The file holds differences, so that a restart with other adapters or a registry that has grown serves those too. One service
at a time has it: a lock beside it says so, and goes with its process. A reference in it that cannot be loaded any more is
logged and does not keep the service from starting.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genre.errors import GenreError, InputError
from genre.files import write_text
from genre.registry.names import PRODUCTION
from genre.serving.canary import Canaries
from genre.serving.deployments import Deployments
from genre.serving.locks import lock_beside, unusable
from genre.serving.logs import Log
from genre.validation import refusal

OPTION = "--state"


class SavedCanary(BaseModel):
    """An operator's share for a name's candidate (None: the command line's), and the version that was given up, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float | None = Field(default=None, ge=0, le=1)
    halted: str | None = None
    reason: str | None = None


class SavedState(BaseModel):
    """The content of a state file; see the module's head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: int = Field(default=1, ge=1, le=1, alias="schema")
    loaded: tuple[str, ...] = ()
    unloaded: tuple[str, ...] = ()
    canary: dict[str, SavedCanary] = Field(default_factory=dict)


class StateFile:
    """The state file of one service.

    Args:
        path: Created if it does not exist.

    Raises:
        InputError: It cannot be used: no such folder, no state, or another service has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = lock_beside(path, OPTION)
        try:
            self.state = _read(path)
            if not path.exists():
                self._write(self.state)
        except BaseException:
            self._lock.release()
            raise

    def save(self, state: SavedState) -> None:
        """Keep a state, whole or not at all, if it has changed.

        Raises:
            DiskError: The disk is full or not writable.
        """
        if state != self.state:
            self._write(state)
            self.state = state

    def close(self) -> None:
        """Release the file for another service."""
        self._lock.release()

    def _write(self, state: SavedState) -> None:
        write_text(self.path, state.model_dump_json(by_alias=True, indent=1) + "\n")


def _read(path: Path) -> SavedState:
    try:
        return SavedState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return SavedState()
    except OSError as error:
        raise unusable(OPTION, path, "a file", error.strerror) from None
    except ValidationError as error:
        wrong = refusal(error, "the file", ("schema", "loaded", "unloaded", "canary"), InputError)
        raise unusable(OPTION, f"{path}: {wrong}", "what a service wrote", "remove it to start over") from None


class OperatorState:
    """The references that one service serves at its start, and the acts of operators that outlive it, if there is a file."""

    def __init__(self, file: StateFile | None, deployments: Deployments, canaries: Canaries, log: Log) -> None:
        self.file = file
        self.deployments = deployments
        self.canaries = canaries
        self.log = log
        self._named: frozenset[str] = frozenset()  # by the command line
        self._missing: set[str] = set()
        self._shares: dict[str, float] = {}
        self._pending: dict[str, SavedCanary] = {}  # canaries that could not be set again
        self._saving = threading.Lock()

    def restore(self, refs: Sequence[str], shares: Mapping[str, float], *, found: bool = False) -> None:
        """Serve the command line's references with the operators' changes applied.

        Args:
            refs: What is to be served.
            shares: Canaries.
            found: Nobody named `refs`, they were found in the registry: what cannot be loaded is logged and left out, if
                anything else can be loaded.

        Raises:
            GenreError: Something that the command line names cannot be served.
        """
        saved = SavedState() if self.file is None else self.file.state
        wanted = [ref for ref in refs if ref not in saved.unloaded]
        left_out = [ref for ref in wanted if not self._load(ref)] if found else []
        for ref in wanted:
            if not found or left_out == wanted:
                self.deployments.add(ref)
        self._named = frozenset(refs).difference(left_out)
        self._missing = {ref for ref in saved.loaded if ref not in self._named and not self._load(ref)}
        self._shares = {name: canary.share for name, canary in saved.canary.items() if canary.share is not None}
        self._pending = dict(saved.canary)
        for name, share in (dict(shares) | self._shares).items():
            old = saved.canary.get(name, SavedCanary())
            restart = partial(self.canaries.set, name, share, halted=old.halted, reason=old.reason)
            if name not in self._shares and f"{name}@{PRODUCTION}" not in saved.unloaded:
                restart()
            elif not self._try(f"the canary of {name}", restart):
                continue
            self._pending.pop(name, None)

    def _load(self, ref: str) -> bool:
        return self._try(ref, partial(self.deployments.add, ref))

    def _try(self, what: str, act: Callable[[], object]) -> bool:
        try:
            act()
        except GenreError as error:
            self.log.write("not served", level="warning", ref=what, why=str(error))
            return False
        return True

    def unload(self, ref: str) -> None:
        """Stop serving a reference, or drop one that could not be restored.

        Raises:
            NotFoundError: It is neither.
        """
        if ref not in self._missing or self.deployments.get(ref) is not None:
            self.deployments.drop(ref)
        self._missing.discard(ref)

    def set_share(self, name: str, share: float) -> None:
        """Remember the share that an operator has given to a name's candidate."""
        self._shares[name] = share
        self._pending.pop(name, None)

    def save(self) -> bool:
        """Save the references served now; return whether they will survive a restart."""
        if self.file is None:
            return False
        with self._saving:
            try:
                self.file.save(self._state())
            except GenreError as error:
                self.log.write("state not saved", level="error", error=str(error))
                return False
        return True

    def _state(self) -> SavedState:
        public = {deployment.ref for deployment in self.deployments.public()}
        halted: dict[str, tuple[str | None, str | None]] = {}
        halted |= {name: (old.halted, old.reason) for name, old in self._pending.items() if old.halted is not None}
        for name, canary in self.canaries.all():
            if canary.state == "halted":
                halted[name] = (canary.version, canary.reason)
        saved = {}
        for name in sorted(self._shares.keys() | halted.keys()):
            version, reason = halted.get(name, (None, None))
            saved[name] = SavedCanary(share=self._shares.get(name), halted=version, reason=reason)
        loaded = tuple(sorted(public - self._named | self._missing))
        return SavedState(loaded=loaded, unloaded=tuple(sorted(self._named - public)), canary=saved)

    def close(self) -> None:
        """Release the state file."""
        if self.file is not None:
            self.file.close()
