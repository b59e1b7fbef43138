"""What operators have set, kept over a restart.

Owns: the state file: what was loaded and unloaded beside what the command line names, canary shares, candidates that were
given up. Ignores: loading. Aliases are the registry's; they are not here.

    {"schema": 1, "loaded": ["like:a3f09c12be77"], "unloaded": ["rating@production"],
     "canary": {"like": {"share": 0.1, "halted": null, "reason": null}}}

The file holds differences, so that a restart with other adapters or a registry that has grown serves those too. One
service at a time has it (a lock beside it says so, and goes with its process).
"""

import os
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genre.errors import InputError
from genre.files import atomic


class Halt(BaseModel):
    """An operator's share for a name's candidate (None: the command line's), and the version that was given up, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float | None = Field(default=None, ge=0, le=1)
    halted: str | None = None
    reason: str | None = None


class State(BaseModel):
    """What is kept; see the module's head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: int = Field(default=1, ge=1, le=1, alias="schema")
    loaded: tuple[str, ...] = ()
    unloaded: tuple[str, ...] = ()
    canary: dict[str, Halt] = Field(default_factory=dict)


class StateFile:
    """The file of one service.

    Args:
        path: Where; made if it is not there.

    Raises:
        InputError: It cannot be used: no such folder, no state, or another service has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.parent.is_dir():
            raise InputError("--state cannot be used", got=path, expected="a file in a folder that exists")
        self._lock = _locked(path)
        try:
            self.state = _read(path)
            if not path.exists():
                self._write(self.state)
        except BaseException:
            self._lock.release()
            raise

    def save(self, state: State) -> bool:
        """Keep a state, whole or not at all; whether it was another one than before.

        Raises:
            DiskError: The disk is full or not writable.
        """
        if state == self.state:
            return False
        self._write(state)
        self.state = state
        return True

    def close(self) -> None:
        """Let another service have the file."""
        self._lock.release()

    def _write(self, state: State) -> None:
        with atomic(self.path) as aside, aside.open("w", encoding="utf-8") as file:
            file.write(state.model_dump_json(by_alias=True, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _locked(path: Path) -> FileLock:
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            "--state cannot be used", got=f"{path}, which another service uses", expected="a file of its own"
        ) from None
    except OSError as error:
        raise InputError("--state cannot be used", got=path, expected="a file in a folder that can be written",
                         todo=error.strerror) from None  # fmt: skip
    return lock


def _read(path: Path) -> State:
    try:
        return State.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise InputError("--state cannot be used", got=path, expected="a file", todo=error.strerror) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError("--state cannot be used", got=f"{path}: {where + ': ' if where else ''}{first['msg']}",
                         expected="what a service wrote", todo="remove it to begin anew") from None  # fmt: skip
