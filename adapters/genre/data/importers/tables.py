"""Tables by the ending of their file.

Owns: CSV, TSV, Parquet and JSON, also with .gz, and RecBole's atomic files, as tables; naming lines that cannot be read.
Ignores the meaning of columns; separators and quotes (`delimited`).

    ratings.csv.gz   userId,movieId,rating        -> all cells as text; Parquet and JSON keep their types
                     7,50,5
    ml.inter         user_id:token  item_id:token  rating:float      (tabs between; the header has a type per column)
                     196            242            3
"""

import os
from collections.abc import Collection
from pathlib import Path

import polars as pl

from genre.data.importers.delimited import read_csv
from genre.data.importers.objects import read_json
from genre.data.numbers import numbers
from genre.data.schema import PLACE, Report
from genre.data.times import times_us
from genre.errors import DataError, InputError, first_line

_JSON = (".jsonl", ".ndjson", ".json")
_KINDS = ("token", "float", "token_seq", "float_seq")


_CONVERTED = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "save the sheet as CSV"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"), "unpack it first"),
    **dict.fromkeys((".pkl", ".pickle"), "write the table as Parquet: frame.to_parquet(…)"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".sql"), "export the table of events as CSV"),
}
"""What helps with files of other tools, by their ending."""


def read_table(
    path: str | Path,
    *,
    separator: str | None = None,
    encoding: str = "utf-8",
    columns: list[str] | None = None,
    quote: str = '"',
    report: Report | None = None,
    dropped: Collection[str] = (),
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
        dropped: Fields of JSON lines of no use.

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
        return read_json(path, encoding, report, dropped)
    if kind in (".csv", ".tsv", ".txt", ".tab", ".dat", ".data"):
        separator = "\t" if kind in (".tsv", ".tab") and separator is None else separator
        return read_csv(path, separator=separator, encoding=encoding, columns=columns, report=report, quote=quote)
    expected, todo = ".csv, .tsv, .parquet, .jsonl, .json (or these with .gz)", _CONVERTED.get(kind, "rename or convert the file")
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
        with path.open("rb") as file:
            file.seek(-4, os.SEEK_END) if path.stat().st_size > 4 else None
            whole = file.read() == b"PAR1"
        got = first_line(error) if whole else "no Parquet file, or one whose end is missing"
        raise DataError(f"{path.name} cannot be read", got=got, expected="a Parquet file") from error
