"""Looking things up for people: titles, items by a part of their title, users, a user's events.

Owns: small answers out of the catalogue and the mounted data set. Ignores: models, rows.

    lookup.items("star w", 5)  ->  [{"item_id": "50", "title": "Star Wars (1977)"}, …]
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

from genre.data.catalogue import Catalogue, Titles
from genre.data.interactions import Interactions
from genre.engine import Engine
from genre.errors import DataError, NotFoundError
from genre.serving.fleet import Fleet

KEPT = 8


class Lookup:
    """Answers about the items and users that a service knows."""

    def __init__(self, engine: Engine, fleet: Fleet) -> None:
        self.engine, self.fleet = engine, fleet
        self._kept: dict[int, Titles] = {}
        self._lock = threading.Lock()

    def titles(self, catalogue: Catalogue) -> Titles:
        """The titles of a catalogue."""
        with self._lock:
            found = self._kept.get(id(catalogue))
            if found is None or found.catalogue is not catalogue:
                while len(self._kept) >= KEPT:
                    self._kept.pop(next(iter(self._kept)))
                found = self._kept[id(catalogue)] = Titles(catalogue)
        return found

    def items(self, text: str, limit: int) -> list[dict[str, str]]:
        """Items whose title or id contains a text: of the data set, or of what is served, in turn."""
        found: dict[str, dict[str, str]] = {}
        data = self.engine.data
        for catalogue in [served.catalogue for served in self.fleet.all()] if data is None else [data.catalogue]:
            if catalogue.size and len(found) < limit:  # one that reads texts has no items
                for item in self.titles(catalogue).search(text, limit):
                    found.setdefault(item["item_id"], item)
        return list(found.values())[:limit]

    def users(self, text: str, limit: int) -> list[dict[str, Any]]:
        """Users whose id begins with a text, then those that contain it.

        Raises:
            NotFoundError: No data set is mounted.
        """
        log = self._log()
        first = [user for user in log.user_ids if user.startswith(text)][:limit]
        if len(first) < limit:
            known = set(first)
            first += [user for user in log.user_ids if text in user and user not in known][: limit - len(first)]
        return [{"user_id": user, "events": _events(log, user)} for user in first]

    def history(self, user_id: str, limit: int) -> dict[str, Any]:
        """A user's columns and latest events, oldest first, with titles.

        Raises:
            NotFoundError: No data set is mounted, or it has no such user.
        """
        log = self._log()
        try:
            code = log.user_code(user_id)
        except DataError:
            raise NotFoundError("unknown user", got=repr(user_id[:80]), expected=f"one of {len(log.user_ids):,} users") from None
        titles = self.titles(log.catalogue)
        events = [{**event, "title": titles.of(event["item_id"])} for event in log.history(user_id)[-limit:]]
        columns = {} if log.users is None else log.users.row(code, named=True)
        columns.pop("user_id", None)
        return {"user_id": user_id, "columns": plain(columns), "total": _events(log, user_id), "events": plain(events)}

    def _log(self) -> Interactions:
        if self.engine.data is None:
            raise NotFoundError("no data set is mounted", todo="start the service with --data DIR")
        return self.engine.data


def _events(log: Interactions, user_id: str) -> int:
    start, stop = log.user_offsets[log.user_code(user_id) :][:2].tolist()
    return int(stop - start)


def plain(value: Any) -> Any:
    """A value as JSON has it: no number that is not finite, nothing but texts, numbers, lists and objects."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
