"""The versions of a registry that were trained on some users.

Owns: what is known of each version, and from what. Ignores: the data set folder (`genre.data.forgetting`).

    for each in versions_of(Registry("registry"), log, ["196"]):
        each.ref, each.known      # ("like:a3f09c12be77", "trained")

A version's own set tells (`genre.registry.users`), or that of its encoder or of what it came from. Versions of earlier releases
have no set; then the data set's digest, or the times of the events, tell as much as they can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from genre.data.interactions import Interactions
from genre.data.user_key import UserKey
from genre.errors import ManifestError, RegistryError
from genre.registry import Registry
from genre.registry.limits import MAX_MANIFEST_BYTES
from genre.registry.manifest import DataInfo, Manifest, Version
from genre.registry.users import FILE, UserSet

Known = Literal["trained", "unknown", "not trained"]
_ORDER: tuple[Known, ...] = ("trained", "unknown", "not trained")


@dataclass(frozen=True)
class TrainedVersion:
    """What is known of a version.

    Attributes:
        ref: `name:version`.
        aliases: Its aliases.
        known: Whether some of the users trained it.
        why: From what that is known.
        false_positives: The probability that `trained` is a mistake, for each user; None where that is no set's word.
    """

    ref: str
    aliases: tuple[str, ...]
    known: Known
    why: str
    false_positives: float | None = None


def versions_of(registry: Registry, log: Interactions, users: Sequence[str]) -> list[TrainedVersion]:
    """Say of every version of a registry whether some users of a log trained it; those that did not are left out.

    Args:
        registry: Only read.
        log: The log, with the users still in it.
        users: Their ids.
    """
    key, found = log.info.users_key, []
    search = Search(registry, [] if key is None else [key.digest(user) for user in users], key, log, users)
    for row in registry.list():
        try:
            version = registry.open_version(row.name, row.version)
            known, why, mistaken = search.of(version)
        except RegistryError as error:
            known, why, mistaken = "unknown", f"it cannot be read: {error}", None
        if known != "not trained":
            found.append(TrainedVersion(f"{row.name}:{row.version}", row.aliases, known, why, mistaken))
    return sorted(found, key=lambda each: _ORDER.index(each.known))


Answer = tuple[Known, str, float | None]


class Search:
    """Looks users up in versions.

    Args:
        registry: Holds the versions.
        digests: The users' digests under the key.
        key: Of the data set folder; None if it has none.
        log: The log with their events; None if only sets can tell.
        users: Their ids in it.
    """

    def __init__(
        self,
        registry: Registry,
        digests: Sequence[bytes],
        key: UserKey | None,
        log: Interactions | None = None,
        users: Sequence[str] = (),
    ) -> None:
        self.registry, self.digests, self.key = registry, digests, key
        self.log = log
        self.first = None if log is None else _first_second(log, users)
        self._answers: dict[str, Answer] = {}

    def of(self, version: Version) -> Answer:
        """What is known of a version, from what, and the probability of a mistake."""
        if version.digest not in self._answers:
            self._answers[version.digest] = "unknown", "it came from itself", None  # ends a circle
            self._answers[version.digest] = self._of(version)
        return self._answers[version.digest]

    def _of(self, version: Version) -> Answer:
        answers = [self._own(version)]
        for reference in version.manifest.references:
            try:
                other = self.registry.find(reference) if ":" not in reference else self.registry.resolve(reference)
            except RegistryError:
                answers.append(("unknown", f"it came from {reference[:12]}, which is not here", None))
                continue
            known, why, mistaken = self.of(other)
            answers.append((known, f"it came from {other.ref}: {why}", mistaken))
        return min(answers, key=lambda answer: _ORDER.index(answer[0]))

    def _own(self, version: Version) -> Answer:
        manifest, data = version.manifest, version.manifest.data
        if manifest.reads == "texts" and manifest.sequence:
            return "not trained", "it was trained on labelled texts", None
        if manifest.kind == "merged":
            return "not trained", "it was merged", None  # its parents tell
        if (private := _of_private(manifest)) is not None:
            return private
        if FILE in manifest.files:
            held = read_users(self.registry, version)
            if self.key is not None and held.key == self.key.name:
                if any(held.find(self.digests)):
                    return "trained", "its set of users has them", held.false_positives
                return "not trained", "its set of users does not have them", None
            return "unknown", "its set of users was made with the key of another data set folder", None
        return self._by_data(data)

    def _by_data(self, data: DataInfo | None) -> Answer:
        if data is None:
            return "unknown", "it does not say what it was trained on", None
        if self.log is None:
            return "unknown", "it has no set of users", None
        if data.digest == self.log.digest:
            return "trained", "it has no set of users, and was trained on this data set as it is now", None
        if data.name is not None and data.name != self.log.info.name:
            return "unknown", f"it has no set of users, and was trained on another data set, {data.name}", None
        if self.first is not None and data.time_span is not None and self.first > data.time_span[1]:
            return "not trained", "their first event is later than its training events", None
        return "unknown", "it has no set of users, and was trained on an earlier or later form of this data set", None


def refuse_forgotten(registry: Registry, version: Version, log: Interactions) -> None:
    """Refuse to go on from a version that was, or may have been, trained on users who were forgotten since.

    Raises:
        ManifestError: It was, or it may have been.
    """
    key = log.info.users_key
    if key is None or not key.forgotten:
        return
    known, why, mistaken = Search(registry, sorted(key.forgotten), key).of(version)
    if known == "not trained":
        return
    chance = "" if mistaken is None else f" ({mistaken:.0e} by mistake for each user)"
    was = "was" if known == "trained" else "may have been"
    raise ManifestError(
        f"{version.ref} {was} trained on users who were forgotten since, and its weights would hand that on",
        got=f"{why}{chance}",
        expected="a version that did not see them",
        todo=f"train it from the start: genre refresh {version.name} --from-start",
    )


def _first_second(log: Interactions, users: Sequence[str]) -> int | None:
    """The first second among the events of some users; None without times or events."""
    theirs = np.isin(log.user_ids, users)[log.user_codes]
    span = log.time_span(theirs) if theirs.any() else None
    return None if span is None else span[0]


def _of_private(manifest: Manifest) -> Answer | None:
    """What is known of a version with a budget of differential privacy; None for others."""
    table: Any = manifest.notes.get("privacy")
    if not isinstance(table, dict):
        return None
    if not table.get("mechanisms"):
        return "not trained", "it was made of public things alone", None
    epsilon, delta = table.get("epsilon"), table.get("delta")
    return (
        "unknown",
        f"it was trained with differential privacy, epsilon {epsilon} at delta {delta}, and does not say on whom",
        None,
    )


def read_users(registry: Registry, version: Version) -> UserSet:
    """The set of users of a version that has one.

    Raises:
        RegistryError: It is missing or damaged.
    """
    return UserSet.parse(registry.store.read(version.name, version.version, FILE, MAX_MANIFEST_BYTES))
