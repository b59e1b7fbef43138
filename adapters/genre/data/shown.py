"""What a service showed, as events of the log that its versions were trained on.

Owns: which of the lists' items become events, and with what feedback; lists that are in the log already. Ignores: where lists
come from (`genre.data.importers.served`).

    log = join_lists(Interactions.read("data/shop"), gather_lists([Path("served.sqlite")]), reads={"click"})

| the log's versions read | an item that was shown is |
|---|---|
| `click`, or the log has it | an event, clicked if its reward is above 0 |
| `reward`, or another column of numbers that is named | an event with its reward, 0 where none was sent |
| `rating`, if it is named | an event if a reward was sent, which is the rating |
| no feedback | an event if its reward is above 0 |
"""

from collections.abc import Collection

import polars as pl

from genre.data.importers.served import COLUMNS
from genre.data.interactions import Interactions
from genre.data.order import FILE, HASH
from genre.data.schema import FEEDBACK, SUBSECOND
from genre.errors import DataError

LISTS = {name: kind for name, (_, kind) in COLUMNS.items() if name != "rewarded"}
"""The columns of what was shown, as `genre.data.importers.served.read_lists` gives them."""
_FILLED = {*LISTS, "click"} - {"user_id", "item_id", "timestamp"}


def lists_of(log: Interactions) -> pl.DataFrame:
    """The events of a log that came from lists; the columns are `LISTS`."""
    if not set(LISTS) <= set(log.frame.columns):
        return pl.DataFrame(schema=LISTS)
    return log.frame.filter(pl.col("digest").is_not_null()).select(list(LISTS)).cast(LISTS)  # type: ignore[arg-type]


def join_lists(log: Interactions, lists: pl.DataFrame, reads: Collection[str] = (), *, reward: str | None = None) -> Interactions:
    """Add to a log what was shown to its users, and to others.

    A list that the log has already is replaced, since rewards may have come after it was added. Users and items that the log does
    not know are new ones, as in any log.

    Args:
        log: A log with times.
        lists: With the columns `LISTS`, each item of a list once; none without a user.
        reads: The feedback columns that the log is joined for.
        reward: The column that rewards are; by default `click` and `reward`.

    Returns:
        The log; without lists the same object.

    Raises:
        DataError: A column that is read, or named, cannot be filled from rewards; or a column orders equal times.
    """
    if lists.is_empty():
        return log
    if log.info.order not in (HASH, FILE):
        what, todo = "lists cannot join a log whose equal times a column orders", "import it with --order file or hash"
        raise DataError(what, got=f"order {log.info.order}", expected=f"{HASH} or {FILE}", todo=todo)
    earlier = lists_of(log)
    known = earlier.join(lists, on=("impression_id", "item_id"), how="anti")
    events = _events(log, pl.concat([lists.select(list(LISTS)), known]), reads, reward)
    own = _own_events(log, events)
    rows = pl.int_range(events.height, eager=True) + (own.select(pl.col("row").max() + 1).item() if own.height else 0)
    frame = pl.concat([own, events.with_columns(rows.alias("row"))], how="diagonal_relaxed")
    if SUBSECOND in frame.columns:
        frame = frame.with_columns(pl.col(SUBSECOND).fill_null(0))
    return Interactions.from_frame(frame, log.catalogue.frame, log.users, info=log.info, stored=True)


def _events(log: Interactions, lists: pl.DataFrame, reads: Collection[str], reward: str | None) -> pl.DataFrame:
    """The events that lists are, in the order of their times."""
    if reward is not None:
        log.need_column(reward)
        if log.column(reward).dtype == object:
            raise DataError("rewards are numbers", got=f"--reward {reward}, a column of texts", expected="a column of numbers")
    filled = {*reads, *({"click"} & set(log.frame.columns)), *([] if reward is None else [reward])}
    unfilled = sorted(filled - _FILLED - {reward})
    if unfilled:
        what, got = "rewards do not fill a column that is read", ", ".join(unfilled)
        todo = "name the column that the rewards are with --reward, or import the log by hand"
        raise DataError(what, got=got, expected="click or reward", todo=todo)
    rated = pl.col("reward")
    if reward == "rating":
        lists = lists.drop_nulls("reward")
    elif not filled & {"click", "reward", reward}:
        lists = lists.filter(rated > 0)
    events = lists.sort("timestamp", "impression_id", "position").with_columns(rated.fill_null(0.0))
    if "click" in filled:
        events = events.with_columns((rated > 0).cast(FEEDBACK["click"]).alias("click"))
    return events if reward in (None, "click", "reward") else events.with_columns(rated.alias(reward))


def _own_events(log: Interactions, events: pl.DataFrame) -> pl.DataFrame:
    """The events of a log that came from no list, each an impression of its own where they have none.

    Feedback that no list has and nobody reads is left out: a cell of it cannot be empty.
    """
    own = log.frame
    if set(LISTS) <= set(own.columns):
        own = own.filter(pl.col("digest").is_null())
    own = own.drop(name for name in FEEDBACK if name in own.columns and name not in events.columns)
    if "impression_id" not in own.columns:
        own = own.with_columns(pl.format("event {}", "row").alias("impression_id"))
    return own
