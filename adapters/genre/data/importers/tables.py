"""Tables by the ending of their file.

Owns: CSV, TSV, Parquet and JSON, also with .gz, and RecBole's atomic files, as tables; naming lines that cannot be read.
Ignores the meaning of columns; separators and quotes (`delimited`).

    ratings.csv.gz   userId,movieId,rating        -> all cells as text; Parquet and JSON keep their types
                     7,50,5
    ml.inter         user_id:token  item_id:token  rating:float      (tabs between; the header has a type per column)
                     196            242            3
"""

import ast
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.importers.delimited import read_csv, read_text
from genre.data.numbers import numbers
from genre.data.schema import PLACE, Report
from genre.data.times import times_us
from genre.errors import DataError, InputError, first_line

_JSON = (".jsonl", ".ndjson", ".json")
_LITERAL = ("{'", "{u'", '{u"')
_KINDS = ("token", "float", "token_seq", "float_seq")


def read_table(
    path: str | Path,
    *,
    separator: str | None = None,
    encoding: str = "utf-8",
    columns: list[str] | None = None,
    quote: str = '"',
    report: Report | None = None,
) -> pl.DataFrame:
    """Read a table by its ending: .csv, .tsv, .parquet, .jsonl, .ndjson or .json, each but Parquet also with .gz.

    .txt, .dat and .data are read as .csv. Any of the JSON ones may hold lines or one array of objects.

    Args:
        path: The file.
        separator: Between the columns of a text file; None finds it in the header.
        encoding: Of a text file; a byte order mark is skipped.
        columns: The names of the columns of a CSV without a header.
        quote: Around cells of a text file; `none` if quotes are part of the texts.
        report: Counts and names lines that cannot be read; without it the first one is an error. If any is left out, the table
            has a column `PLACE` with the row numbers of the others.

    Raises:
        DataError: If the file is missing, empty, of another kind, or has a line that cannot be read and there is no report.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} cannot be read", got="a folder" if path.is_dir() else "no such file", expected="a file")
    endings = [ending.lower() for ending in path.suffixes if ending.lower() != ".gz"]
    kind = endings[-1] if endings else ""
    if columns is not None and kind in (".parquet", ".pq", *_JSON):
        raise InputError("--columns names the columns of a CSV", got=path.name, expected="a CSV or TSV without a header")
    if kind in (".parquet", ".pq"):
        return _parquet(path)
    if kind in _JSON:
        return _json(path, encoding, report)
    if kind in (".csv", ".tsv", ".txt", ".tab", ".dat", ".data"):
        separator = "\t" if kind in (".tsv", ".tab") and separator is None else separator
        return read_csv(path, separator=separator, encoding=encoding, columns=columns, report=report, quote=quote)
    expected, todo = ".csv, .tsv, .parquet, .jsonl, .json (or these with .gz)", "rename or convert the file"
    raise DataError(f"{path.name} is of an unknown kind", got=kind or "no ending", expected=expected, todo=todo)


def check_header(path: Path, table: pl.DataFrame) -> None:
    """Refuse a table whose columns' names look like a row: numbers that are no places (pandas' 0, 1, 2), or times.

    Raises:
        DataError: They do.
    """
    names = pl.Series([name for name in table.columns if name != PLACE], dtype=pl.String)
    data = (numbers(names).is_not_null() | times_us(names).is_not_null()).fill_null(False)
    if not data.any() or names.to_list() == [str(place) for place in range(len(names))]:
        return
    got = f"a first line with '{names.filter(data)[0]}'"
    todo = f"name all {len(names)} columns in order: --columns user_id,item_id,…"
    raise DataError(f"{path.name} seems to have no header", got=got, expected="the columns' names", todo=todo)


def read_atomic(path: Path) -> pl.DataFrame:
    """Read an atomic file; names lose their type. `token` and `token_seq` are texts, `float_seq` lists of floats.

    `float` columns stay texts here, so that a bad cell can be named (`genre.data.build`). A `token_seq` is kept as
    one text, its tokens apart by spaces.

    Raises:
        DataError: If the file is missing, is not UTF-8, or a header has no type.
    """
    try:
        table = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} cannot be read", got=first_line(error), expected="an atomic file, in UTF-8") from error
    untyped = [name for name in table.columns if name.rpartition(":")[2] not in _KINDS or ":" not in name]
    if untyped:
        got, expected = f"a column '{untyped[0]}'", f"name:type with a type of {', '.join(_KINDS)}"
        raise DataError(f"{path.name} is not an atomic file", got=got, expected=expected, todo="try --format csv")
    return table.select(_column(table[name], name) for name in table.columns)


def _column(series: pl.Series, header: str) -> pl.Series:
    name, _, kind = header.rpartition(":")
    series = series.rename(name)
    if kind != "float_seq":
        return series
    floats = pl.col(name).str.split(" ").list.eval(pl.element().cast(pl.Float32, strict=False))
    return pl.DataFrame(series).select(floats).to_series()


def _parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path.name} cannot be read", got=first_line(error), expected="a Parquet file") from error


def _json(path: Path, encoding: str, report: Report | None) -> pl.DataFrame:
    """Read JSON lines, an array of objects, or one object: a row, or columns as pandas writes them by default."""
    text = read_text(path, encoding)
    if re.match(r"\s*\[\s*[{\]]", text):
        return _array(path, text, report)
    try:
        table = pl.read_ndjson(io.BytesIO(text.encode()), infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError):
        table = None
    if table is not None and table.height > 1:
        return table
    whole = _whole_object(text)
    if whole is not None:
        return _frame(path, _columns_of(whole) or [whole])
    rows, numbers = read_objects(path, encoding, report)
    return _frame(path, rows).with_columns(pl.Series(PLACE, numbers, dtype=pl.Int64))


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
        first = f"{path.name}, element {other[0]} (the first is 0): {json.dumps(elements[other[0]])[:60]}"
        expected = "JSON objects, each a row"
        if report is None or not places:
            raise DataError("an element of the array is not an object", got=first, expected=expected)
        report.lose("elements that are not a JSON object", other, first, expected)
    rows = _frame(path, [elements[place] for place in places])
    return rows.with_columns(pl.Series(PLACE, places, dtype=pl.Int64)) if other else rows


def _not_empty(path: Path, table: pl.DataFrame) -> pl.DataFrame:
    if not table.width:
        raise DataError(f"{path.name} is empty", got="an array without objects", expected="one JSON object per row")
    return table


def _whole_object(text: str) -> dict[str, Any] | None:
    """Return a file's content if it is one JSON object."""
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else None
    except ValueError:  # several, most often
        return None
    return found if isinstance(found, dict) else None


def _columns_of(whole: dict[str, Any]) -> dict[str, list[Any]] | None:
    """Return columns, if an object holds them: `{"user_id": {"0": 7, "1": 8}, …}`, or lists of one length without objects."""
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


def read_objects(path: Path, encoding: str, report: Report | None) -> tuple[list[dict[str, Any]], list[int]]:
    """Read JSON lines one by one: the objects, and the number of each among the lines that are not blank, from 0.

    Raises:
        DataError: No line is an object; or one is none, and there is no report to count it.
    """
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[tuple[int, DataError]] = []
    for line_number, line in enumerate(read_text(path, encoding).split("\n"), 1):
        try:
            if line.strip():
                rows.append(_json_row(path, line_number, line))
                numbers.append(len(rows) + len(bad) - 1)
        except DataError as error:
            if report is None:
                raise
            bad.append((line_number, error))
    if not rows:
        raise bad[0][1] if bad else DataError(f"{path.name} is empty", got="no line", expected="one JSON object per line")
    if bad and report is not None:
        first = bad[0][1]
        lines = [line_number for line_number, _ in bad]
        report.lose("lines that are not a JSON object", lines, f"{first.what}: {first.got}", f"{first.expected}")
    return rows, numbers


def _json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = _literal(line) if line.lstrip().startswith(_LITERAL) else json.loads(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        got, expected = first_line(error), "one object per line"
        raise DataError(f"{path.name}, line {number} is not JSON", got=got, expected=expected) from error
    if not isinstance(row, dict):
        raise DataError(f"{path.name}, line {number} is not an object", got=line[:60], expected="one JSON object per line")
    return row


def _literal(line: str) -> Any:
    """Read a line that Python printed for a dict, as older public logs have them: {u'user': u'a', 'seen': True}.

    Raises:
        ValueError, SyntaxError, MemoryError, RecursionError: It is none.
    """
    with warnings.catch_warnings():  # an escape that is none, such as \\/, stays as it is
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.literal_eval(line.strip())
