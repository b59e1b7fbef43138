"""JSON in the forms that logs come in, and lines that Python printed.

Owns: lines of objects, one array of them, one object; lines that are not an object. Ignores the meaning of fields.

    {"user_id": "a", "item_id": 7}                   lines: a row each, read by polars straight from the disk
    {u'user_id': u'a', u'early_access': True}        a dict as Python printed it, as older public logs have them
    [{"user_id": "a"}, {"user_id": "b"}]             one array
    {"user_id": {"0": "a", "1": "b"}}                columns, as pandas writes them by default
"""

import ast
import gzip
import io
import json
import re
import warnings
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.importers.delimited import is_utf8, read_head, read_text
from genre.data.schema import PLACE, SHOWN, Report
from genre.errors import DataError, first_line

_LITERAL = ("{'", "{u'", '{u"')
_BATCH = 20_000  # objects that are dicts at one time


def read_json(path: Path, encoding: str, report: Report | None, dropped: Collection[str] = ()) -> pl.DataFrame:
    """Read JSON lines, an array of objects, or one object: a row, or columns.

    Args:
        path: The file; with the ending .gz it is unpacked.
        encoding: Of the text.
        report: Counts and names lines that are not an object; without it the first one is an error. If any is left out, the
            table has a column `PLACE`.
        dropped: Fields that are left out of lines while they are read, to save memory.

    Raises:
        DataError: If the file cannot be read, is empty, or has no object.
    """
    head = read_head(path, encoding).lstrip()
    if re.match(r"\[\s*[{\]]", head):
        return _array(path, read_text(path, encoding), report)
    if head.startswith(_LITERAL):
        return _one_by_one(path, encoding, report, dropped)
    table = _scan(path, encoding, dropped)
    if table is not None and table.height > 1:
        return table
    whole = _whole_object(path, encoding)
    if whole is not None:
        return _frame(path, _columns_of(whole) or [whole])
    return _one_by_one(path, encoding, report, dropped)


def read_objects(path: Path, encoding: str, report: Report | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read lines one by one: the number of each among those that are not blank, from 0, and its object.

    Other lines are counted once all are read.

    Raises:
        DataError: No line is an object; or one is none, and there is no report to count it.
    """
    bad: list[tuple[int, DataError]] = []
    place = -1
    for number, line in enumerate(_lines(path, encoding), 1):
        if not line.strip():
            continue
        place += 1
        try:
            row = _object(path, number, line.strip())
        except DataError as error:
            if report is None:
                raise
            bad.append((number, error))
        else:
            yield place, row
    if place < len(bad):
        raise bad[0][1] if bad else DataError(f"{path.name} is empty", got="no line", expected="one JSON object per line")
    if bad and report is not None:
        examples = [f"{error.what}: {error.got}" for _, error in bad[:SHOWN]]
        report.lose("lines that are not a JSON object", [number for number, _ in bad], examples, f"{bad[0][1].expected}")


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """Yield lines without holding the file; a byte order mark is skipped."""
    encoding = "utf-8-sig" if is_utf8(encoding) else encoding
    try:
        with gzip.open(path, "rt", encoding=encoding) if path.suffix.lower() == ".gz" else path.open(encoding=encoding) as text:
            yield from text
    except (UnicodeDecodeError, LookupError, OSError, EOFError):
        read_text(path, encoding)  # its error names the byte and what helps
        raise


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = _literal(line) if line.startswith(_LITERAL) else json.loads(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        got, expected = first_line(error), "one object per line"
        raise DataError(f"{path.name}, line {number} is not JSON", got=got, expected=expected) from error
    if not isinstance(row, dict):
        raise DataError(f"{path.name}, line {number} is not an object", got=line[:60], expected="one JSON object per line")
    return row


def _literal(line: str) -> Any:
    """Read a dict that Python printed.

    Raises:
        ValueError, SyntaxError, MemoryError, RecursionError: It is none.
    """
    with warnings.catch_warnings():  # an escape that is none, such as \/, stays as it is
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.literal_eval(line)


def _scan(path: Path, encoding: str, dropped: Collection[str]) -> pl.DataFrame | None:
    """Read lines as polars does; None if a line is not an object."""
    source = path if is_utf8(encoding) else io.BytesIO(read_text(path, encoding).encode())
    try:
        return pl.scan_ndjson(source, infer_schema_length=None).drop(*dropped, strict=False).collect()
    except (pl.exceptions.PolarsError, OSError):
        return None


def _one_by_one(path: Path, encoding: str, report: Report | None, dropped: Collection[str]) -> pl.DataFrame:
    """Read lines by Python, some at a time."""
    numbered = read_objects(path, encoding, report)
    tables = []
    while batch := list(islice(numbered, _BATCH)):
        rows = [{name: cell for name, cell in row.items() if name not in dropped} for _, row in batch]
        tables.append(_frame(path, rows).with_columns(pl.Series(PLACE, [place for place, _ in batch], dtype=pl.Int64)))
    try:
        return tables[0] if len(tables) == 1 else pl.concat(tables, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path.name} is not a table", got=first_line(error), expected="the same fields in every line") from error


def _array(path: Path, text: str, report: Report | None) -> pl.DataFrame:
    try:
        return _not_empty(path, pl.read_json(io.BytesIO(text.encode()), infer_schema_length=None))
    except (pl.exceptions.PolarsError, OSError):
        pass
    try:
        elements = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path.name} is not a whole array", got=error, expected="one array of JSON objects") from error
    places = [place for place, element in enumerate(elements) if isinstance(element, dict)]
    other = sorted({*range(len(elements))} - {*places})
    if other:
        first, *more = [json.dumps(elements[place])[:60] for place in other[:SHOWN]]
        first = f"{path.name}, element {other[0]} (the first is 0): {first}"
        examples = [first, *(f"element {place}: {each}" for place, each in zip(other[1:], more, strict=False))]
        expected = "JSON objects, each a row"
        if report is None or not places:
            raise DataError("an element of the array is not an object", got=first, expected=expected)
        report.lose("elements that are not a JSON object", other, examples, expected)
    rows = _frame(path, [elements[place] for place in places])
    return rows.with_columns(pl.Series(PLACE, places, dtype=pl.Int64)) if other else rows


def _not_empty(path: Path, table: pl.DataFrame) -> pl.DataFrame:
    if not table.width:
        raise DataError(f"{path.name} is empty", got="an array without objects", expected="one JSON object per row")
    return table


def _whole_object(path: Path, encoding: str) -> dict[str, Any] | None:
    """Return a file's content if it is one JSON object."""
    first = [line for line in islice(_lines(path, encoding), 2) if line.strip()]
    if len(first) == 2 and _is_object(first[0]):  # lines, most often one of many that is broken
        return None
    try:
        found = json.loads(read_text(path, encoding))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _columns_of(whole: dict[str, Any]) -> dict[str, list[Any]] | None:
    """Return columns, if an object holds them: `{"user_id": {"0": 7, "1": 8}, …}`, or lists of one length without objects.

    Pandas' other form is `{"columns": ["user_id", …], "index": [0, 1], "data": [[7, …], [8, …]]}`.
    """
    if {"columns", "data"} <= whole.keys() <= {"columns", "index", "data"}:
        names, rows = whole["columns"], whole["data"]
        fits = isinstance(rows, list) and all(isinstance(row, list) and len(row) == len(names) for row in rows)
        return {str(name): [row[place] for row in rows] for place, name in enumerate(names)} if fits else None
    columns = [[*each.values()] if isinstance(each, dict) else each for each in whole.values()]
    indices = {tuple(each) for each in whole.values() if isinstance(each, dict)}
    if not columns or len(indices) > 1 or not all(isinstance(each, list) for each in columns):
        return None
    objects = any(isinstance(cell, dict) for each in columns for cell in each)
    return None if objects or len({len(each) for each in columns}) > 1 else dict(zip(whole, columns, strict=True))


def _frame(path: Path, rows: list[dict[str, Any]] | dict[str, list[Any]]) -> pl.DataFrame:
    try:
        return pl.DataFrame(rows, strict=False, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise DataError(f"{path.name} is not a table", got=first_line(error), expected="the same fields in every line") from error
