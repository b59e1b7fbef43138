"""CSV and its kin, as other people write it.

Owns: the separator, the header, lines that are not a row, quotes that are never closed. Ignores the meaning of columns.

    "userId";"sku";"when"            columns userId, sku, when
    7;"12"" ruler";2024-03-01   ->   7, 12" ruler, 2024-03-01
    8;"never closed;2024-03-02       kept with its quote, and noted; left out where the cells are too many

polars reads a sound file straight from the disk; one with a bad line is read again line by line, so that the other lines stay
(`docs/decisions/broken-csv.md`).
"""

import csv
import gzip
import io
import re
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.schema import PLACE, Report
from genre.errors import DataError, InputError, fault_of_file

NO_QUOTE = "none"

SEPARATORS = ",;\t|"
"""Tried, in this order, on the first line; the one that gives the most cells wins. A space is tried last."""

_NAMES = {"\\t": "\t", "tab": "\t", "space": " ", "comma": ",", "semicolon": ";", "pipe": "|"}
_HEAD = 1 << 16
_HARDLY = 0.01
_LONGEST = 100  # lines that one quoted cell may take
_NUMBER = re.compile(r"\s*[+-]?\d[\d.,:/TZ +-]*")  # or a time
_SAMPLE = 1000
_TWICE = re.compile(r"(.+)_duplicated_\d+")  # polars' name of a second column
_UTF8 = ("utf-8", "utf8")


def read_csv(
    path: Path,
    *,
    separator: str | None,
    encoding: str,
    columns: list[str] | None,
    report: Report | None,
    quote: str = '"',
) -> pl.DataFrame:
    """Read every cell as text, so that a bad one can be named; empty cells are null. A row with few cells has empty ones.

    Args:
        path: The file; with the ending .gz it is unpacked.
        separator: Between cells; None finds it.
        encoding: Of the text.
        columns: The names of the columns, for a file without a header.
        report: Where lines that are not a row are counted and named; without it the first one is an error. If any line is left
            out, the table has a column `PLACE`: the numbers of the others among the rows of the file, from 0.
        quote: Around cells; `none` if quotes are part of the texts.

    Raises:
        DataError: If the file cannot be read, is empty, or has a line that is not a row and there is no report.
    """
    if len(quote.encode()) != 1 and quote != NO_QUOTE:
        raise InputError("unknown --quote", got=repr(quote), expected="one plain character, or none")
    separator = _NAMES.get(separator or "", separator)
    if separator is not None and len(separator.encode()) != 1:
        todo, names = "put another one into the file, such as a tab", ", ".join(list(_NAMES)[1:])
        raise InputError("--separator is not usable", got=repr(separator), expected=f"one plain character, or {names}", todo=todo)
    head = read_head(path, encoding)
    named = re.match(r"sep=(.)\r?\n", head)  # Excel's own way to name the separator
    skip = 1 if named else 0
    first = next(iter(head.splitlines()[skip : skip + 1]), "")
    separator = separator or (named[1] if named else _find_separator(first, quote))
    if columns is not None:
        columns = _check_names(columns, _split(first, separator, quote), path)
    plain = is_utf8(encoding) and path.suffix.lower() != ".gz" and "\n" in head
    try:
        source: Path | io.BytesIO = path if plain else io.BytesIO(read_text(path, encoding).encode())
        table = pl.read_csv(
            source,
            separator=separator,
            infer_schema=False,
            has_header=columns is None,
            new_columns=columns,
            skip_rows=skip,
            quote_char=None if quote == NO_QUOTE else quote,
        )
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{path.name} is empty", got="no header", expected="a header and rows") from error
    except (pl.exceptions.PolarsError, OSError):
        table, quoted = _recover(path, separator, encoding, columns, skip, report, quote), True
    else:
        quoted = quote != NO_QUOTE and quote.encode() in _bytes(source)  # without a quote no cell has line ends
        if quoted and (_swallowed(table, separator) or _misquoted(source, separator, quote)):
            table = _recover(path, separator, encoding, columns, skip, report, quote)
    if report is not None and quoted:
        report.note(_line_end_note(table))
    twice = [name for name in table.columns if (found := _TWICE.fullmatch(name)) and found[1].strip() in table.columns]
    if report is not None and twice:
        name = twice[0].partition("_duplicated_")[0].strip()
        report.note(f"the header has '{name}' more than once: the first one is taken, another is {twice[0]}")
    return _without_blanks(_with_plain_names(table), report)


def is_utf8(encoding: str) -> bool:
    """Return whether an encoding is UTF-8 by one of its names."""
    return encoding.lower() in _UTF8


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return a text file's content, without a byte order mark; a gzip file is unpacked; lines end as they may.

    Raises:
        DataError: If it cannot be read in this encoding.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig" if is_utf8(encoding) else encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        got, expected = f"byte {data[error.start]:#x} in line {line}", f"text in {encoding}"
        todo = f"name its encoding, such as --encoding {_likely_encoding(data)}"
        raise DataError(f"{path.name} is not in {encoding}", got=got, expected=expected, todo=todo) from error
    except LookupError as error:
        raise DataError("unknown encoding", got=repr(encoding), expected="utf-8, latin-1, …") from error
    except (OSError, EOFError) as error:
        raise _unread(path, error) from error
    return text if "\n" in text or "\r" not in text else text.replace("\r", "\n")


def _unread(path: Path, error: Exception) -> DataError:
    """The error of a text file that cannot be opened or unpacked."""
    if isinstance(error, gzip.BadGzipFile):
        todo = "drop the ending .gz from its name if it is plain text"
        return DataError(f"{path} cannot be read", got="a file that is not gzipped", expected="a gzip file", todo=todo)
    got = "a gzip file whose end is missing" if isinstance(error, EOFError) else fault_of_file(error)
    return DataError(f"{path} cannot be read", got=got, expected="a whole text file")


def read_lines(path: Path, encoding: str = "utf-8") -> pl.DataFrame:
    """Read a text file as one column `text`, a line each, without their ends; quotes mean nothing.

    Raises:
        DataError: If it cannot be read in this encoding.
    """
    plain = is_utf8(encoding) and path.suffix.lower() != ".gz"
    source: Path | io.BytesIO = path if plain else io.BytesIO(read_text(path, encoding).encode())
    options: dict[str, Any] = {"separator": "\x1f", "quote_char": None, "has_header": False, "schema": {"text": pl.String}}
    try:
        table = pl.read_csv(source, truncate_ragged_lines=False, **options)
    except pl.exceptions.NoDataError:
        return pl.DataFrame(schema={"text": pl.String})
    except (pl.exceptions.PolarsError, OSError) as error:  # no UTF-8, or a line that holds the separator itself
        table = pl.DataFrame({"text": read_text(path, encoding).split("\n")}, schema={"text": pl.String})
        if table.is_empty():
            raise DataError(f"{path} cannot be read", got=error, expected="a text file") from error
    return table.with_columns(pl.col("text").fill_null("").str.strip_suffix("\r"))


def _likely_encoding(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    return "windows-1252" if re.search(rb"[\x80-\x9f]", data) else "latin-1"


def read_head(path: Path, encoding: str) -> str:
    """The file's beginning, as far as its separator needs it; a cut character at the end does not matter."""
    if not is_utf8(encoding):
        return read_text(path, encoding)[:_HEAD]
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            return file.read(_HEAD).decode("utf-8-sig", errors="replace")
    except (OSError, EOFError) as error:
        raise _unread(path, error) from error


def _split(line: str, separator: str, quote: str) -> list[str]:
    options = {"quoting": csv.QUOTE_NONE} if quote == NO_QUOTE else {"quotechar": quote}
    return next(csv.reader([line], delimiter=separator, **options), [])


def _find_separator(line: str, quote: str) -> str:
    """Return the separator that gives most cells; a space only where no other gives two."""
    found = max(SEPARATORS, key=lambda each: len(_split(line, each, quote)))
    return " " if len(_split(line, found, quote)) == 1 and len(_split(line, " ", quote)) > 1 else found


def _check_names(columns: list[str], first: list[str], path: Path) -> list[str] | None:
    """Return the names of the columns of a file without a header; None if its first line is the header with these names.

    Raises:
        InputError: A name is empty, or comes twice.
        DataError: There are more or fewer than cells in the first line.
    """
    columns = [name.strip() for name in columns]
    if "" in columns or len({*columns}) < len(columns):
        raise InputError("--columns is not usable", got=",".join(columns), expected="a name for each column, no two alike")
    if first and len(columns) != len(first):
        got, line = f"{len(columns)} names for {len(first)} cells", ",".join(first)[:80]
        expected = f"a name for each cell of the first line ({line})"
        raise DataError(f"{path.name} does not fit --columns", got=got, expected=expected)
    return None if [cell.strip() for cell in first] == columns else columns


def _swallowed(table: pl.DataFrame, separator: str) -> bool:
    """Return whether a quote may have taken whole lines into a cell.

    Such a cell has line ends, and stands in a TSV, or beside empty cells, or has as many cells in each of its lines, with those
    beside it, as there are columns.
    """
    if not table.width:
        return False
    ends = pl.any_horizontal(pl.all().str.contains("\n", literal=True).fill_null(False))
    beside = pl.lit(True) if separator == "\t" else pl.any_horizontal(pl.all().is_null())
    sign, last = re.escape(separator), table.width - 1
    text = rf"[^\n{sign}]*"
    rows = [
        rf"^(?:{text}{sign}){{{last - place}}}{text}\n(?:(?:{text}{sign}){{{last}}}{text}\n)*(?:{text}{sign}){{{place}}}{text}$"
        for place in range(table.width)
    ]
    whole = pl.any_horizontal(
        pl.col(name).str.contains(row).fill_null(False) for name, row in zip(table.columns, rows, strict=True)
    )
    return bool(table.filter(ends).select((beside | whole).any()).item())


def _bytes(source: Path | io.BytesIO) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source.getvalue()


def _misquoted(source: Path | io.BytesIO, separator: str, quote: str) -> bool:
    """Return whether text may follow a closing quote: polars reads `"a "b" c"` as `a b c`."""
    data = _bytes(source)
    sign, mark = re.escape(separator.encode()), re.escape(quote.encode())
    ends = rb"\r\n" + sign + mark
    if re.search(mark + rb"(?<=[^" + ends + rb"]" + mark + rb")(?=[^" + ends + rb"])", data) is None:  # cheap, and mostly enough
        return False
    inside = rb"(?:[^\n" + mark + rb"]|" + mark * 2 + rb")*"
    return re.search(rb"(?m)(?:^|" + sign + rb")" + mark + inside + mark + rb"[^" + ends + rb"]", data) is not None


def _line_end_note(table: pl.DataFrame) -> str:
    """Return a line if hardly any row has a cell with line ends: a quote in its text may have swallowed other rows."""
    names = [name for name in table.columns if table[name].dtype == pl.String]
    if not names:
        return ""
    found = table.select(pl.any_horizontal(pl.col(names).str.contains("\n", literal=True).fill_null(False)).alias("ends"))["ends"]
    rows = found.arg_true()
    if not len(rows) or (len(rows) > 1 and len(rows) > _HARDLY * table.height):
        return ""
    row = int(rows[0])
    name = next(name for name in names if "\n" in (table[name][row] or ""))
    number = table[PLACE][row] if PLACE in table.columns else row
    rows_have = f"{len(rows):,} of {table.height:,} rows {'has' if len(rows) == 1 else 'have'}"
    where = f"row {number} (the first is 0), {name} {table[name][row][:40]!r}"
    return f"{rows_have} a cell with line ends: {where}; if quotes are part of the texts: --quote none"


def _recover(
    path: Path, separator: str, encoding: str, columns: list[str] | None, skip: int, report: Report | None, quote: str
) -> pl.DataFrame:
    """Read line by line; lines that are not a row are counted, or the first one is an error."""
    lines = read_text(path, encoding).removesuffix("\n").split("\n")
    at = skip
    if columns is None:
        cells, taken = _parse_row(lines, at, separator)
        if isinstance(cells, str):
            raise DataError(f"{path.name}, line {at + 1} is not a header", got=cells, expected="the columns' names")
        columns = [name if name not in cells[:place] else f"{name}_duplicated_{place}" for place, name in enumerate(cells)]
        at += taken
    expected = f"{len(columns)} cells, as in the header"
    rows: list[list[str | None]] = []
    kept: list[int] = []
    bad: dict[str, list[int]] = {}
    literal: list[int] = []
    numeric = _numeric_places(lines[at:], separator, quote, len(columns))
    while at < len(lines):
        cells, taken = _parse_row(lines, at, separator, len(columns), quote)
        plain = _split_plainly(lines, at, taken, separator, quote, len(columns), numeric, failed=isinstance(cells, str))
        if plain is not None:
            cells, taken = plain, 1
            literal.append(at + 1)
        if not isinstance(cells, str):
            kept.append(len(rows) + sum(map(len, bad.values())))
            rows.append([cell or None for cell in cells] + [None] * (len(columns) - len(cells)))
        elif report is None:
            todo = "quote the cells that hold a separator or a quote"
            raise DataError(f"{path.name}, line {at + 1} has {cells}", expected=expected, todo=todo)
        else:
            bad.setdefault(cells, []).append(at + 1)
        at += taken
    if literal and report is not None:
        they_have = "1 line has" if len(literal) == 1 else f"{len(literal):,} lines have"
        what = "quotes that are part of their texts, such as line"
        report.note(f"{they_have} {what} {literal[0]}; --quote none takes all quotes for text")
    for reason, numbers in bad.items():
        assert report is not None
        kind = reason.removeprefix("a ").partition(":")[0]
        report.lose(f"lines that are not a row ({kind})", numbers, [f"{path.name}, line {numbers[0]} has {reason}"], expected)
    table = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
    return table.with_columns(pl.Series(PLACE, kept, dtype=pl.Int64)) if bad else table


def _numeric_places(lines: list[str], separator: str, quote: str, width: int) -> list[int]:
    """Return the places of the columns that have numbers or times in every line without a quote, of a sample."""
    plain = (line.removesuffix("\r").split(separator) for line in lines if quote not in line)
    sample = list(islice((row for row in plain if len(row) == width), _SAMPLE))
    return [
        place
        for place in range(width)
        if any(row[place] for row in sample) and all(_NUMBER.fullmatch(row[place]) for row in sample if row[place])
    ]


def _split_plainly(
    lines: list[str], at: int, taken: int, separator: str, quote: str, width: int, numeric: list[int], *, failed: bool
) -> list[str] | None:
    """Return the cells of a line whose quotes are text: as quoting they make no row, or a cell over several whole rows.

    None if they do make a row, or the line without quoting has another number of cells. Rows of a TSV need the right number of
    cells to be whole, others also numbers where the other lines of the file have them. A cell that is quoted as a whole, with an
    opening quote for its first one inside (`"a "b" c"`), loses the outer ones.
    """
    rows = [line.removesuffix("\r").split(separator) for line in lines[at : at + taken]]
    if len(rows[0]) != width or not (failed or (taken > 1 and all(len(row) == width for row in rows))):
        return None
    numbers = [row[place] for row in rows for place in numeric]
    if not failed and separator != "\t" and not (numbers and all(_NUMBER.fullmatch(cell) for cell in numbers)):
        return None
    whole = re.compile(rf"{re.escape(quote)}([^{re.escape(quote)}]*[\s(]{re.escape(quote)}.*){re.escape(quote)}")
    return [found[1] if (found := whole.fullmatch(cell)) else cell for cell in rows[0]]


def _parse_row(
    lines: list[str], at: int, separator: str, width: int | None = None, quote: str = '"'
) -> tuple[list[str] | str, int]:
    """Return the cells of the row that begins at a line, or what is wrong with that line; and how many lines they take."""
    text, taken = lines[at].removesuffix("\r"), 1
    options: dict[str, Any] = {"delimiter": separator}
    options |= {"quoting": csv.QUOTE_NONE} if quote == NO_QUOTE else {"quotechar": quote}
    while True:
        try:
            cells = next(csv.reader([text], strict=True, **options), [])
            break
        except csv.Error as error:
            if "unexpected end of data" not in str(error):
                return "text after a closing quote", 1
            if at + taken >= len(lines) or taken >= _LONGEST:
                return "a quote that is never closed", 1
            text += "\n" + lines[at + taken].removesuffix("\r")
            taken += 1
    while width is not None and len(cells) > width and cells[-1] == "":  # a separator at the end of each line
        cells.pop()
    if width is not None and taken > 1 and len(cells) != width:
        return "a quote that is never closed", 1
    if width is not None and len(cells) > width:
        return f"too many cells: got {len(cells)}", 1
    return cells, taken


def _with_plain_names(table: pl.DataFrame) -> pl.DataFrame:
    """Names without spaces around them; a column without a name goes if it is empty, else it gets its place for a name."""
    names: dict[str, str] = {}
    for place, name in enumerate(table.columns):
        plain = name.strip().strip("\ufeff")
        if plain.startswith("_duplicated_") or not plain:
            if table[name].null_count() == table.height:
                table = table.drop(name)
                continue
            plain = f"column_{place + 1}"
        names[name] = plain if plain not in names.values() else f"{plain}_{place + 1}"
    return table.rename(names)


def _without_blanks(table: pl.DataFrame, report: Report | None) -> pl.DataFrame:
    """Leave blank lines out; the other rows keep their numbers."""
    cells = [name for name in table.columns if name != PLACE]
    if not cells:
        return table
    blank = table.select(pl.all_horizontal(pl.col(cells).is_null())).to_series()
    if not blank.any():
        return table
    if report is not None:
        report.add("blank lines", int(blank.sum()))
    placed = table if PLACE in table.columns else table.with_columns(pl.int_range(pl.len()).alias(PLACE))
    return placed.filter(~blank)
