"""Files with a line of items per user, and no times.

Owns: the user, the items, their order, which is the file's. Ignores items' columns.

    1 17 4 17          ->    user_id  item_id        (also 2: 4 9, or a tab or commas between)
    2 4 9                          1       17
                                   1        4
                                   1       17
                                   2        4
                                   2        9
"""

from pathlib import Path

import polars as pl

from genre.data.importers.delimited import read_lines
from genre.data.schema import Report
from genre.errors import DataError

_BETWEEN = r"[\s,;|]+"


def read_lists(path: Path, report: Report, encoding: str = "utf-8") -> pl.DataFrame:
    """Return a row per item of each line: user_id, item_id. A user of several lines goes on where the earlier one ended.

    Args:
        path: A text file, plain or with the ending .gz.
        report: Counts users without items.
        encoding: Of the text.

    Raises:
        DataError: If the file cannot be read, or no line has a user and an item.
    """
    if not path.is_file():
        raise DataError(f"{path} cannot be read", got="a folder" if path.is_dir() else "no such file", expected="a file")
    x = pl.col("text")
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
    return table.filter(~empty).with_columns(pl.col("item_id").str.split(" ")).explode("item_id")
