"""MovieLens as GroupLens distributes it.

Owns: the three layouts: 100K (u.data, u.item, u.user), 1M and 10M (ratings.dat, movies.dat, users.dat, tags.dat), and 20M, 25M,
32M, latest (ratings.csv, movies.csv, tags.csv). Ignores links and the tag genome.

    u.data     196 <tab> 242 <tab> 3 <tab> 881250949
    u.item     242|Kolya (1996)|24-Jan-1997||http://…|0|0|0|0|0|1|0|…            (Latin-1)
    movies.dat 1::Toy Story (1995)::Animation|Children's|Comedy                  (Latin-1)
    movies.csv 1,Toy Story (1995),Adventure|Animation|Children|Comedy|Fantasy    (UTF-8)
    tags.csv   336,1,pixar,1139045764          ->   item 1, tags "pixar, fun, animation"

Users add tags over all the time of the log: a recipe that reads them knows later opinions of a movie.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from genre.data.importers.delimited import read_lines
from genre.data.importers.tables import read_table
from genre.errors import DataError

GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The flags at the end of a line of u.item, in order (u.genre)."""

_LOGS = ("u.data", "ratings.dat", "ratings.csv")
_LOG_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_TAGS = 5
_USERS_100K = ("user_id", "age", "gender", "occupation", "zip_code")
_USERS_1M = ("user_id", "gender", "age", "occupation", "zip_code")

Tables = tuple[pl.DataFrame, pl.DataFrame | None, pl.DataFrame | None]
"""A log, its items, its users."""


def read_movielens(path: str | Path) -> Tables:
    """Read a folder of MovieLens, or the file of ratings in it; items and users are those beside it, where there.

    Titles lose their year, which becomes `year`; genres become one text, "Animation, Comedy"; an item's commonest tags, where
    there is a file of tags, become `tags`.

    Raises:
        DataError: If there is no file of ratings, or a line has too few fields.
    """
    path = Path(path)
    folder, names = (path.parent, (path.name,)) if path.is_file() else (path, _LOGS)
    found = [folder / name for name in names if name in _LOGS and (folder / name).is_file()]
    if not found:
        inside = ", ".join(sorted(each.name for each in folder.iterdir())[:5]) if folder.is_dir() else ""
        expected = f"a folder with {' or '.join(_LOGS)}, or of another format in docs/formats.md"
        todo = "name the file of events itself, or give the unpacked folder"
        raise DataError(f"no log is found in {path}", got=inside or "no files", expected=expected, todo=todo)
    if found[0].name == "u.data":
        return _read_100k(found[0])
    return _read_dat(found[0]) if found[0].name == "ratings.dat" else _read_csv(found[0])


def _read_100k(path: Path) -> Tables:
    log = _split_lines(path, "\t", _LOG_COLUMNS)
    items, users = path.with_name("u.item"), path.with_name("u.user")
    table = None
    if items.is_file():
        columns = ("item_id", "title", "released", "video", "url", *GENRES_100K)
        flags = _split_lines(items, "|", columns)
        genres = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES_100K]
        table = _with_year(flags.with_columns(pl.concat_str(genres, separator=", ", ignore_nulls=True).alias("genres")))
    return log, table, _split_lines(users, "|", _USERS_100K) if users.is_file() else None


def _read_dat(path: Path) -> Tables:
    log = _split_lines(path, "::", _LOG_COLUMNS)
    items, users = path.with_name("movies.dat"), path.with_name("users.dat")
    table = _movies(_split_lines(items, "::", ("item_id", "title", "genres"))) if items.is_file() else None
    tags = path.with_name("tags.dat")
    if table is not None and tags.is_file():
        table = _with_tags(table, _split_lines(tags, "::", ("user_id", "item_id", "tag", "timestamp"), "utf-8"))
    return log, table, _split_lines(users, "::", _USERS_1M) if users.is_file() else None


def _read_csv(path: Path) -> Tables:
    log = read_table(path).rename({"userId": "user_id", "movieId": "item_id"}, strict=False)
    items = path.with_name("movies.csv")
    if not items.is_file():
        return log, None, None
    table = _movies(read_table(items).rename({"movieId": "item_id"}, strict=False))
    tags = path.with_name("tags.csv")
    if tags.is_file():
        table = _with_tags(table, read_table(tags).rename({"movieId": "item_id"}, strict=False))
    return log, table, None


def _movies(table: pl.DataFrame) -> pl.DataFrame:
    genres = pl.col("genres").replace("(no genres listed)", None).str.replace_all("|", ", ", literal=True)
    return _with_year(table.with_columns(genres))


def _with_year(items: pl.DataFrame) -> pl.DataFrame:
    pattern = r"\s*\((\d{4})(?:[-–]\d{0,4})?\)\s*$"
    return items.select(
        "item_id",
        pl.col("title").str.replace(pattern, ""),
        pl.col("title").str.extract(pattern).cast(pl.Int64).alias("year"),
        "genres",
    )


def _with_tags(items: pl.DataFrame, tags: pl.DataFrame) -> pl.DataFrame:
    """Give each item its commonest tags, in small letters, most often given first, equal ones by letters."""
    plain = tags.select("item_id", pl.col("tag").str.to_lowercase().str.strip_chars()).filter(pl.col("tag") != "")
    counted = plain.group_by("item_id", "tag").len().sort("len", "tag", descending=[True, False])
    named = counted.group_by("item_id", maintain_order=True).agg(pl.col("tag").head(_TAGS))
    joined = named.select("item_id", pl.col("tag").list.join(", ").alias("tags"))
    return items.join(joined, on="item_id", how="left", maintain_order="left")


def _split_lines(path: Path, separator: str, columns: Sequence[str], encoding: str = "latin-1") -> pl.DataFrame:
    """Split lines without a header; cells beyond the columns are refused, missing ones too."""
    lines = read_lines(path, encoding).with_row_index("number", 1).filter(pl.col("text").str.strip_chars() != "")
    cells = lines.select("number", pl.col("text").str.split(separator).alias("cells"))
    wrong = cells.filter(pl.col("cells").list.len() != len(columns))
    if wrong.height:
        number, found = wrong.row(0)
        expected = f"{len(columns)}: {', '.join(columns[:6])}"
        raise DataError(f"{path.name}, line {number} does not fit", got=f"{len(found)} fields", expected=expected)
    return cells.select(pl.col("cells").list.get(place).alias(name) for place, name in enumerate(columns))
