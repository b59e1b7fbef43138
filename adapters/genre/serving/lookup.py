"""Answers for people: titles and facts of items, items by a part of their title, users, their events, alias moves, baselines.

Owns: small answers from the catalogue, the mounted data set and the registry's journals. Ignores: models, rows.

    lookup.items("star w", 5)  ->  [{"item_id": "50", "title": "Star Wars (1977)"}, …]
    histories.of("like")  ->  Journal(last=812, aliases={"production": "a3f09c12be77"}, latest=(Move(…), …))
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from genre.data.catalogue import Catalogue, Titles
from genre.data.interactions import Interactions
from genre.engine import Engine
from genre.errors import DataError, GenreError, NotFoundError
from genre.registry import Move, Registry, Version
from genre.serving.deployments import Deployments
from genre.serving.logs import Log

KEPT_TITLES = 8
KEPT_FACTS = 65_536
"""Items whose facts are kept as they are shown: reading them out of the table takes many times as long as writing them."""
LATEST = 3
"""Titles of a sample user's latest events."""

FACTS = (
    ("year", "release_year", "publication_year"),
    ("genres", "genre", "categories", "category", "product_type_name"),
    ("artist", "author", "authors", "brand"),
)
"""Columns of items that results show, one of each group."""

PARTS, LENGTH = 4, 80
"""Parts of a list and characters of a text that are shown of a cell."""

KEPT_MOVES = 50
ASK_AGAIN_S = 30.0


class Lookup:
    """Answers about the items and users that a service knows."""

    def __init__(self, engine: Engine, deployments: Deployments) -> None:
        self.engine = engine
        self.deployments = deployments
        self.titles: Callable[[Catalogue], Titles] = lru_cache(KEPT_TITLES)(Titles)
        self.facts: Callable[[Catalogue], Facts] = lru_cache(KEPT_TITLES)(Facts)

    def items(self, text: str, limit: int) -> list[dict[str, str]]:
        """Items whose title or id contains a text: of the data set, or of what is served, in turn."""
        found: dict[str, dict[str, str]] = {}
        data = self.engine.data
        for catalogue in [each.catalogue for each in self.deployments.all()] if data is None else [data.catalogue]:
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
        return [{"user_id": user, "events": count_events(log, user)} for user in first]

    def sample_users(self, limit: int) -> list[dict[str, Any]]:
        """Users to begin with, from short to long histories, with the titles of their latest events.

        The middle one of each of `limit` equal parts of the users, ordered by their number of events: the same ones every time.

        Raises:
            NotFoundError: No data set is mounted.
        """
        log = self._log()
        counts = np.diff(log.user_offsets)
        order = np.argsort(counts, kind="stable")
        parts = min(limit, len(order))
        codes = order[(2 * np.arange(parts) + 1) * len(order) // (2 * parts)]
        titles = self.titles(log.catalogue)
        latest = [
            log.item_codes[max(log.user_offsets[code], end - LATEST) : end][::-1]
            for code, end in zip(codes, log.user_offsets[codes + 1], strict=True)
        ]
        return [
            {"user_id": log.user_ids[code], "events": int(counts[code]), "latest": [titles.titles[item] for item in items]}
            for code, items in zip(codes, latest, strict=True)
        ]

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
        total = count_events(log, user_id)
        return {"user_id": user_id, "columns": to_plain(columns), "total": total, "events": to_plain(events)}

    def _log(self) -> Interactions:
        if self.engine.data is None:
            raise NotFoundError("no data set is mounted", todo="start the service with --data DIR")
        return self.engine.data


class Facts:
    """What a list of results shows of an item beside its title: when it is from, what kind it is, who made it."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        found = (next((name for name in names if name in catalogue.frame.columns), None) for names in FACTS)
        self.frame = catalogue.frame.select(name for name in found if name is not None)
        self._shown = lru_cache(KEPT_FACTS)(self._show)

    def of(self, item_id: str) -> dict[str, Any]:
        """Return the filled cells of an item's columns of `FACTS`, by column; nothing for an item that the catalogue lacks."""
        if item_id not in self.catalogue or not self.frame.columns:
            return {}
        return self._shown(item_id)

    def _show(self, item_id: str) -> dict[str, Any]:
        cells = to_plain(self.frame.row(self.catalogue.code(item_id), named=True))
        return {name: _shortened(cell) for name, cell in cells.items() if cell not in (None, "", [])}


def _shortened(cell: Any) -> Any:
    """A cell that is short enough for a list: the first parts of a list, the beginning of a text."""
    if isinstance(cell, list):
        return [_shortened(part) for part in cell[:PARTS]]
    return cell[: LENGTH - 1] + "…" if isinstance(cell, str) and len(cell) > LENGTH else cell


def count_events(log: Interactions, user_id: str) -> int:
    """The number of a user's events.

    Raises:
        DataError: The log has no such user.
    """
    start, stop = log.user_offsets[log.user_code(user_id) :][:2].tolist()
    return int(stop - start)


def to_plain(value: Any) -> Any:
    """A value as JSON has it: no number that is not finite, nothing but texts, numbers, lists and objects."""
    if isinstance(value, dict):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


@dataclass(frozen=True)
class Journal:
    """The part of a name's alias journal that is shown.

    Attributes:
        last: The number of its last move.
        aliases: What each alias names, in the aliases' order.
        latest: The last 50 moves, oldest first.
    """

    last: int = 0
    aliases: dict[str, str] = field(default_factory=dict)
    latest: tuple[Move, ...] = ()


class AliasHistory:
    """The journals of the names that one service shows.

    A journal's entries never change, so that a look at one reads only the moves since the last look.
    """

    def __init__(self, registry: Registry, log: Log) -> None:
        self.registry = registry
        self.log = log
        self._journals: dict[str, Journal] = {}
        self._reading = threading.Lock()

    def of(self, name: str) -> Journal:
        """A name's journal; if it cannot be read, its last known state, empty where there is none."""
        with self._reading:
            known = self._journals.get(name)
            try:
                self._journals[name] = self._catch_up(name, known or Journal())
            except GenreError as error:
                self.log.write("history unreadable", level="error", adapter=name, error=str(error))
            return self._journals.get(name, Journal())

    def keep_only(self, names: set[str]) -> None:
        """Drop all names but these."""
        with self._reading:
            self._journals = {name: journal for name, journal in self._journals.items() if name in names}

    def _catch_up(self, name: str, known: Journal) -> Journal:
        moves = self.registry.history(name, after=known.last)
        if not moves:
            return known
        aliases = known.aliases | {move.alias: move.version for move in moves if move.action != "delete"}
        return Journal(moves[-1].n, dict(sorted(aliases.items())), (*known.latest, *moves)[-KEPT_MOVES:])


class Baselines:
    """What the versions that one service shows were measured against; a record may be written after its version is served."""

    def __init__(self, registry: Registry, log: Log) -> None:
        self.registry = registry
        self.log = log
        self._found: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, float] = {}
        self._reading = threading.Lock()

    def of(self, version: Version) -> dict[str, Any]:
        """By task, baseline and metric; empty where nothing is recorded (yet: it is asked again every half minute)."""
        with self._reading:
            found, now = self._found.get(version.digest), time.monotonic()
            if found is None and now - self._asked.get(version.digest, -ASK_AGAIN_S) >= ASK_AGAIN_S:
                self._asked[version.digest] = now
                try:
                    record = self.registry.baselines(version)
                except GenreError as error:
                    self.log.write("baselines unreadable", level="error", adapter=version.name, error=str(error))
                else:
                    found = None if record is None else record.model_dump(mode="json")["baselines"]
            if found is not None:
                self._found[version.digest] = found
            return found or {}

    def keep_only(self, digests: set[str]) -> None:
        """Drop all versions but these."""
        with self._reading:
            self._found = {digest: found for digest, found in self._found.items() if digest in digests}
            self._asked = {digest: asked for digest, asked in self._asked.items() if digest in digests}
