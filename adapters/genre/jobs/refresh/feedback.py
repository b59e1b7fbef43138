"""The served log of a refresh: its lists joined with the version's data set, and those that a gate decides on.

Owns: which lists are read, where the joined log is kept, the record that keeps a second refresh from learning the same again.
Ignores: what makes a list an event (`genre.data.shown`), training, the rule of the gate (`refresh.policy_gate`).

    feedback = Feedback.read(registry, "like@production", ServedOptions((Path("served.sqlite"),)))
    refresh(registry, "like@production", feedback)

Every list is in the joined log once, however often and in however many files it is read. What is new of it follows from times, as
of every log: later than all that the version was trained on.
"""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.folder import MARKER, check_data_folder
from genre.data.importers.served import gather_lists
from genre.data.interactions import Interactions
from genre.data.shown import LISTS, join_lists, lists_of
from genre.data.splits import TEST
from genre.errors import DataError, InputError, RegistryError
from genre.jobs.loading import open_log, own_recipe
from genre.jobs.refresh.plan import Plan, RefreshOptions
from genre.jobs.refresh.policy_gate import PolicyGate, PolicyVerdict, judge, policy_of
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Version
from genre.training.assembly import feedback_column

SETTLE_S = 3600.0
"""Lists younger than this wait for the next refresh: their rewards may be under way."""
NO_CHANCE = ("best", "epsilon=0", "top-k-sampling=1")
"""Policies under which nothing else could have been shown."""
NOTE = "served"


@dataclass(frozen=True)
class ServedOptions:
    """The options of a refresh from a served log.

    Attributes:
        paths: Served logs, or folders of them.
        settle_s: Lists younger than so many seconds are left for the next time.
        reward: The data set's column that rewards are; by default `click` and `reward`.
        joined: Where the joined log is kept; by default beside the data set, with `-served` at the end of its name.
        gate: Decide by off-policy value; None decides by the tasks' metrics.
    """

    paths: tuple[Path, ...]
    settle_s: float = SETTLE_S
    reward: str | None = None
    joined: Path | None = None
    gate: PolicyGate | None = None

    def check(self) -> None:
        """Check the options.

        Raises:
            InputError: One is out of range, or `joined` holds other files than a data set.
        """
        if not self.settle_s >= 0:
            raise InputError("--settle is out of range", got=self.settle_s, expected="seconds, 0 or more")
        if self.joined is not None:
            check_data_folder(self.joined)
        if self.gate is not None:
            self.gate.check()


@dataclass(frozen=True)
class Feedback:
    """A served log joined with a data set.

    Attributes:
        log: Both.
        lists: What was shown and has settled.
        options: How they were read.
        folder: Where the joined log is kept.
        facts: Of the served log: `lists`, `rewards`, `until` (the last second); lists `waiting`, `without_user`, `forgotten`.
    """

    log: Interactions
    lists: pl.DataFrame = field(repr=False)
    options: ServedOptions
    folder: Path
    facts: dict[str, Any]

    @classmethod
    def read(cls, registry: Registry, ref: str, options: ServedOptions, data: str | None = None) -> "Feedback":
        """Read served logs and the data set that they join.

        Args:
            registry: Holds the version.
            ref: The version.
            options: See `ServedOptions`.
            data: The data set; by default the one that the version was trained on.

        Raises:
            ManifestError: The version has no recipe.
            DataError: A served log or the data set cannot be read, or rewards fill no column that the version reads.
            InputError: The folder of the joined log holds another data set.
        """
        options.check()
        version = registry.resolve(ref)
        recipe = own_recipe(registry, version, "refreshed", merged="refresh its parents and merge again")
        path = data or recipe.data.path
        log = open_log(path, trains=True)
        in_place = data is None and _note_of(version) is not None
        folder = options.joined or (Path(path) if in_place else _joined_folder(path))
        check_data_folder(folder)
        rows, facts = _settled(gather_lists(options.paths), log, options.settle_s)
        if (folder / MARKER).is_file():  # what served logs have dropped since
            earlier = _earlier(folder, log)
            rows = pl.concat([rows, earlier.join(rows, on=("impression_id", "item_id"), how="anti")])
        joined = join_lists(log, rows, _read_columns(recipe, log), reward=options.reward)
        return cls(joined, rows, options, folder, facts)

    @property
    def explored(self) -> pl.DataFrame:
        """The lists that were drawn by chance."""
        return self.lists.filter(~pl.col("policy").is_in(NO_CHANCE))

    def about(self) -> str:
        """What was read, in words."""
        facts = self.facts
        found = f"the served log holds {facts['lists']:,} lists with {facts['rewards']:,} rewards"
        if facts["waiting"]:
            found += f", and {facts['waiting']:,} younger than {self.options.settle_s:g} s that wait (--settle)"
        if facts["without_user"]:
            found += f", and {facts['without_user']:,} without a user_id"
        return found

    def asked(self, options: RefreshOptions) -> dict[str, Any]:
        """What tells one refresh from another of the same log: its options, as JSON values."""
        found = {name: value for name, value in asdict(options).items() if name not in ("path", "encoder_due")}
        gate = None if self.options.gate is None else asdict(self.options.gate)
        return found | {"overrides": list(options.overrides), "gate": gate}

    def made_before(self, registry: Registry, old: Version, options: RefreshOptions) -> str | None:
        """The version, if there is one, that was refreshed from the same one, with the same log and options."""
        for number in reversed(registry.versions(old.name)):
            with suppress(RegistryError):  # a damaged version is none that this would make again
                version = registry.open_version(old.name, number)
                manifest, note = version.manifest, _note_of(version)
                same = note is not None and note["asked"] == self.asked(options) and manifest.parents == (old.digest,)
                if same and manifest.data is not None and manifest.data.digest == self.log.digest:
                    return version.ref
        return None

    def keep(self, reporter: Reporter) -> None:
        """Write the joined log, by which the new version can be evaluated and refreshed again."""
        self.log.write(self.folder)
        reporter.line(f"joined the served log with the data set: {self.folder}")

    def held_out(self, name: str, made: Plan) -> pl.DataFrame:
        """The explored lists that versions of a name answered later than all that trains or validates."""
        learnt = self.log.timestamps[made.split.part != TEST].max()
        theirs = pl.col("adapter").str.split("@").list.first().str.split(":").list.first() == name
        return self.explored.filter(theirs & (pl.col("timestamp") > learnt))

    def too_small(self, name: str, made: Plan) -> str | None:
        """The reason why the held-out lists cannot decide, if the gate asks for them.

        Raises:
            DataError: Nothing of the log was drawn by chance, so that nothing can be said of another policy.
            InputError: The policy that most of the lists were drawn by is not known here.
        """
        if self.options.gate is None:
            return None
        if self.explored.is_empty():
            what, todo = "the served log says nothing of another policy", "serve with --explore, or decide by --gate metrics"
            raise DataError(what, got="no list that was drawn by chance", expected="propensities below 1", todo=todo)
        rows, least = self.held_out(name, made), self.options.gate.least
        if (count := rows["impression_id"].n_unique()) >= least:
            policy_of(self.options.gate, rows)
            return None
        return f"the test is too small: {count:,} explored lists of {name}; expected at least {least:,}: wait for more lists"

    def judge(
        self, registry: Registry, old: Version, new: Version, made: Plan, tolerance: float, base: Base, reporter: Reporter
    ) -> PolicyVerdict | None:
        """Compare two versions by off-policy value; None where metrics decide."""
        gate = self.options.gate
        if gate is None:
            return None
        rows = self.held_out(old.name, made).with_columns(pl.col("reward").fill_null(0.0))
        lists = Interactions.from_frame(rows, self.log.catalogue.frame, name="held-out lists", stored=True)
        refs = (old.exact, new.exact)
        return judge(registry, refs, lists, self.log, gate, tolerance, base=base, reporter=reporter)


def _note_of(version: Version) -> dict[str, Any] | None:
    """What a version records of the served log that it was refreshed from; None if it was not."""
    refreshed: Any = version.manifest.notes.get("refresh")
    return refreshed["data"].get(NOTE) if refreshed else None


def _joined_folder(path: str) -> Path:
    """Where a data set's joined log is kept by default; that of a joined log is its own place."""
    place = Path(path) if Path(path).is_dir() else Path("data") / Path(path).name
    return place if place.name.endswith("-served") else place.with_name(f"{place.name}-served")


def _settled(rows: pl.DataFrame, log: Interactions, settle_s: float) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The lists that a data set can take, and what there is."""
    count = rows["impression_id"].n_unique()
    found = rows.filter(pl.col("timestamp") <= time.time() - settle_s)
    facts: dict[str, Any] = {"waiting": count - found["impression_id"].n_unique()}
    named = found.filter(pl.col("user_id").is_not_null())
    facts["without_user"] = found["impression_id"].n_unique() - named["impression_id"].n_unique()
    kept = _without_forgotten(named, log)
    facts["forgotten"] = named["impression_id"].n_unique() - kept["impression_id"].n_unique()
    named = kept
    facts["lists"], facts["rewards"] = named["impression_id"].n_unique(), named["reward"].count()
    facts["until"] = named["timestamp"].max()
    return named.select(list(LISTS)), facts


def _earlier(folder: Path, log: Interactions) -> pl.DataFrame:
    """The lists of a joined log that is there already."""
    joined = Interactions.read(folder)
    if not set(LISTS) <= set(joined.frame.columns):
        todo = "name another folder with --joined"
        raise InputError(f"{folder} is no joined log", got="another data set", expected="a new folder", todo=todo)
    return _without_forgotten(_without_forgotten(lists_of(joined), log), joined)


def _without_forgotten(rows: pl.DataFrame, log: Interactions) -> pl.DataFrame:
    """Lists without those to users who were forgotten in a data set."""
    key = log.info.users_key
    if key is None or not key.forgotten:
        return rows
    gone = [user for user in rows["user_id"].unique().to_list() if key.digest(user) in key.forgotten]
    return rows.filter(~pl.col("user_id").is_in(gone))


def _read_columns(recipe: Recipe, log: Interactions) -> set[str]:
    """The event columns that a recipe's adapter reads."""
    columns = [task.column for task in recipe.tasks] + [feedback_column(recipe, log)]
    columns += [name for task in recipe.tasks if task.logged for name in (task.logged.reward, task.logged.propensity)]
    return {name for name in columns if name is not None}
