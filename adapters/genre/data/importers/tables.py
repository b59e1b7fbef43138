"""Tables in a stranger's file formats.

Owns: CSV, TSV, Parquet, JSON lines, and each compressed by gzip, as a table; naming the lines that cannot be read.
Ignores what the columns mean; how cells are separated (`interactions_csv`).

    read_table(Path("ratings.csv.gz"))   # texts, checked by `interactions_build`; Parquet and JSON keep their types
"""

import io
import json
from pathlib import Path

import polars as pl

from genre.data.importers.delimited import read_csv, read_text
from genre.data.schema import PLACE, Report
from genre.errors import DataError


def read_table(
    path: str | Path,
    *,
    separator: str | None = None,
    encoding: str = "utf-8",
    columns: list[str] | None = None,
    report: Report | None = None,
) -> pl.DataFrame:
    """Read a table by its ending: .csv, .tsv, .parquet, .jsonl or .ndjson, each but Parquet also with .gz.

    Args:
        path: The file.
        separator: Between the columns of a text file; None finds it in the header.
        encoding: Of a text file; a byte order mark is skipped.
        columns: The names of the columns of a CSV without a header.
        report: Where lines that cannot be read are counted and named; without it the first one is an error. If any is left
            out, the table has a column `PLACE` with the places of the others.

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
        return read_csv(path, separator=separator, encoding=encoding, columns=columns, report=report)
    raise DataError(
        f"{path.name} is of an unknown kind",
        got=kind or "no ending",
        expected=".csv, .tsv, .parquet, .jsonl (or these with .gz)",
        todo="rename or convert the file",
    )


def _parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path.name} cannot be read", got=_first_line(error), expected="a Parquet file") from error


def _json_lines(path: Path, encoding: str, report: Report | None) -> pl.DataFrame:
    text = read_text(path, encoding)
    try:
        return pl.read_ndjson(io.BytesIO(text.encode()), infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError):
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows, kept, bad = [], [], []
    for place, (number, line) in enumerate(lines):
        try:
            rows.append(_json_row(path, number, line))
            kept.append(place)
        except DataError as error:
            if report is None:
                raise
            bad.append((number, error))
    if bad and not rows:
        raise bad[0][1]
    if bad:
        assert report is not None
        first = bad[0][1]
        numbers = [number for number, _ in bad]
        report.lose("lines that are no JSON object", numbers, f"{first.what}: {first.got}", f"{first.expected}")
    if not rows and not bad:
        raise DataError(f"{path.name} is empty", got="no line", expected="one JSON object per line")
    try:
        table = pl.DataFrame(rows, strict=False, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise DataError(f"{path.name} is no table", got=_first_line(error), expected="the same fields in every line") from error
    return table.with_columns(pl.Series(PLACE, kept, dtype=pl.Int64)) if bad else table


def _json_row(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path.name}, line {number} is no JSON", got=error, expected="one object per line") from error
    if not isinstance(row, dict):
        raise DataError(f"{path.name}, line {number} is no object", got=line[:60], expected="one JSON object per line")
    return row


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
