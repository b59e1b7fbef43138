"""Where aliases have been, without reading a journal again that has not grown.

Owns: the latest moves and the present aliases of each name that is shown. Ignores: who moves them, following them.

    moves.of("like")  ->  Shown(last=812, aliases={"production": "a3f09c12be77"}, latest=(Move(…), …))

A journal's entries never change, so a look at it reads those that came since the last look.
"""

import threading
from dataclasses import dataclass

from genre.errors import GenreError
from genre.registry import Move, Registry
from genre.serving.logs import Log

KEPT = 50


@dataclass(frozen=True)
class Shown:
    """What is known of a name's journal.

    Attributes:
        last: The number of its last move.
        aliases: What each alias names, in the aliases' order.
        latest: The last 50 moves, oldest first.
    """

    last: int
    aliases: dict[str, str]
    latest: tuple[Move, ...]


NOTHING = Shown(0, {}, ())


class Moves:
    """The journals that one service shows."""

    def __init__(self, registry: Registry, log: Log) -> None:
        self.registry, self.log = registry, log
        self._known: dict[str, Shown] = {}
        self._reading = threading.Lock()

    def of(self, name: str) -> Shown:
        """What a name's journal says now; where it cannot be read, what it said last.

        Raises:
            GenreError: It cannot be read, and never was.
        """
        with self._reading:
            known = self._known.get(name, NOTHING)
            try:
                found = self._catch_up(name, known)
            except GenreError as error:
                if known is NOTHING:
                    raise
                self.log.write("history unreadable", level="error", adapter=name, error=str(error))
                return known
            self._known[name] = found
        return found

    def keep(self, names: set[str]) -> None:
        """Forget all names but these."""
        with self._reading:
            self._known = {name: shown for name, shown in self._known.items() if name in names}

    def _catch_up(self, name: str, known: Shown) -> Shown:
        moves = self.registry.history(name, after=known.last)
        if not moves:
            return known
        named = known.aliases | {move.alias: move.version for move in moves}
        return Shown(moves[-1].n, dict(sorted(named.items())), (*known.latest, *moves)[-KEPT:])
