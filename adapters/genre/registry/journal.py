"""Aliases: an append-only journal per name, from which the present state, the history and roll back follow.

Owns: the entries, who wins when two write, and what a roll back goes back to. Ignores: whether a version may be
promoted.

Entry n is written once and never changed, by creating `<n>.json` exclusively after reading n - 1, so the journal has no
gaps and no number has two winners. One real entry:

    {"action": "promote", "alias": "production", "checks": ["like.auc 0.761 >= 0.7"], "checksum": "…",
     "created": "2026-03-01T12:00:00Z", "id": "…", "n": 3, "previous": "a3f09c12be77", "state": {"latest": {"n": 2,
     "version": "0c4d5e6f7a8b"}, "production": {"n": 3, "version": "0c4d5e6f7a8b"}}, "version": "0c4d5e6f7a8b"}
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from genre.errors import ConflictError, IntegrityError, ManifestError, NotFoundError, RegistryError
from genre.registry.limits import parse_json
from genre.registry.manifest import checksum_of, render
from genre.registry.names import ALIASES, check_name, is_name, is_version
from genre.registry.store import Store

Action = Literal["publish", "promote", "rollback"]
_FIELDS = {"n", "alias", "version", "previous", "created", "action", "checks", "state", "id", "checksum"}
_ATTEMPTS = 1_000


@dataclass(frozen=True)
class Move:
    """One alias move. `previous` is what the alias named before; `checks` says what was compared to allow it."""

    n: int
    alias: str
    version: str
    previous: str | None
    created: str
    action: str
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Held:
    """What an alias names, and the number of the entry that moved it there."""

    version: str
    n: int


@dataclass(frozen=True)
class State:
    """The aliases after entry `n` (0: no entry yet)."""

    n: int
    aliases: dict[str, Held]


def utc_now() -> str:
    """The time as written into manifests and journals: UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Journal:
    """The alias journal of one name."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    def state(self) -> State:
        """The present state: one listing and one read, however long the journal.

        Raises:
            IntegrityError: The last entry is damaged.
        """
        numbers = self.store.entries(self.name)
        return self._read(numbers[-1])[1] if numbers else State(0, {})

    def moves(self, alias: str | None = None, *, after: int = 0) -> list[Move]:
        """All moves, or those after a number, oldest first, of one alias or of all.

        Raises:
            IntegrityError: An entry is damaged or missing.
        """
        numbers = self.store.entries(self.name)
        if numbers != list(range(1, len(numbers) + 1)):
            raise IntegrityError(f"the journal of {self.name} has a gap", got=f"{len(numbers)} entries up to {numbers[-1]}")
        moves = [self._read(number)[0] for number in numbers[after:]]
        return [move for move in moves if alias is None or move.alias == alias]

    def move(self, alias: str, version: str, action: Action, *, seen: State | None = None, checks: tuple[str, ...] = ()) -> Move:
        """Append a move.

        Args:
            alias: Which alias.
            version: What it names from now on.
            action: Why.
            seen: The state that the decision was made on. If `alias` has moved since, this writer has lost; moves of
                other aliases do not matter. None: the move does not depend on what was there (a publish).
            checks: What was compared.

        Raises:
            ConflictError: Another writer moved the alias first.
        """
        check_name(alias, "alias")
        for _ in range(_ATTEMPTS):
            now = self.state()
            held = now.aliases.get(alias)
            if seen is not None and held != seen.aliases.get(alias):
                assert held is not None
                raise ConflictError(
                    f"another writer moved {self.name}@{alias} first",
                    got=f"{held.version} by entry {held.n}",
                    expected=getattr(seen.aliases.get(alias), "version", "no holder yet"),
                    todo="look at the history and decide again",
                )
            move = Move(now.n + 1, alias, version, held.version if held else None, utc_now(), action, checks)
            if self.store.create_entry(self.name, move.n, _encode(move, now)):
                return move
        raise ConflictError(f"too many writers move aliases of {self.name}", got=f"{_ATTEMPTS} lost races", todo="try again")

    def rollback_target(self, alias: str) -> str:
        """The version that `alias` named before its present one, roll backs undone too: A, B, back to A; then nothing.

        Raises:
            NotFoundError: The alias does not exist or has nowhere to go back to.
        """
        stack: list[str] = []
        for move in self.moves(alias):
            if move.action == "rollback":
                stack.pop()
            elif not stack or stack[-1] != move.version:
                stack.append(move.version)
        if len(stack) < 2:
            got = f"only {stack[0]}" if stack else "no move of this alias"
            raise NotFoundError(f"{self.name}@{alias} has nothing to roll back to", got=got, expected="an earlier version")
        return stack[-2]

    def problems(self) -> list[tuple[str, str]]:
        """Every (file, what is wrong) of the journal: gaps, damaged entries, states that do not follow."""
        found: list[tuple[str, str]] = []
        before: State | None = State(0, {})
        numbers = self.store.entries(self.name)
        for number in sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers)):
            found.append((f"{ALIASES}/{number}.json", "is missing"))
        for number in numbers:
            try:
                move, after = self._read(number)
            except RegistryError as error:
                found.append((f"{ALIASES}/{number}.json", str(error)))
                before = None
                continue
            if before is not None and before.n == number - 1 and after.aliases != _apply(before, move):
                found.append((f"{ALIASES}/{number}.json", "does not follow from the entry before"))
            before = after
        return found

    def _read(self, number: int) -> tuple[Move, State]:
        return _decode(self.store.read_entry(self.name, number), self.name, number)


def _apply(state: State, move: Move) -> dict[str, Held]:
    return state.aliases | {move.alias: Held(move.version, move.n)}


def _encode(move: Move, before: State) -> bytes:
    state = {alias: {"version": held.version, "n": held.n} for alias, held in _apply(before, move).items()}
    raw: dict[str, Any] = {**vars(move), "checks": list(move.checks), "state": state, "id": uuid.uuid4().hex}
    return render(raw | {"checksum": checksum_of(raw)})


def _decode(data: bytes, name: str, number: int) -> tuple[Move, State]:
    what = f"{ALIASES}/{number}.json of {name}"
    raw = parse_json(data, what, limit=2**20)
    damaged = IntegrityError(f"{what} is damaged", got="other content than its checksum says", todo="restore it from a copy")
    try:
        if not isinstance(raw, dict) or raw.keys() != _FIELDS or checksum_of(raw) != raw["checksum"] or render(raw) != data:
            raise damaged
        aliases = {alias: Held(held["version"], held["n"]) for alias, held in raw["state"].items()}
        move = Move(
            **{key: raw[key] for key in ("n", "alias", "version", "previous", "created", "action")},
            checks=tuple(raw["checks"]),
        )
        named = all(is_name(alias) and is_version(held.version) for alias, held in aliases.items())
        if raw["n"] != number or not named or aliases[raw["alias"]] != Held(raw["version"], number):
            raise damaged
    except (ManifestError, KeyError, TypeError, AttributeError, ValueError):
        raise damaged from None
    return move, State(number, aliases)
