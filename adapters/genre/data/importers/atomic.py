"""RecBole's atomic files.

Owns: tab-separated files whose header holds a type per column. Ignores what the columns mean.

    user_id:token   item_id:token   rating:float   timestamp:float
    196             242             3              881250949
"""

from pathlib import Path

import polars as pl

from genre.errors import DataError

_KINDS = ("token", "float", "token_seq", "float_seq")


def read_atomic(path: Path) -> pl.DataFrame:
    """Read an atomic file; names lose their type. `token` and `token_seq` are texts, `float_seq` lists of floats.

    `float` columns stay texts here, so that a bad cell can be named (`interactions_build`). A `token_seq` is kept as
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
        raise DataError(
            f"{path.name} is no atomic file",
            got=f"a column '{untyped[0]}'",
            expected=f"name:type with a type of {', '.join(_KINDS)}",
            todo="try --format csv",
        )
    return table.select(_column(table[name], name) for name in table.columns)


def _column(series: pl.Series, header: str) -> pl.Series:
    name, _, kind = header.rpartition(":")
    series = series.rename(name)
    if kind != "float_seq":
        return series
    floats = pl.col(name).str.split(" ").list.eval(pl.element().cast(pl.Float32, strict=False))
    return pl.DataFrame(series).select(floats).to_series()
