"""Aliases: an append-only journal per name, from which the present state, the history and rollbacks follow.

Owns: the entries and their chain, who wins when two write, and the target of a rollback. Ignores: whether a version may be
promoted, and what an entry looks like in its file (`entries`).

Entry n is written once and never changed, by creating `<n>.json` exclusively after reading n - 1, so the journal has no gaps and
no number has two winners. It names the sha256 of the entry before it, so that none can be changed or taken out unseen. What is
missing at the end shows by the head, a file outside of the name's folder that holds the number and sha256 of its last entry.
"""

import contextlib
import hashlib
from collections.abc import Container

from genre.errors import ConflictError, GenreError, IntegrityError, NotFoundError, RegistryError, TrustError
from genre.registry.entries import (
    NO_ALIAS,
    NOTHING,
    Action,
    Aliases,
    Entry,
    Move,
    Target,
    apply,
    decode,
    encode,
    follows,
    signed_by,
)
from genre.registry.limits import MAX_ENTRY_BYTES, MAX_MANIFEST_BYTES, MAX_MOVES, parse_json
from genre.registry.manifest import checksum_of, open_sealed, render, utc_now
from genre.registry.names import ALIASES, HEAD, HEADS, MANIFEST, check_name
from genre.registry.stores.store import Store
from genre.registry.trust.actor import Author
from genre.registry.trust.policy import Trust

_ATTEMPTS = 1_000


class Journal:
    """The alias journal of one name; `author` writes its entries, by default this process's user without a key."""

    def __init__(self, store: Store, name: str, author: Author | None = None) -> None:
        self.store = store
        self.name = name
        self.author = author

    def aliases(self) -> Aliases:
        """Return the present aliases: one listing and one read, however long the journal."""
        newest = self._newest()
        return NOTHING if newest is None else newest.after

    def target(self, alias: str, trust: Trust) -> Target | None:
        """Return what an alias names; None if there is no such alias.

        Under a policy that requires signatures the newest move of the alias counts, and must have one by a trusted key. Entries
        after it are looked at one by one, since what one without a signature says of other aliases need not be true.

        Raises:
            TrustError: That move is not signed by a trusted key.
        """
        if not trust.require:
            return self.aliases().targets.get(alias)
        entry = self._newest()
        while entry is not None:
            move, key = entry.move, signed_by(entry)
            if move.alias == alias:
                if key in trust.keys:
                    return Target(move.version, move.n, move.digest)
                got = f"entry {move.n} by {move.actor or 'an earlier release'}, " + (f"signed by {key}" if key else "not signed")
                todo = f"genre registry sign {self.name}@{alias} --key KEY, if it is as it should be"
                what = f"{self.name}@{alias} was moved without a trusted signature"
                raise TrustError(what, got=got, expected=f"one by {' or '.join(trust.keys)}", todo=todo)
            known = entry.after.targets.get(alias) if key in trust.keys else None
            if key in trust.keys and known is None:
                return None
            before = move.n - 1 if known is None else min(known.n, move.n - 1)
            entry = self._read(before) if before else None
        return None

    def history(self, alias: str | None = None, *, after: int = 0) -> list[Move]:
        """Return the moves after a number, oldest first, of one alias or of all; IntegrityError if an entry is damaged."""
        moves = [entry.move for entry in self.entries(after=after)]
        return [move for move in moves if alias is None or move.alias == alias]

    def entries(self, *, after: int = 0) -> list[Entry]:
        """Return the entries after a number, oldest first; IntegrityError if one is damaged or missing."""
        numbers = self._numbers()
        if len(numbers) - after > MAX_MOVES:
            got, expected = f"{len(numbers):,} entries", f"at most {MAX_MOVES:,} at once"
            raise IntegrityError(f"the journal of {self.name} is too long to be read", got=got, expected=expected)
        if numbers != list(range(1, len(numbers) + 1)):
            raise IntegrityError(f"the journal of {self.name} has a gap", got=f"{len(numbers)} entries up to {numbers[-1]}")
        return [self._read(number) for number in numbers[after:]]

    def move(self, number: int) -> Move:
        """Return the move of a number."""
        return self._read(number).move

    def append(
        self,
        alias: str,
        version: str,
        action: Action,
        *,
        digest: str | None = None,
        expected: Aliases | None = None,
        checks: tuple[str, ...] = (),
    ) -> Move:
        """Append a move.

        Args:
            alias: The alias to move.
            version: The version that it names from now on.
            action: The reason.
            digest: The version's whole digest, which the alias is bound to.
            expected: The aliases that the decision was made on. If `alias` has moved since, this writer has lost; moves of
                other aliases do not matter. None: the move does not depend on what was there (a publish).
            checks: What was compared.

        Raises:
            ConflictError: Another writer moved the alias first.
            IntegrityError: With a key: entries since the last one with a trusted signature do not follow from each other.
        """
        check_name(alias, "alias")
        for _ in range(_ATTEMPTS):
            newest = self._newest()
            now = NOTHING if newest is None else newest.after
            target = now.targets.get(alias)
            held = None if expected is None else expected.targets.get(alias)
            if expected is not None and (target and target.n) != (held and held.n):
                assert target is not None
                raise ConflictError(
                    f"another writer moved {self.name}@{alias} first",
                    got=f"{target.version} by entry {target.n}",
                    expected=expected.version(alias) or "no holder yet",
                    todo="look at the history and decide again",
                )
            previous = now.version(alias)
            move = Move(now.n + 1, alias, version, previous, utc_now(), action, checks, digest, self._author().actor)
            if self._write(move, newest):
                return move
        raise self._crowded()

    def append_deletion(self, version: str, *, digest: str | None = None) -> Move:
        """Append that a version was deleted on purpose; aliases stay as they are."""
        for _ in range(_ATTEMPTS):
            newest = self._newest()
            number = 1 if newest is None else newest.after.n + 1
            move = Move(number, NO_ALIAS, version, None, utc_now(), "delete", (), digest, self._author().actor)
            if self._write(move, newest):
                return move
        raise self._crowded()

    def rollback_target(self, alias: str, trust: Trust) -> Target:
        """Return what `alias` named before its present version, rollbacks undone too: A, B, back to A; then nothing.

        Under a policy that requires signatures only moves that have one by a trusted key count: after any other move the alias
        goes back to what the last of them named.

        Raises:
            NotFoundError: The alias does not exist or has nowhere to go back to.
        """
        stack: list[Target] = []
        holder: Target | None = None
        for entry in self.entries():
            move = entry.move
            holder = entry.after.targets.get(alias)
            if move.alias != alias or (trust.require and signed_by(entry) not in trust.keys):
                continue
            target = Target(move.version, move.n, move.digest)
            if move.action == "rollback":
                if not stack:
                    raise IntegrityError(f"the journal of {self.name} rolls {alias} back before it moved", got=f"entry {move.n}")
                if not stack[-1].means(target.pin):  # else back from a move that does not count here
                    stack.pop()
            elif not stack or not stack[-1].means(target.pin):
                stack.append(target)
        if stack and holder is not None and not stack[-1].means(holder.pin):
            return stack[-1]  # somebody without a trusted key moved it from there
        if len(stack) < 2:
            got = f"only {stack[0].version}" if stack else "no move of this alias"
            raise NotFoundError(f"{self.name}@{alias} has nothing to roll back to", got=got, expected="an earlier version")
        return stack[-2]

    def audit(self) -> tuple[list[tuple[str, str]], list[Entry]]:
        """Read the whole journal once.

        Returns:
            A (file, problem) for every gap, damaged entry, and entry that does not follow from the one before; and the entries
            that can be read, oldest first.
        """
        found: list[tuple[str, str]] = []
        numbers = self._numbers()
        for last, number in zip([0, *numbers], numbers, strict=False):
            if number > last + 1:
                files = f"{ALIASES}/{last + 1}.json" if number == last + 2 else f"{ALIASES}/{last + 1}.json to {number - 1}.json"
                found.append((files, "is missing"))
        if len(numbers) > MAX_MOVES:
            return [*found, (ALIASES, f"has too many entries to be read: {len(numbers):,}")], []
        entries: list[Entry] = []
        known = True
        for number in numbers:
            try:
                entry = self._read(number)
            except RegistryError as error:
                found.append((f"{ALIASES}/{number}.json", str(error)))
                known = False
                continue
            before = entries[-1] if entries else None
            at = 0 if before is None else before.move.n
            if known and at == number - 1 and (why := follows(entry, before)):
                found.append((f"{ALIASES}/{number}.json", why))
            entries.append(entry)
            known = True
        return found or self._missing_end({entry.move.n: entry.sha256 for entry in entries}), entries

    def _missing_end(self, hashes: dict[int, str]) -> list[tuple[str, str]]:
        """Compare a sound journal with its head: the last entry that was written must still be there."""
        try:
            head = self._head()
        except RegistryError as error:
            return [(ALIASES, str(error))]
        if head is None or hashes.get(head[0]) == head[1]:
            return []
        todo = f"restore it from a copy, or remove {HEADS}/{self.name} to accept it as it is"
        if not hashes:
            return [(ALIASES, f"is gone: {head[0]} entries were written; {todo}")]
        if head[0] > max(hashes):
            return [(ALIASES, f"is cut: it ends with {max(hashes)}.json, but {head[0]}.json was written; {todo}")]
        return [(f"{ALIASES}/{head[0]}.json", f"is not the entry that was written; {todo}")]

    def _numbers(self) -> list[int]:
        """The numbers of the entries. A listing beside writers may have the later of two new ones alone: then another is made."""
        numbers = self.store.entries(self.name)
        return numbers if numbers == list(range(1, len(numbers) + 1)) else self.store.entries(self.name)

    def _newest(self) -> Entry | None:
        numbers = self.store.entries(self.name)
        return self._read(numbers[-1]) if numbers else None

    def _write(self, move: Move, before: Entry | None) -> bool:
        """Create the entry of a move after the newest one; False if another writer was first."""
        now = NOTHING if before is None else before.after
        author = self._author()
        if author.signer is not None:
            self._check_since_signed(before, author.keys)
        state = apply({alias: self._bound(target) for alias, target in now.targets.items()}, move)
        data = encode(move, self.name, state, "" if before is None else before.sha256, author.signer)
        if not self.store.create_entry(self.name, move.n, data):
            return False
        with contextlib.suppress(GenreError):  # the move is done, and what is not noted here is noted by the next one
            self._note_head(move.n, hashlib.sha256(data).hexdigest(), before)
        return True

    def _author(self) -> Author:
        return self.author or Author()

    def _check_since_signed(self, entry: Entry | None, keys: Container[str]) -> None:
        """Follow the entries back to one with a trusted signature: whoever signs the next one vouches for its whole state."""
        while entry is not None and signed_by(entry) not in keys:
            before = self._read(entry.move.n - 1) if entry.move.n > 1 else None
            if why := follows(entry, before):
                file = f"{ALIASES}/{entry.move.n}.json of {self.name}"
                raise IntegrityError(f"{file} {why}", todo="genre registry verify shows more; nothing was signed or moved")
            entry = before

    def _bound(self, target: Target) -> Target:
        """Bind a target of an entry by an earlier release, which has 12 digits, to the digest that stands there."""
        if target.digest is not None:
            return target
        try:
            data = self.store.read(self.name, target.version, MANIFEST, MAX_MANIFEST_BYTES)
            return Target(target.version, target.n, open_sealed(data, self.name, target.version).digest)
        except GenreError:  # it is damaged or gone, which verify reports
            return target

    def _note_head(self, number: int, sha256: str, before: Entry | None) -> None:
        """Write the head, unless the one that is there tells of a loss: then it stays, for `verify` to report."""
        head = self._head()
        if head is not None:
            at = self._read(head[0]) if before is None or before.move.n != head[0] else before
            if head[0] >= number or at.sha256 != head[1]:
                return
        raw = {"n": number, "sha256": sha256}
        self.store.put(HEADS, self.name, HEAD, render(raw | {"checksum": checksum_of(raw)}))

    def _head(self) -> tuple[int, str] | None:
        what = f"{HEADS}/{self.name}/{HEAD}"
        try:
            data = self.store.read(HEADS, self.name, HEAD, MAX_ENTRY_BYTES)
        except NotFoundError:
            return None
        raw = parse_json(data, what, limit=MAX_ENTRY_BYTES)
        sound = isinstance(raw, dict) and isinstance(raw.get("n"), int) and isinstance(raw.get("sha256"), str)
        if not sound or raw.get("checksum") != checksum_of(raw):
            raise IntegrityError(f"{what} is damaged", got="other content than its checksum says", todo="remove it")
        return raw["n"], raw["sha256"]

    def _read(self, number: int) -> Entry:
        try:
            data = self.store.read(self.name, ALIASES, f"{number}.json", MAX_ENTRY_BYTES)
            return decode(data, self.name, number)
        except IntegrityError as error:
            file = f"{self.store.url.rstrip('/')}/{self.name}/{ALIASES}/{number}.json"
            todo = f"restore {file} from a copy; if it is the newest of its folder, removing it takes back that one move"
            raise IntegrityError(error.what, got=error.got, expected=error.expected, todo=todo) from None

    def _crowded(self) -> ConflictError:
        got = f"{_ATTEMPTS} lost races"
        return ConflictError(f"too many writers move aliases of {self.name}", got=got, todo="try again")
