"""The item columns that are worth reading as text, found by what they hold.

Owns: what is text, and the words for why a column is or is not. Ignores: names, but for `title`; recipes.

    [str(each) for each in item_texts(log.catalogue.frame)]
    # ["title: read, 2.6 words in each, 9,066 different", "genres: read, 2.2 tags in each, 20 different",
    #  "poster: not read, web addresses"]
"""

from dataclasses import dataclass

import polars as pl

LOOKED_AT = 20_000
"""Items whose values are looked at, evenly over the catalogue."""
LEAST_FILLED = 0.05
MOST = 0.9
"""Share of a column's values from which it is of a kind."""

_ADDRESS = r"(?i)^(https?:/|www\.|[\w./-]+\.(jpe?g|png|gif|webp)$)"
_NUMBER = r"^[+-]?[\d\s.,]+%?$"
_DATE = r"(?i)^\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?\b|^\d{1,2}[-/. ](\d{1,2}|[a-z]{3,9})[-/., ]+\d{2,4}$"
_CODE = r"^\S*\d\S*$"


@dataclass(frozen=True)
class TextColumn:
    """An item column, judged.

    Attributes:
        name: Its name.
        reads: It is worth reading.
        why: What it holds, in words.
        words: Words of a value, on average; the order of columns that are read.
    """

    name: str
    reads: bool
    why: str
    words: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}: {'read' if self.reads else 'not read'}, {self.why}"


def item_texts(frame: pl.DataFrame) -> list[TextColumn]:
    """Judge every column of a catalogue but the id: those to read first, the title before all, then from short to long.

    Not read are numbers and their lists (years are, unless the title has them), dates, web addresses, codes, what is hardly
    filled, is the same everywhere, has hardly any letters or says the title again.
    """
    step = max(1, frame.height // LOOKED_AT)
    some = frame.gather_every(step)
    title = some["title"].cast(pl.String) if "title" in some.columns and some["title"].dtype == pl.String else None
    found = [_judge(some[name], title) for name in frame.columns if name != "item_id"]
    return sorted(found, key=lambda each: (not each.reads, each.name != "title", each.words))


def _judge(series: pl.Series, title: pl.Series | None) -> TextColumn:
    name, kind = series.name, series.dtype
    if isinstance(kind, pl.List | pl.Array):
        return (
            _tags(series) if kind.inner in (pl.String, pl.Categorical) else TextColumn(name, False, "vectors or lists of numbers")
        )
    if kind == pl.Boolean:
        return TextColumn(name, False, "true or false")
    if kind.is_temporal():
        return TextColumn(name, False, "dates")
    if kind.is_numeric():
        return _years(series, title) if kind.is_integer() else TextColumn(name, False, "numbers")
    return _words(series.cast(pl.String), title)


def _words(series: pl.Series, title: pl.Series | None) -> TextColumn:
    """Judge a column of strings by the first reason against it."""
    name, values = series.name, series.str.strip_chars()
    values = values.filter(values.str.len_chars() > 0)
    if len(values) < LEAST_FILLED * len(series) or not len(values):
        return TextColumn(name, False, f"filled in {len(values) / max(len(series), 1):.1%} of the items")
    words, different = float(values.str.count_matches(r"\S+").mean() or 0), values.n_unique()  # type: ignore[arg-type]
    read = TextColumn(name, True, f"{words:.1f} words in each, {different:,} different", words)
    if name == "title":
        return read
    letters = int(values.str.count_matches(r"\p{L}").sum()) / int(values.str.len_chars().sum())
    again = title is not None and _share(series.filter(title.is_not_null()) == title.drop_nulls()) >= MOST
    reasons = {
        "one value": different == 1 and len(values) > 1,
        "the title again": again,
        "web addresses": _matches(values, _ADDRESS) >= MOST,
        "numbers": _matches(values, _NUMBER) >= MOST,
        "dates": _matches(values, _DATE) >= MOST,
        "codes": _matches(values, _CODE) >= MOST and different > len(values) / 2,
        "hardly any letters": letters < 0.5,
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    return read if why is None else TextColumn(name, False, why)


def _tags(series: pl.Series) -> TextColumn:
    lists = (series.arr.to_list() if isinstance(series.dtype, pl.Array) else series).drop_nulls()
    lists = lists.filter(lists.list.len() > 0)
    if len(lists) < LEAST_FILLED * len(series) or not len(lists):
        return TextColumn(series.name, False, f"filled in {len(lists) / max(len(series), 1):.1%} of the items")
    tags = float(lists.list.len().mean() or 0)  # type: ignore[arg-type]
    different = lists.explode().n_unique()
    return TextColumn(series.name, different > 1, f"{tags:.1f} tags in each, {different:,} different", tags)


def _years(series: pl.Series, title: pl.Series | None) -> TextColumn:
    values = series.drop_nulls()
    if not len(values) or _share(values.is_between(1800, 2100)) < MOST or values.n_unique() < 2:
        return TextColumn(series.name, False, "numbers")
    if title is not None:
        said = pl.DataFrame({"title": title, "year": series.cast(pl.String)}).drop_nulls()
        if said.height and _share(said.select(pl.col("title").str.contains(pl.col("year"), literal=True)).to_series()) >= MOST:
            return TextColumn(series.name, False, "years, which the title has")
    return TextColumn(series.name, True, f"years, {values.min()!r} to {values.max()!r}", 1.0)


def _matches(values: pl.Series, pattern: str) -> float:
    return _share(values.str.contains(pattern))


def _share(holds: pl.Series) -> float:
    """The share of true values; 0 of none."""
    return float(holds.mean() or 0)  # type: ignore[arg-type]
