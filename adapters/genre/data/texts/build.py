"""A table of any origin to checked texts.

Owns: the choice of text and label columns, the rules for bad rows, counts of skipped rows. Ignores files.

    build_texts(frame, texts=["review"], labels=["stars"])
    # DataError: 60 of 1,000 rows are not usable: got row 17 (the first is 0): stars 'good'; expected a number …
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from genre.data.build import rename, to_polars, with_plain_ids
from genre.data.fields import EXPECTED, ids
from genre.data.numbers import numbers, thousands_note, to_numbers
from genre.data.schema import PLACE, Report
from genre.errors import DataError

TEXT_KEYS = ("text_id", "group_id")
"""Columns of every frame, in this order; text columns, labels and others follow."""


class BuiltTexts(NamedTuple):
    """The parts of a `Texts`: see there."""

    frame: pl.DataFrame
    text_columns: tuple[str, ...]
    label_columns: tuple[str, ...]


def build_texts(
    frame: Any,
    texts: Sequence[str] | None,
    labels: Sequence[str] | None,
    report: Report,
    *,
    mapping: Mapping[str, str],
    max_bad: float,
    guess_numbers: bool,
) -> BuiltTexts:
    """Check a table of labelled texts. See `Texts.from_frame` for the arguments.

    Raises:
        DataError: A column is missing, too many rows are bad, or no text is left.
    """
    renamed = rename({"log": to_polars(frame, "input")}, mapping, report)["log"]
    assert renamed is not None
    table = _drop_odd(renamed, report)
    if PLACE not in table.columns:
        table = table.with_columns(pl.int_range(pl.len()).alias(PLACE))
    if table.is_empty():
        report.check(0, 0, None, max_bad)
        raise DataError("there are no texts", got="0 rows", expected="at least one")
    texts, labels = _choose(table, texts, labels)
    if guess_numbers:
        table = with_plain_ids(table, report, TEXT_KEYS)
    if guess_numbers:  # a text or a label has a rule of its own
        others = table.drop(PLACE, *texts, *labels)
        table = table.with_columns(to_numbers(others, tuple(EXPECTED), report).get_columns())
        for name in labels:
            report.note(thousands_note(table[name]))
    checked, rules = _check(table, texts, labels, max_bad if guess_numbers else 0.0)
    kept = checked.filter(_good_rows(table, rules, max_bad, report))
    kept = _keep_once(kept, [name for name in TEXT_KEYS if name not in table.columns], report)
    rest = [name for name in table.columns if name not in (*TEXT_KEYS, PLACE, *texts, *labels)]
    return BuiltTexts(kept.select(*TEXT_KEYS, *texts, *labels, *rest).rechunk(), tuple(texts), tuple(labels))


def _drop_odd(table: pl.DataFrame, report: Report) -> pl.DataFrame:
    odd = [c for c in table.columns if table[c].dtype.is_nested() or table[c].dtype == pl.Object or table[c].dtype.is_temporal()]
    report.add("columns of the texts that are not a number or text", len(odd), ", ".join(odd))
    return table.drop(odd)


def _choose(table: pl.DataFrame, texts: Sequence[str] | None, labels: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The text and label columns that were named; else every column of texts, and every column of numbers."""
    free = [name for name in table.columns if name not in (*TEXT_KEYS, PLACE)]
    chosen = list(dict.fromkeys(texts if texts is not None else [c for c in free if table[c].dtype == pl.String]))
    marked = [c for c in free if c not in chosen and (table[c].dtype.is_numeric() or table[c].dtype == pl.Boolean)]
    marked = list(dict.fromkeys(labels if labels is not None else marked))
    for what, names in (("text", chosen), ("label", marked)):
        for name in names:
            if name not in free:
                got, todo = ", ".join(free) or "no columns", f"name one of those, or rename yours with --map {name}=THEIRS"
                raise DataError(f"the texts have no {what} column '{name}'", got=got, expected=f"a column '{name}'", todo=todo)
    if not chosen:
        raise DataError("no column holds texts", got=", ".join(free), expected="a text column", todo="name it with --text")
    both = [name for name in chosen if name in marked]
    if both:
        raise DataError(f"column '{both[0]}' is named as a text and as a label", expected="one of them")
    for name in marked:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            plain = re.sub(r"\W+", "_", name).strip("_").lower() or "label"
            todo = f"rename it, such as with --map {plain}='{name}'"
            raise DataError("a label's name cannot stand in a recipe", got=repr(name), expected="letters, digits, _", todo=todo)
    return chosen, marked


def _check(
    table: pl.DataFrame, texts: Sequence[str], labels: Sequence[str], max_words: float
) -> tuple[pl.DataFrame, dict[str, tuple[np.ndarray, str]]]:
    """Our columns, and for each rule the rows that break it with what was expected."""
    place = table[PLACE]
    text_id = ids(table["text_id"]) if "text_id" in table.columns else place.cast(pl.String).alias("text_id")
    group_id = ids(table["group_id"]) if "group_id" in table.columns else text_id.alias("group_id")
    words = [_words(table[name]) for name in texts]
    marks = {name: _label(table[name], max_words) for name in labels}
    checked = table.with_columns(text_id, group_id, *words, *(mark for mark, _ in marks.values()))
    rules = {name: (checked[name].is_null().to_numpy(), "an id, not empty") for name in TEXT_KEYS}
    rules["text"] = np.logical_and.reduce([word.is_null().to_numpy() for word in words]), f"words in {' or '.join(texts)}"
    rules |= {name: (bad, "a number, or nothing") for name, (_, bad) in marks.items()}
    return checked, rules


def _words(series: pl.Series) -> pl.Series:
    """Texts without space around them; null where nothing is left."""
    text = series.cast(pl.String).str.strip_chars()
    return pl.DataFrame({"x": text}).select(pl.when(pl.col("x") != "").then(pl.col("x"))).to_series().alias(series.name)


def _label(series: pl.Series, max_words: float) -> tuple[pl.Series, np.ndarray]:
    """Return a label's values, and the mask of cells of a column of numbers that are neither a number nor empty.

    Args:
        series: The column.
        max_words: A column of texts is one of numbers if at most this share of its cells is not a number.
    """
    if series.dtype == pl.Boolean:
        return series.cast(pl.Int8), np.zeros(len(series), dtype=bool)
    if series.dtype.is_numeric():
        values, filled = series.cast(pl.Float64), series.is_not_null().to_numpy()
    else:
        text = _words(series)
        values, filled = numbers(text), text.is_not_null().to_numpy()
        wrong = int((values.is_null().to_numpy() & filled).sum())
        if wrong == filled.sum() or wrong > max_words * filled.sum():
            return text, np.zeros(len(series), dtype=bool)
    finite = pl.DataFrame({"x": values}).select(pl.when(pl.col("x").is_finite()).then(pl.col("x"))).to_series().alias(series.name)
    whole = series.cast(pl.Int64) if series.dtype.is_integer() else _whole(finite)
    return whole, finite.is_null().to_numpy() & filled


def _whole(values: pl.Series) -> pl.Series:
    """Whole numbers as int64, others as they are."""
    filled = values.drop_nulls()
    return values.cast(pl.Int64) if len(filled) and bool(((filled == filled.floor()) & (filled.abs() < 2**53)).all()) else values


def _good_rows(table: pl.DataFrame, rules: Mapping[str, tuple[np.ndarray, str]], max_bad: float, report: Report) -> pl.Series:
    bad = np.zeros(table.height, dtype=bool)
    worst: tuple[str, str] | None = None
    for name, (broken, expected) in rules.items():
        here = np.flatnonzero(broken & ~bad)
        if here.size:
            rows = table[PLACE].to_numpy()[here].tolist()
            value = table[name][int(here[0])] if name in table.columns else None
            example = f"row {rows[0]} (the first is 0): {name} {value if value is None else repr(value)[:60]}"
            report.add(f"bad {name}" if name != "text" else "no text", here.size, example, rows)
            worst = worst or (example, expected)
            bad[here] = True
    report.check(int(bad.sum()), table.height, worst, max_bad)
    return pl.Series(~bad)


def _keep_once(checked: pl.DataFrame, made: Sequence[str], report: Report) -> pl.DataFrame:
    """Drop texts whose id came before; where ids were made here, rows that equal an earlier one in all their own columns."""
    own = [name for name in checked.columns if name not in (PLACE, *made)]
    kept = checked.unique(subset=own if "text_id" in made else ["text_id"], keep="first", maintain_order=True)
    if kept.height < checked.height:
        again = checked.filter(~checked[PLACE].is_in(kept[PLACE].implode()))
        report.add("duplicate texts" if "text_id" in made else "texts given twice", again.height, f"row {again[PLACE][0]}")
    return kept
