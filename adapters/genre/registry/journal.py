"""Aliases: an append-only journal per name, from which the present state, the history and rollbacks follow.

Owns: the entries, who wins when two write, and the target of a rollback. Ignores: whether a version may be promoted.

Entry n is written once and never changed, by creating `<n>.json` exclusively after reading n - 1, so the journal has no
gaps and no number has two winners. One real entry:

    {"action": "promote", "alias": "production", "checks": ["like.auc 0.761 >= 0.7"], "checksum": "…",
     "created": "2026-03-01T12:00:00Z", "id": "…", "n": 3, "previous": "a3f09c12be77", "state": {"latest": {"n": 2,
     "version": "0c4d5e6f7a8b"}, "production": {"n": 3, "version": "0c4d5e6f7a8b"}}, "version": "0c4d5e6f7a8b"}
"""

import uuid
from dataclasses import dataclass
from typing import Any, Literal

from genre.errors import ConflictError, IntegrityError, ManifestError, NotFoundError, RegistryError
from genre.registry.limits import MAX_ENTRY_BYTES, MAX_MOVES, parse_json
from genre.registry.manifest import checksum_of, render, utc_now
from genre.registry.names import ALIASES, check_name, is_name, is_version
from genre.registry.store import Store

Action = Literal["publish", "promote", "rollback"]
_FIELDS = {"n", "alias", "version", "previous", "created", "action", "checks", "state", "id", "checksum"}
_ATTEMPTS = 1_000


@dataclass(frozen=True)
class Move:
    """One alias move: `previous` is the version that the alias named before, `checks` what was compared to allow it."""

    n: int
    alias: str
    version: str
    previous: str | None
    created: str
    action: str
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """The version that an alias names, and the number of the entry that moved it there."""

    version: str
    n: int


@dataclass(frozen=True)
class Aliases:
    """The targets of a name's aliases after entry `n` (0: no entry yet)."""

    n: int
    targets: dict[str, Target]

    def version(self, alias: str) -> str | None:
        """The version that an alias names; None if there is no such alias."""
        return self.targets[alias].version if alias in self.targets else None


class Journal:
    """The alias journal of one name."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name

    def aliases(self) -> Aliases:
        """Return the present aliases: one listing and one read, however long the journal."""
        numbers = self.store.entries(self.name)
        return self._read(numbers[-1])[1] if numbers else Aliases(0, {})

    def history(self, alias: str | None = None, *, after: int = 0) -> list[Move]:
        """Return the moves after a number, oldest first, of one alias or of all; IntegrityError if an entry is damaged."""
        numbers = self.store.entries(self.name)
        if len(numbers) - after > MAX_MOVES:
            got, expected = f"{len(numbers):,} entries", f"at most {MAX_MOVES:,} at once"
            raise IntegrityError(f"the journal of {self.name} is too long to be read", got=got, expected=expected)
        if numbers != list(range(1, len(numbers) + 1)):
            raise IntegrityError(f"the journal of {self.name} has a gap", got=f"{len(numbers)} entries up to {numbers[-1]}")
        moves = [self._read(number)[0] for number in numbers[after:]]
        return [move for move in moves if alias is None or move.alias == alias]

    def move(self, number: int) -> Move:
        """Return the move of a number."""
        return self._read(number)[0]

    def append(
        self, alias: str, version: str, action: Action, *, expected: Aliases | None = None, checks: tuple[str, ...] = ()
    ) -> Move:
        """Append a move.

        Args:
            alias: The alias to move.
            version: The version that it names from now on.
            action: The reason.
            expected: The aliases that the decision was made on. If `alias` has moved since, this writer has lost; moves of
                other aliases do not matter. None: the move does not depend on what was there (a publish).
            checks: What was compared.

        Raises:
            ConflictError: Another writer moved the alias first.
        """
        check_name(alias, "alias")
        for _ in range(_ATTEMPTS):
            now = self.aliases()
            target = now.targets.get(alias)
            if expected is not None and target != expected.targets.get(alias):
                assert target is not None
                raise ConflictError(
                    f"another writer moved {self.name}@{alias} first",
                    got=f"{target.version} by entry {target.n}",
                    expected=expected.version(alias) or "no holder yet",
                    todo="look at the history and decide again",
                )
            move = Move(now.n + 1, alias, version, now.version(alias), utc_now(), action, checks)
            if self.store.create_entry(self.name, move.n, _encode(move, now)):
                return move
        raise ConflictError(f"too many writers move aliases of {self.name}", got=f"{_ATTEMPTS} lost races", todo="try again")

    def rollback_target(self, alias: str) -> str:
        """Return the version that `alias` named before its present one, rollbacks undone too: A, B, back to A; then nothing.

        Raises:
            NotFoundError: The alias does not exist or has nowhere to go back to.
        """
        stack: list[str] = []
        for move in self.history(alias):
            if move.action == "rollback":
                if not stack:
                    raise IntegrityError(f"the journal of {self.name} rolls {alias} back before it moved", got=f"entry {move.n}")
                stack.pop()
            elif not stack or stack[-1] != move.version:
                stack.append(move.version)
        if len(stack) < 2:
            got = f"only {stack[0]}" if stack else "no move of this alias"
            raise NotFoundError(f"{self.name}@{alias} has nothing to roll back to", got=got, expected="an earlier version")
        return stack[-2]

    def problems(self) -> list[tuple[str, str]]:
        """Return a (file, problem) for every gap, damaged entry and state that does not follow from the entry before."""
        found: list[tuple[str, str]] = []
        before: Aliases | None = Aliases(0, {})
        numbers = self.store.entries(self.name)
        for last, number in zip([0, *numbers], numbers, strict=False):
            if number > last + 1:
                files = f"{ALIASES}/{last + 1}.json" if number == last + 2 else f"{ALIASES}/{last + 1}.json to {number - 1}.json"
                found.append((files, "is missing"))
        if len(numbers) > MAX_MOVES:
            return [*found, (ALIASES, f"has too many entries to be read: {len(numbers):,}")]
        for number in numbers:
            try:
                move, after = self._read(number)
            except RegistryError as error:
                found.append((f"{ALIASES}/{number}.json", str(error)))
                before = None
                continue
            if before is not None and before.n == number - 1 and after.targets != _apply(before, move):
                found.append((f"{ALIASES}/{number}.json", "does not follow from the entry before"))
            before = after
        return found

    def _read(self, number: int) -> tuple[Move, Aliases]:
        data = self.store.read(self.name, ALIASES, f"{number}.json", MAX_ENTRY_BYTES)
        try:
            return _decode(data, self.name, number)
        except IntegrityError as error:
            file = f"{self.store.url.rstrip('/')}/{self.name}/{ALIASES}/{number}.json"
            todo = f"restore {file} from a copy; if it is the newest of its folder, removing it takes back that one move"
            raise IntegrityError(error.what, got=error.got, expected=error.expected, todo=todo) from None


def _apply(before: Aliases, move: Move) -> dict[str, Target]:
    return before.targets | {move.alias: Target(move.version, move.n)}


def _encode(move: Move, before: Aliases) -> bytes:
    state = {alias: vars(target) for alias, target in _apply(before, move).items()}
    raw: dict[str, Any] = {**vars(move), "checks": list(move.checks), "state": state, "id": uuid.uuid4().hex}
    return render(raw | {"checksum": checksum_of(raw)})


def _decode(data: bytes, name: str, number: int) -> tuple[Move, Aliases]:
    what = f"{ALIASES}/{number}.json of {name}"
    raw = parse_json(data, what, limit=MAX_ENTRY_BYTES)
    damaged = IntegrityError(f"{what} is damaged", got="other content than its checksum says", todo="restore it from a copy")
    try:
        if not isinstance(raw, dict) or raw.keys() != _FIELDS or checksum_of(raw) != raw["checksum"] or render(raw) != data:
            raise damaged
        targets = {alias: Target(target["version"], target["n"]) for alias, target in raw["state"].items()}
        fields = {key: raw[key] for key in ("n", "alias", "version", "previous", "created", "action")}
        move = Move(**fields, checks=tuple(raw["checks"]))
        named = all(is_name(alias) and is_version(target.version) for alias, target in targets.items())
        if raw["n"] != number or not named or targets[raw["alias"]] != Target(raw["version"], number):
            raise damaged
    except (ManifestError, KeyError, TypeError, AttributeError, ValueError):
        raise damaged from None
    return move, Aliases(number, targets)
