"""Tables by the ending of their file.

Owns: CSV, TSV, Parquet and JSON lines, also with .gz, and RecBole's atomic files, as tables; naming lines that cannot be read.
Ignores the meaning of columns; separators and quotes (`delimited`).

    ratings.csv.gz   userId,movieId,rating        -> all cells as text; Parquet and JSON keep their types
                     7,50,5
    ml.inter         user_id:token  item_id:token  rating:float      (tabs between; the header has a type per column)
                     196            242            3
"""

import io
import json
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.importers.delimited import read_csv, read_text
from genre.data.schema import PLACE, Report
from genre.errors import DataError

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
    """Read a table by its ending: .csv, .tsv, .parquet, .jsonl or .ndjson, each but Parquet also with .gz.

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
    if kind in (".parquet", ".pq"):
        return _parquet(path)
    if kind in (".jsonl", ".ndjson"):
        return _json_lines(path, encoding, report)
    if kind in (".csv", ".tsv", ".txt", ".tab"):
        separator = "\t" if kind in (".tsv", ".tab") and separator is None else separator
        return read_csv(path, separator=separator, encoding=encoding, columns=columns, report=report, quote=quote)
    expected, todo = ".csv, .tsv, .parquet, .jsonl (or these with .gz)", "rename or convert the file"
    raise DataError(f"{path.name} is of an unknown kind", got=kind or "no ending", expected=expected, todo=todo)


def read_atomic(path: Path) -> pl.DataFrame:
    """Read an atomic file; names lose their type. `token` and `token_seq` are texts, `float_seq` lists of floats.

    `float` columns stay texts here, so that a bad cell can be named (`genre.data.build`). A `token_seq` is kept as
    one text, its tokens apart by spaces.

    Raises:
        DataError: If the file is missing, is no UTF-8, or a header has no type.
    """
    try:
        table = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        got = str(error).splitlines()[0][:200]
        raise DataError(f"{path} cannot be read", got=got, expected="an atomic file, in UTF-8") from error
    untyped = [name for name in table.columns if name.rpartition(":")[2] not in _KINDS or ":" not in name]
    if untyped:
        got, expected = f"a column '{untyped[0]}'", f"name:type with a type of {', '.join(_KINDS)}"
        raise DataError(f"{path.name} is no atomic file", got=got, expected=expected, todo="try --format csv")
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
        raise DataError(f"{path.name} cannot be read", got=_first_line(error), expected="a Parquet file") from error


def _json_lines(path: Path, encoding: str, report: Report | None) -> pl.DataFrame:
    try:
        return pl.read_ndjson(io.BytesIO(read_text(path, encoding).encode()), infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError):
        rows, numbers = read_objects(path, encoding, report)
    try:
        table = pl.DataFrame(rows, strict=False, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise DataError(f"{path.name} is no table", got=_first_line(error), expected="the same fields in every line") from error
    return table.with_columns(pl.Series(PLACE, numbers, dtype=pl.Int64))


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
        report.lose("lines that are no JSON object", lines, f"{first.what}: {first.got}", f"{first.expected}")
    return rows, numbers


def _json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path.name}, line {number} is no JSON", got=error, expected="one object per line") from error
    if not isinstance(row, dict):
        raise DataError(f"{path.name}, line {number} is no object", got=line[:60], expected="one JSON object per line")
    return row


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
