"""Tables in a stranger's file formats.

Owns: CSV, TSV, Parquet, JSON lines, and each compressed by gzip, as a table; naming the line that cannot be read.
Ignores what the columns mean.

    read_table(Path("ratings.csv.gz"))   # texts, checked by `interactions_build`; Parquet and JSON keep their types
"""

import csv
import gzip
import io
import json
from pathlib import Path

import polars as pl

from genre.errors import DataError

SEPARATORS = ",;\t|"
"""Tried, in this order, on a header; the most frequent wins."""


def read_table(path: str | Path, *, separator: str | None = None, encoding: str = "utf-8") -> pl.DataFrame:
    """Read a table by its ending: .csv, .tsv, .parquet, .jsonl or .ndjson, each but Parquet also with .gz.

    Args:
        path: The file.
        separator: Between the columns of a text file; None finds it in the header.
        encoding: Of a text file; a byte order mark is skipped.

    Raises:
        DataError: If the file is missing, empty, of another kind, or has a line that cannot be read (which is named).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} cannot be read", got="a folder" if path.is_dir() else "no such file", expected="a file")
    endings = [ending.lower() for ending in path.suffixes if ending.lower() != ".gz"]
    kind = endings[-1] if endings else ""
    if kind in (".parquet", ".pq"):
        return _parquet(path)
    if kind in (".jsonl", ".ndjson"):
        return _json_lines(path, encoding)
    if kind in (".csv", ".tsv", ".txt", ".tab"):
        return _csv(path, "\t" if kind in (".tsv", ".tab") and separator is None else separator, encoding)
    raise DataError(
        f"{path.name} is of an unknown kind",
        got=kind or "no ending",
        expected=".csv, .tsv, .parquet, .jsonl (or these with .gz)",
        todo="rename or convert the file",
    )


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return a text file's content, without a byte order mark; a gzip file is unpacked.

    Raises:
        DataError: If it cannot be read in this encoding.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        got = f"byte {data[error.start]:#x} in line {line}"
        raise DataError(
            f"{path.name} is not in {encoding}",
            got=got,
            expected=f"text in {encoding}",
            todo="name its encoding, such as --encoding latin-1",
        ) from error
    except LookupError as error:
        raise DataError("unknown encoding", got=repr(encoding), expected="utf-8, latin-1, …") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read", got=error, expected="a whole text file") from error


def _parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path.name} cannot be read", got=_first_line(error), expected="a Parquet file") from error


def _csv(path: Path, separator: str | None, encoding: str) -> pl.DataFrame:
    """Read every cell as text, so that a bad one can be named. A plain UTF-8 file is read straight from the disk."""
    plain = encoding.lower() in ("utf-8", "utf8") and path.suffix.lower() != ".gz"
    source: Path | io.BytesIO = path if plain else io.BytesIO(read_text(path, encoding).encode())
    separator = separator or _find_separator(source)
    try:
        return pl.read_csv(source, separator=separator, infer_schema=False)
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{path.name} is empty", got="no header", expected="a header and rows") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        _name_bad_line(path, read_text(path, encoding), separator)
        raise DataError(f"{path.name} cannot be read", got=_first_line(error), expected="a table with a header") from error


def _find_separator(source: Path | io.BytesIO) -> str:
    if isinstance(source, io.BytesIO):
        header = source.getvalue().partition(b"\n")[0]
    else:
        with source.open("rb") as file:
            header = file.readline()
    return max(SEPARATORS, key=lambda separator: header.count(separator.encode()))


def _name_bad_line(path: Path, text: str, separator: str) -> None:
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    width = len(next(reader, []))
    for cells in reader:
        if len(cells) > width:
            what = f"{path.name}, line {reader.line_num} has too many cells"
            raise DataError(
                what,
                got=len(cells),
                expected=f"{width}, as in the header",
                todo="quote the cells that hold a separator",
            )


def _json_lines(path: Path, encoding: str) -> pl.DataFrame:
    text = read_text(path, encoding)
    try:
        return pl.read_ndjson(io.BytesIO(text.encode()), infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError):
        rows = [_json_row(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not rows:
        raise DataError(f"{path.name} is empty", got="no line", expected="one JSON object per line")
    try:
        return pl.DataFrame(rows, strict=False, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise DataError(f"{path.name} is no table", got=_first_line(error), expected="the same fields in every line") from error


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
