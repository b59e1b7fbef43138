"""What references mean to an engine, and which of them are pinned.

Owns: the table of meanings. Ignores: lanes, the registry, threads (the caller holds its lock).

    names.say("like@production", Meaning("like:9f2c01d7aa3e", "9f2c…"))
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    """What a reference means: `name:version`, and the digest."""

    exact: str
    digest: str


class Names:
    """References and what they mean; a pin belongs to a reference and goes where it goes."""

    def __init__(self) -> None:
        self._meaning: dict[str, Meaning] = {}
        self._of: dict[str, set[str]] = {}
        self._pins: set[str] = set()

    def __contains__(self, ref: object) -> bool:
        return ref in self._meaning

    def __str__(self) -> str:
        return ", ".join(self._meaning) or "none"

    def get(self, ref: str) -> Meaning | None:
        """What a reference means; None if nothing."""
        return self._meaning.get(ref)

    def items(self) -> list[tuple[str, Meaning]]:
        """All references."""
        return list(self._meaning.items())

    def say(self, ref: str, meaning: Meaning) -> str | None:
        """Change what a reference means, by one assignment.

        Returns:
            The digest that no reference means any more; None if there is none.
        """
        old = self._meaning.get(ref)
        self._meaning[ref] = meaning
        self._of.setdefault(meaning.digest, set()).add(ref)
        return self._leave(ref, old) if old is not None and old.digest != meaning.digest else None

    def forget(self, ref: str) -> str | None:
        """Let a reference mean nothing, and unpin it; returns as `say` does. KeyError if it means nothing."""
        old = self._meaning.pop(ref)
        self._pins.discard(ref)
        return self._leave(ref, old)

    def means(self, digest: str) -> bool:
        """Whether any reference means a version."""
        return digest in self._of

    def pin(self, ref: str, on: bool = True) -> None:
        """Pin a reference, or unpin it."""
        if on:
            self._pins.add(ref)
        else:
            self._pins.discard(ref)

    def pinned(self, digest: str) -> bool:
        """Whether a pinned reference means a version."""
        return not self._pins.isdisjoint(self._of.get(digest, ()))

    def clear(self) -> None:
        """Forget everything."""
        self._meaning.clear()
        self._of.clear()
        self._pins.clear()

    def _leave(self, ref: str, old: Meaning) -> str | None:
        names = self._of[old.digest]
        names.discard(ref)
        if names:
            return None
        del self._of[old.digest]
        return old.digest
