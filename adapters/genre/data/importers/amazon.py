"""Amazon's reviews and products (McAuley's lab), as handed out in 2014, 2018 and 2023.

Owns: the fields of reviews and of products under their names, JSON lines plain or gzip. Ignores a review's own text, and figures
computed over all reviews (average rating, rank, bought together), which were not known at the time of an event.

    2014, 2018
           {"reviewerID": "A1", "asin": "B0", "overall": 5.0, "unixReviewTime": 1388534400, "verified": true, …}
    2023   {"user_id": "AE", "parent_asin": "B0", "asin": "B1", "rating": 5.0, "timestamp": 1588687728923, …}

    ->     user_id, item_id, rating, timestamp (seconds, fractions kept), verified (0 or 1)

    2014   {'asin': 'B0', 'title': 'Socks', 'brand': 'Acme', 'categories': [['Clothing', 'Men'], …], 'price': 9.99, …}
    2018   {"asin": "B0", "title": "Socks", "brand": "Acme", "category": ["Clothing", "Men"], "price": "$9.99", …}
    2023   {"parent_asin": "B0", "title": "Socks", "store": "Acme", "categories": […], "main_category": "…", "price": 9.99, …}

    ->     item_id, title, brand, categories, main_category, description, price
"""

import contextlib
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.importers.objects import read_objects
from genre.data.reading import time_reading
from genre.data.schema import PLACE, Report
from genre.errors import DataError

_REVIEWS = {
    "2018": {"reviewerID": "user_id", "asin": "item_id", "overall": "rating", "unixReviewTime": "timestamp"},
    "2023": {"user_id": "user_id", "parent_asin": "item_id", "asin": "variant", "rating": "rating", "timestamp": "timestamp"},
}
_VERIFIED = {"2018": "verified", "2023": "verified_purchase"}
_PRODUCTS = {
    "2014": {"asin": "item_id", "title": "title", "brand": "brand", "categories": "categories"},
    "2018": {"asin": "item_id", "title": "title", "brand": "brand", "category": "categories", "main_cat": "main_category"},
    "2023": {"parent_asin": "item_id", "title": "title", "store": "brand", "categories": "categories"}
    | {"main_category": "main_category"},
}
_ENTITIES = {"&amp;": "&", "&quot;": '"', "&#39;": "'", "&lt;": "<", "&gt;": ">", "&nbsp;": " "}


def read_reviews(path: str | Path, report: Report) -> pl.DataFrame:
    """Read reviews as a log; lines that are not a JSON object are counted, and the others keep their row numbers in `PLACE`.

    Of 2023, an item is its `parent_asin` (all variants of a product), or its `asin` where there is none.

    Raises:
        DataError: If the file is missing, empty, or has the fields of neither year.
    """
    path = Path(path)
    year = _year(path, {"2018": {"reviewerID", "unixReviewTime"}, "2023": {"user_id", "timestamp"}}, "reviews")
    table = _read_fields(path, _REVIEWS[year] | {_VERIFIED[year]: "verified"}, report)
    report.mapping = {ours: theirs for theirs, ours in reversed(_REVIEWS[year].items())}
    if year == "2023":
        report.times = time_reading(table["timestamp"], "ms")
        item = pl.coalesce("item_id", "variant")
        ms = pl.col("timestamp").cast(pl.Int64, strict=False)
        seconds = (ms // 1000).cast(pl.String) + "." + (ms % 1000).cast(pl.String).str.zfill(3)
        table = table.with_columns(item.alias("item_id"), pl.coalesce(seconds, "timestamp").alias("timestamp")).drop("variant")
    verified = pl.col("verified").str.to_lowercase().replace_strict({"true": 1, "false": 0}, default=None, return_dtype=pl.Int8)
    return table.with_columns(verified)


def read_metadata(path: str | Path, report: Report) -> pl.DataFrame:
    """Read products as items; lines that are not a JSON object, and products without an id, are counted.

    Raises:
        DataError: If the file is missing, empty, or has the fields of no year.
    """
    path = Path(path)
    year = _year(path, {"2023": {"parent_asin"}, "2014": {"asin", "categories"}, "2018": {"asin"}}, "products")
    table = _read_fields(path, _PRODUCTS[year] | {"description": "description", "price": "price"}, report).drop(
        PLACE, strict=False
    )
    texts = [
        _text(table[name], ", " if name == "categories" else " ") for name in table.columns if name not in ("item_id", "price")
    ]
    price = pl.col("price").str.strip_chars().str.strip_chars_start("$").str.replace_all(",", "").cast(pl.Float64, strict=False)
    return table.with_columns(*texts, price)


def _year(path: Path, marks: Mapping[str, set[str]], what: str) -> str:
    """Return the year that the fields of the first objects belong to."""
    if not path.is_file():
        raise DataError(f"{path} cannot be read", got="a folder" if path.is_dir() else "no such file", expected="a file")
    fields: set[str] = set()
    with contextlib.suppress(DataError):  # no line is an object
        for _, row in islice(read_objects(path, "utf-8", Report()), 1000):
            fields |= row.keys()
            for year, wanted in marks.items():
                if wanted <= fields:
                    return year
    expected = " or ".join(f"{', '.join(sorted(wanted))} ({year})" for year, wanted in sorted(marks.items()))
    got = ", ".join(sorted(fields)[:12]) or "no JSON object"
    raise DataError(f"{path.name} holds no Amazon {what}", got=got, expected=expected)


def _read_fields(path: Path, names: Mapping[str, str], report: Report) -> pl.DataFrame:
    """Read some fields as texts, nested ones as JSON."""
    try:
        table = pl.scan_ndjson(path, schema=dict.fromkeys(names, pl.String)).collect()
    except (pl.exceptions.PolarsError, OSError):  # a line is not an object
        numbered = [(place, [_cell(row.get(name)) for name in names]) for place, row in read_objects(path, "utf-8", report)]
        cells = pl.DataFrame([row for _, row in numbered], schema=dict.fromkeys(names, pl.String), orient="row")
        table = cells.with_columns(pl.Series(PLACE, [place for place, _ in numbered]))
    return table.rename(dict(names))


def _cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _text(series: pl.Series, between: str) -> pl.Series:
    """Lists, as their JSON, become one text; entities of HTML become letters; empty texts become null."""
    listed = series.str.starts_with("[").fill_null(False)
    text = series
    if listed.any():
        parts = series.filter(listed)
        try:
            joined = parts.str.json_decode(pl.List(pl.String)).list.join(between, ignore_nulls=True)
        except pl.exceptions.PolarsError:  # a list in a list, or a title that only begins like one
            joined = pl.Series([_joined(part, between) for part in parts], dtype=pl.String)
        text = text.scatter(listed.arg_true(), joined)
    text = text.str.replace_many(list(_ENTITIES), list(_ENTITIES.values())).str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.DataFrame({series.name: text}).select(pl.when(pl.col(series.name) != "").then(pl.col(series.name))).to_series()


def _joined(text: str, between: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    flat: list[Any] = []
    while isinstance(value, list) and value:
        head, *value = value
        if isinstance(head, list):
            value = [*head, *value]
        elif head is not None:
            flat.append(head)
    return between.join(dict.fromkeys(map(str, flat)))
