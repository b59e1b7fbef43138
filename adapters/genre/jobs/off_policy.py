"""The off-policy value of a published version: what its lists would have earned in the place of those that a service showed.

Owns: the lists of a log, the version's chances of what they show, a model of the reward. Ignores: the estimators
(`genre.evaluation.off_policy`), how a policy draws (`genre.evaluation.exploring`).

    evaluate_policy(registry, "next_item@candidate", Interactions.read("data/served"))["estimates"]["snips"]
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from genre.data.interactions import Interactions
from genre.engine import Engine, Request
from genre.engine.requests import Scored
from genre.engine.versions import Loaded
from genre.errors import DataError, InputError
from genre.evaluation.exploring import POOL, Exploration
from genre.evaluation.metrics.bootstrap import RESAMPLES
from genre.evaluation.off_policy import CLIP, SWITCH, Rounds, estimate, item_rewards
from genre.jobs.loading import load_base
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.registry import Registry

GREEDY = "epsilon=0"
"""The policy that always shows the best."""
CALL = 256
"""Requests of one call of the engine."""
FOLDS = 2


def evaluate_policy(
    registry: Registry,
    ref: str,
    logged: Interactions,
    policy: str = GREEDY,
    *,
    data: Interactions | None = None,
    base: Base | None = None,
    task: str | None = None,
    reward: str | None = None,
    among: str | None = None,
    places: int | None = None,
    pool: int = POOL,
    clip: float = CLIP,
    switch: float = SWITCH,
    resamples: int = RESAMPLES,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Estimate the mean reward of a list, had a version and a policy drawn it in the place of the log's.

    Of each logged list the version scores what could have been shown after the user's earlier events, and the policy's chance
    of every shown item is read at its place, given the places before. Events without a propensity are history alone. The model
    of the reward is each item's shrunk mean, of other users than the list's.

    Args:
        registry: Holds the version.
        ref: The version.
        logged: A log with a column `propensity`, as `genre data import --format served` makes it; events of one
            `impression_id` are a list, in order of `position`.
        policy: How the version's scores become lists, as `genre serve --explore` reads it; by default the best first.
        data: Where histories come from, by time; by default from `logged` itself, of a version that reads no feedback only
            the events with a reward.
        base: The version's base; by default found by the name in the manifest.
        task: The task of a joint adapter.
        reward: A column of `logged`; by default `reward`, or else `click`.
        among: A column of both events and items: only items with the event's value could be shown. By default all could.
        places: Only the first so many places of a list.
        pool: The best so many items that the policy draws from.
        clip: The largest weight.
        switch: The largest weight with which switch_dr corrects its model.
        resamples: Of the users.
        seed: Of resamples and folds.
        reporter: Receives progress; by default bars in a notebook, nothing in a script.

    Returns:
        What `genre.evaluation.off_policy.estimate` returns, with `ref`, `digest`, `policy`, `reward`, `places`, `left_out`
        (lists without a propensity).

    Raises:
        InputError, DataError: The log, or an option, is not of this form.
        RequestError: The version cannot answer a list's request.
    """
    drawn = Exploration.parse(policy, pool)
    for name, value in (("clip", clip), ("switch", switch)):
        if not value > 0:
            raise InputError(name, got=value, expected="above 0")
    asked: Any = {"data": data, "base": base, "task": task, "reward": reward, "among": among, "places": places, "seed": seed}
    found = policy_rounds(registry, ref, logged, drawn, reporter=reporter, **asked)
    result = estimate(found.rounds, clip=clip, switch=switch, resamples=resamples, seed=seed)
    about = {"ref": ref, "digest": found.digest, "policy": str(drawn), "reward": found.reward}
    return about | {"places": found.rounds.reward.shape[1], "left_out": found.left_out} | result


@dataclass(frozen=True)
class PolicyRounds:
    """A log's lists under a version's policy.

    Attributes:
        rounds: The lists.
        digest: The version.
        reward: The column of rewards.
        left_out: Lists without a propensity.
    """

    rounds: Rounds
    digest: str
    reward: str
    left_out: int


def policy_rounds(
    registry: Registry,
    ref: str,
    logged: Interactions,
    policy: Exploration,
    *,
    data: Interactions | None = None,
    base: Base | None = None,
    task: str | None = None,
    reward: str | None = None,
    among: str | None = None,
    places: int | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> PolicyRounds:
    """Score a log's lists by a version; see `evaluate_policy` for arguments and errors."""
    for name, least in (("places", places), ("pool", policy.pool)):
        if least is not None and least < 1:
            raise InputError(name, got=least, expected="1 or more")
    lists = _Lists(logged, reward, among, places)
    reporter = reporter or Reporter.here()
    base = base or load_base(registry.resolve(ref).manifest)
    shown = np.full((3, *lists.events.shape), np.nan)  # the policy's chance, the model's reward, its mean over the policy
    models = lists.reward_models(seed)
    with Engine(base, registry, lanes=1, data=logged if data is None else data) as engine:
        loaded = engine.read_by(Request(ref, history=[]))[0]
        histories = _Histories(logged, lists.reward, data, loaded)
        requests = lists.requests(Request(ref, history=[], task=task, k=policy.pool), histories)
        with reporter.bar(f"scoring the lists by {loaded.name}:{loaded.version}", len(lists)) as bar:
            done = 0
            while block := list(islice(requests, CALL)):
                for answer in engine.score(block):
                    if answer.error is not None:
                        raise InputError(f"a list of user {lists.user_id(done)} cannot be scored", got=answer.error)
                    found = [item for item in answer.results if isinstance(item, Scored)]
                    shown[:, done] = lists.chances(done, found, policy, models)
                    done += 1
                bar.advance(len(block))
    users = np.unique(logged.user_codes[lists.events[:, 0]], return_inverse=True)[1]
    chances, expected, outlook = shown
    rounds = Rounds(lists.values(lists.reward), lists.values(lists.propensity), chances, expected, outlook, users)
    return PolicyRounds(rounds, loaded.digest, lists.reward_column, lists.left_out)


class _Lists:
    """The lists of a log that have propensities.

    Attributes:
        events: (n, L) int64 events of each list in order of their places, -1 beyond its end.
        reward: (events,) float64 of the log.
        propensity: (events,) float64 of the log, NaN where there is none.
        left_out: How many lists have no propensity.
    """

    def __init__(self, log: Interactions, reward: str | None, among: str | None, places: int | None) -> None:
        columns = log.frame.columns
        if "propensity" not in columns:
            todo = "import a served log: genre data import FILE --format served"
            raise DataError("the log has no propensities", got=", ".join(columns), expected="a column propensity", todo=todo)
        self.log = log
        self.reward_column = reward or ("reward" if "reward" in columns else "click")
        log.need_column(self.reward_column)
        self.reward, self.propensity = (np.asarray(_numbers(log, name)) for name in (self.reward_column, "propensity"))
        self.among = None if among is None else _members(log, among)
        self._codes = {item: code for code, item in enumerate(log.catalogue.item_ids)}
        own = -1 - np.arange(len(log))
        if log.impressions is not None:
            own = np.where(log.frame["impression_id"].is_null().to_numpy(), own, log.impressions)
        position = log.column("position") if "position" in columns else np.arange(len(log))
        order = np.lexsort((position, own))
        starts = np.flatnonzero(np.diff(own[order])) + 1
        every = [part[:places] for part in np.split(order, starts)]
        known = [part for part in every if not np.isnan(self.propensity[part]).any() and not np.isnan(self.reward[part]).any()]
        self.left_out = len(every) - len(known)
        if not known:
            raise DataError("no list of the log has a propensity and a reward at every place", got=f"{len(every):,} lists")
        self.events = np.full((len(known), max(map(len, known))), -1, dtype=np.int64)
        for row, part in enumerate(known):
            self.events[row, : len(part)] = part

    def __len__(self) -> int:
        return len(self.events)

    def values(self, column: np.ndarray) -> np.ndarray:
        """(n, L) a column of the log by list and place, NaN beyond a list's end."""
        return np.where(self.events >= 0, column[self.events], np.nan)

    def user_id(self, row: int) -> str:
        """Whom a list was shown to."""
        return self.log.user_ids[self.log.user_codes[self.events[row, 0]]]

    def requests(self, asked: Request, histories: "_Histories") -> Iterator[Request]:
        """What the version is asked for each list."""
        for row in self.events:
            first = int(row[row >= 0].min())
            history, user = histories.before(first)
            candidates = None if self.among is None else self.among[0][self.among[1][first]]
            yield replace(asked, history=history, user=user, candidates=candidates)

    def chances(
        self, row: int, found: Sequence[Scored], policy: Exploration, models: tuple[np.ndarray, np.ndarray]
    ) -> np.ndarray:
        """(3, L) the policy's chance of what each place shows, the model's reward of it, and the model's mean over the policy."""
        events = self.events[row][self.events[row] >= 0]
        shown = self.log.item_codes[events]
        place_of = {item.item_id: place for place, item in enumerate(found)}
        indices = [place_of.get(self.log.catalogue.item_ids[code]) for code in shown.tolist()]
        folds, means = models
        model = means[folds[self.log.user_codes[events[0]]]]
        codes = [self._codes.get(item.item_id, -1) for item in found[: policy.pool]]
        result = np.full((3, self.events.shape[1]), np.nan)
        scores = np.array([item.score for item in found])
        for place, (index, shares) in enumerate(zip(indices, policy.places(scores, indices), strict=True)):
            chance = 0.0 if index is None or index >= len(shares) else shares[index]
            result[:, place] = chance, model[shown[place]], shares @ model[codes]
        return result

    def reward_models(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The fold of each user, (U,), and for each fold the shrunk mean reward of each item among other users, (N + 1,).

        The last is that of an item that the log does not know.
        """
        events = self.events[self.events >= 0]
        users, items, rewards = self.log.user_codes[events], self.log.item_codes[events], self.reward[events]
        folds = np.random.default_rng(seed).permutation(len(self.log.user_ids)) % FOLDS
        size = self.log.catalogue.size
        means = np.empty((FOLDS, size + 1))
        for fold in range(FOLDS):
            others = folds[users] != fold
            means[fold] = item_rewards(items[others], rewards[others], size + 1)
        return folds, means


class _Histories:
    """What is known of a user before a list, as requests hold it."""

    def __init__(self, logged: Interactions, reward: np.ndarray, data: Interactions | None, loaded: Loaded) -> None:
        self.logged, self.source = logged, logged if data is None else data
        self.by_time = data is not None
        column = loaded.layout.feedback_column
        self.columns = [name for name in ("item_id", "timestamp", column) if name in self.source.frame.columns]
        self.missing = {} if column is None or column in self.columns else {column: None}
        self.kept = np.ones(len(self.source), dtype=bool)
        if column is None and data is None:
            self.kept = reward > 0
        if self.by_time and not (self.source.info.timed and logged.info.timed):
            raise DataError("histories of another data set go by time", got="a log without times", todo="leave --data out")
        self.users = {name: code for code, name in enumerate(self.source.user_ids)}

    def before(self, event: int) -> tuple[list[Mapping[str, Any]], Mapping[str, Any] | None]:
        """The events of the user before one of the logged events, none of its list, and the user's columns."""
        code = self.users.get(self.logged.user_ids[self.logged.user_codes[event]])
        if code is None:
            return [], None
        start, stop = self.source.user_offsets[code : code + 2].tolist()
        if self.by_time:
            stop = start + int(np.searchsorted(self.source.times_us[start:stop], self.logged.times_us[event]))
        else:
            stop = event
        places = np.flatnonzero(self.kept[start:stop]) + start
        history = [row | self.missing for row in self.source.frame[places.tolist()].select(self.columns).to_dicts()]
        return history, None if self.source.users is None else self.source.users.row(code, named=True)


def _members(log: Interactions, column: str) -> tuple[dict[Any, list[str]], np.ndarray]:
    """Item ids by the value of a column, and the value of each event.

    Raises:
        DataError: Events or items have no such column, or an event was shown what is not among its own.
    """
    log.need_column(column)
    values = log.catalogue.column(column).to_list()
    members: dict[Any, list[str]] = {}
    for item, value in zip(log.catalogue.item_ids, values, strict=True):
        members.setdefault(value, []).append(item)
    events = log.column(column)
    wrong = np.flatnonzero(np.array([values[code] for code in log.item_codes.tolist()], dtype=object) != events)
    if len(wrong):
        got = f"{column} {events[wrong[0]]!r} of an event of item {log.catalogue.item_ids[log.item_codes[wrong[0]]]}"
        raise DataError("an event shows what could not be shown", got=got, expected="the item's own value")
    return members, events


def _numbers(log: Interactions, name: str) -> np.ndarray:
    values = log.column(name)
    if values.dtype == object:
        raise DataError(
            f"{name} of the log is no number", got=repr(next(iter(values), None))[:40], expected="a column of numbers"
        )
    return values
