"""Files with a line of items per user, and no times.

Owns: the user, the items, their order, which is the file's. Ignores items' columns.

    1 17 4 17          ->    user_id  item_id        (also 2: 4 9, or a tab or commas between)
    2 4 9                          1       17
                                   1        4
                                   1       17
                                   2        4
                                   2        9
"""

import json
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.build import plain_name
from genre.data.importers.delimited import read_lines, read_text
from genre.data.schema import ALIASES, Report
from genre.errors import DataError, first_line

_BETWEEN = r"[\s,;|]+"


def read_lists(path: Path, report: Report, encoding: str = "utf-8") -> pl.DataFrame:
    """Return a row per item of each line: user_id, item_id. A user of several lines goes on where the earlier one ended.

    Args:
        path: A text file, plain or with the ending .gz; or one JSON object, `{"1": [17, 4], …}`.
        report: Counts users without items.
        encoding: Of the text.

    Raises:
        DataError: If the file cannot be read, or no line has a user and an item.
    """
    if not path.is_file():
        raise DataError(f"{path} cannot be read", got="a folder" if path.is_dir() else "no such file", expected="a file")
    x = pl.col("text")
    if (whole := _by_user(path, encoding)) is not None:
        return whole
    lines = read_lines(path, encoding).with_columns(x.str.strip_chars(" \t\ufeff\r")).filter(x != "")
    table = lines.select(
        user_id=x.str.extract(r"^([^\s,;|:]+)"),
        item_id=x.str.replace(r"^[^\s,;|:]+(?:\s*:)?[\s,;|]*", "").str.replace_all(_BETWEEN, " ").str.strip_chars(),
    )
    empty = table["user_id"].is_null() | (table["item_id"] == "").fill_null(True)
    if empty.all():
        got = repr(lines["text"][0][:60]) if lines.height else "no line"
        raise DataError(f"{path.name} has no list of items", got=got, expected="lines as 'user item item …'")
    if empty.any():
        report.add("lines without a user or items", int(empty.sum()), repr(lines["text"].filter(empty)[0][:60]))
    if plain_name(table["user_id"][0] or "") in ALIASES["user_id"]:
        report.note(f"the first line is a header and left out: {lines['text'][0][:60]!r}")
        table, empty = table[1:], empty[1:]
    if table["item_id"].str.contains(r"^(?:\S+:\d+(?:\.\d+)? ?)+$").all():
        report.note(f"items have a number after a colon, which is taken for a part of their ids: {table['item_id'][0][:60]!r}")
    return table.filter(~empty).with_columns(pl.col("item_id").str.split(" ")).explode("item_id")


def _by_user(path: Path, encoding: str) -> pl.DataFrame | None:
    """Read a JSON object of users with their items; None if the file is none.

    Raises:
        DataError: A user has something else than a list of ids.
    """
    if ".json" not in path.suffixes:
        return None
    try:
        found = json.loads(read_text(path, encoding))
    except ValueError as error:
        got, expected = first_line(error), "one JSON object of users, each with a list of items"
        raise DataError(f"{path.name} cannot be read", got=got, expected=expected) from error
    lists: dict[str, Any] = found if isinstance(found, dict) else {"all of it": None}
    odd = next((user for user, items in lists.items() if not _is_of_ids(items)), None)
    if odd is not None or not lists:
        got = "no user" if odd is None else f"{odd!r}: {json.dumps(lists[odd])[:60]}"
        raise DataError(f"{path.name} has no lists of items", got=got, expected='users with their items: {"1": [17, 4]}')
    pairs = [(user, str(item)) for user, items in lists.items() for item in items]
    return pl.DataFrame(pairs, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")


def _is_of_ids(items: object) -> bool:
    return isinstance(items, list) and all(isinstance(item, str | int) and not isinstance(item, bool) for item in items)
