"""Recommendations as data frames, polars or pandas as they were asked with.

Owns: users in, rows out. Ignores: how requests are scored.

    engine.recommend_frame("next_item@production", ["196", "186"], k=2)     # user_id, rank, item_id, title, score, probability
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import polars as pl

from genre.data.build import to_polars
from genre.data.fields import ids
from genre.data.interactions import Interactions
from genre.engine.requests import Request, Response
from genre.errors import DataError, InputError, RequestError
from genre.progress import Reporter

CALL = 512
"""Requests of one call."""

OPTIONS = ("task", "candidates", "exclude_seen", "allow", "deny", "where", "diversity", "beam")
"""Fields of `Request` that hold for every user."""


def recommend_frame(
    score: Callable[[Sequence[Request]], list[Response]],
    data: Interactions | None,
    adapter: str,
    users: Any,
    k: int,
    options: Mapping[str, Any],
    *,
    reporter: Reporter | None = None,
) -> Any:
    """The best k items for users, a row each, with progress for a reporter; see `Engine.recommend_frame`."""
    if data is None:
        raise InputError(
            "recommend_frame needs the histories of users", got="an engine without data", expected="Engine(…, data=log)"
        )
    if foreign := [name for name in options if name not in OPTIONS]:
        raise InputError("recommend_frame has no such option", got=foreign[0], expected=", ".join(OPTIONS))
    wanted, as_pandas = _user_ids(data, users)
    requests = (Request(adapter, user_id=user, id=user, k=k, **options) for user in wanted)
    titles = dict(zip(data.catalogue.item_ids, data.catalogue.titles(), strict=True))
    parts = []
    with (reporter or Reporter.here()).bar(f"recommending by {adapter}", len(wanted)) as bar:
        while block := list(islice(requests, CALL)):
            parts += [_part(response, titles) for response in score(block)]
            bar.advance(len(block))
    found = pl.concat(parts, how="diagonal") if parts else pl.DataFrame(schema=_SCHEMA)
    return found.to_pandas() if as_pandas else found


_SCHEMA = {"user_id": pl.String, "rank": pl.Int64, "item_id": pl.String, "title": pl.String, "score": pl.Float64}


def _part(response: Response, titles: Mapping[str, str]) -> pl.DataFrame:
    if response.error is not None:
        raise RequestError(f"user {response.id} cannot be answered", got=response.error)
    frame = response.frame
    if "item_id" not in frame.columns:
        raise RequestError(f"{response.adapter} recommends no items", got="an adapter of labelled texts", expected="one of a log")
    named = [titles.get(item, item) for item in frame["item_id"]]
    frame = frame.with_columns(pl.lit(response.id, pl.String).alias("user_id"), pl.Series("title", named, dtype=pl.String))
    return frame.select(*_SCHEMA, *(name for name in frame.columns if name not in _SCHEMA))


def _user_ids(data: Interactions, users: Any) -> tuple[list[str], bool]:
    """Ids of users, each once, and whether they came as pandas.

    Raises:
        DataError: There is no column user_id, or it has an empty cell.
    """
    if users is None:
        return list(data.user_ids), False
    as_pandas = type(users).__module__.partition(".")[0] == "pandas"
    series = users
    if as_pandas or isinstance(users, pl.DataFrame | pl.LazyFrame):
        table = to_polars(users.to_frame("user_id") if hasattr(users, "to_frame") else users, "table of users")
        assert table is not None
        if "user_id" not in table.columns:
            got = ", ".join(table.columns) or "no columns"
            raise DataError("the table of users has no user_id", got=got, expected="a column user_id", todo="rename yours")
        series = table["user_id"]
    elif isinstance(users, str) or not hasattr(users, "__iter__"):
        raise InputError(
            "users is not a list", got=repr(users)[:80], expected="user ids, or a frame with user_id", todo=f"[{users!r}]"
        )
    found = ids(series) if isinstance(series, pl.Series) else pl.Series("user_id", list(map(str, series)), dtype=pl.String)
    if empty := found.null_count():
        raise DataError("the table of users has rows without a user_id", got=f"{empty:,} of {len(found):,}", expected="none")
    return found.unique(maintain_order=True).to_list(), as_pandas
