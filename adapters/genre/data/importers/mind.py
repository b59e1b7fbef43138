"""News in the form of MIND (Wu et al., ACL 2020).

Owns: behaviors.tsv (impressions: items shown, items clicked, earlier clicks) and news.tsv, as a log and its items.
 Ignores the vectors of entities beside them.

    1 <tab> U13740 <tab> 11/11/2019 9:05:58 AM <tab> N55189 N42782 <tab> N55689-1 N35729-0
    N55689 <tab> sports <tab> football_nfl <tab> Charles Rogers, former … <tab> He was … <tab> https://… <tab> [] <tab> []

    ->  user_id, item_id, timestamp, click, impression_id, clicked
        U13740   N55189   09:05:56   1      h-U13740-0     (empty)      a click before the impression
        U13740   N42782   09:05:57   1      h-U13740-1     (empty)
        U13740   N55689   09:05:58   1      1              1            shown and clicked
        U13740   N35729   09:05:58   0      1              0            shown, not clicked

**The history** names earlier clicks in order but not when, nor what was shown beside them. Each becomes an event of its own
impression in the seconds just before the first impression that lists it: as late as is possible, so that no split takes it for
older than it may be. `clicked`, the label of news tasks, is empty there, since nothing is known to have been passed over.
A later impression's list adds only what is neither in an earlier list nor clicked in an earlier impression. So an event's input
never holds what its own impression's list does not.

**Siblings** of an impression share its second and its `impression_id`, and never see each other's clicks.
"""

from pathlib import Path

import polars as pl

from genre.data.importers.delimited import read_lines
from genre.data.importers.movielens import Tables
from genre.data.reading import time_reading
from genre.data.schema import Report
from genre.errors import DataError

BEHAVIORS, NEWS = "behaviors.tsv", "news.tsv"
_BEHAVIORS = ("impression_id", "user_id", "time", "history", "shown")
_NEWS = ("item_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
_KEPT = ("item_id", "title", "category", "subcategory", "abstract")
_TIME = "%m/%d/%Y %I:%M:%S %p"


def read_mind(path: str | Path, report: Report, *, max_bad: float) -> Tables:
    """Read a folder of MIND, or its behaviors.tsv; or a folder of such folders (train and dev), whose parts become one log.

    Times have no zone and are taken for UTC. Impressions without labels (those of the test set) and impressions without an item
    are counted and left out.

    Args:
        path: The folder or the file.
        report: Counts what is left out.
        max_bad: The share of lines that are not an impression above which the log is refused.

    Returns:
        The log, the news that stand beside it (None where there are none), no users.

    Raises:
        DataError: If there is no behaviors.tsv, too many lines are bad, or a line of news.tsv has other cells.
    """
    files = _find(Path(path))
    several = len(files) > 1
    parts = [_read_behaviors(file, f"{file.parent.name}-" if several else "", report, max_bad) for file in files]
    impressions = pl.concat(parts)
    shown = _shown(impressions, report)
    history = _history(impressions, shown, report)
    log = pl.concat([history, shown]).with_columns(pl.int_range(pl.len()).alias("row"))
    news = [file.with_name(NEWS) for file in files if file.with_name(NEWS).is_file()]
    items = pl.concat([_read_news(file) for file in news]).unique("item_id", keep="first", maintain_order=True) if news else None
    return log, items, None


def _find(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [path / BEHAVIORS] if (path / BEHAVIORS).is_file() else sorted(path.glob(f"*/{BEHAVIORS}"))
    if not found:
        got = "no behaviors.tsv" if path.is_dir() else "no such folder"
        expected = "a folder with behaviors.tsv and news.tsv, or a folder of such folders"
        raise DataError(f"{path} is not MIND data", got=got, expected=expected, todo="give the unpacked folder")
    return found


def _read_behaviors(path: Path, prefix: str, report: Report, max_bad: float) -> pl.DataFrame:
    """Impressions of one file: impression_id, user_id, timestamp, history and shown (texts)."""
    lines = read_lines(path).with_row_index("line", 1).filter(pl.col("text").str.strip_chars() != "")
    cells = pl.col("text").str.splitn("\t", len(_BEHAVIORS) + 1).struct.rename_fields([*_BEHAVIORS, "more"])
    table = lines.select("line", cells.alias("cells")).unnest("cells")
    time = pl.col("time").str.to_datetime(_TIME, strict=False, time_unit="us").dt.epoch("s")
    report.times = time_reading(table["time"], "s")
    table = table.with_columns(time.alias("timestamp"))
    whole = pl.col("shown").is_not_null() & pl.col("more").is_null()
    bad = table.filter(~(whole & pl.col("timestamp").is_not_null() & (pl.col("user_id") != "")).fill_null(False))
    if bad.height:
        line, wrong = bad["line"][0], bad["time"][0]
        fits = bool(bad.select(whole).to_series()[0])
        example = f"{path.name}, line {line}: " + (f"time or user {wrong!r}" if fits else "other than 5 cells")
        report.add("lines that are not an impression", bad.height, example, bad["line"].to_list())
        expected = "impression, user, time (11/15/2019 8:55:22 AM), history, items shown"
        Report().check(bad.height, table.height, (example, expected), max_bad)
        table = table.join(bad.select("line"), on="line", how="anti", maintain_order="left")
    named = pl.when(pl.col("impression_id") == "").then(pl.col("line").cast(pl.String)).otherwise(pl.col("impression_id"))
    return table.select((pl.lit(prefix) + named).alias("impression_id"), "user_id", "timestamp", "history", "shown")


def _shown(impressions: pl.DataFrame, report: Report) -> pl.DataFrame:
    """One event per item shown."""
    table = impressions.drop("history").with_columns(pl.col("shown").str.strip_chars().str.split(" ")).explode("shown")
    label = r"-([01])$"
    table = table.with_columns(
        pl.col("shown").str.replace(label, "").alias("item_id"), pl.col("shown").str.extract(label).cast(pl.Int8).alias("click")
    )
    unknown = table.filter(pl.col("click").is_null() | (pl.col("item_id") == ""))
    example = f"impression {unknown['impression_id'][0]}: {unknown['shown'][0]!r}" if unknown.height else ""
    report.add("items shown without a label", unknown.height, example)
    table = table.filter(pl.col("click").is_not_null() & (pl.col("item_id") != ""))
    if table.is_empty():
        got = unknown["shown"][0] if unknown.height else "no impression"
        raise DataError("no impression says what was clicked", got=repr(got), expected="items such as N55689-1 N35729-0")
    return table.select("user_id", "item_id", "timestamp", "click", "impression_id", pl.col("click").alias("clicked"))


def _history(impressions: pl.DataFrame, shown: pl.DataFrame, report: Report) -> pl.DataFrame:
    """One event per click before an impression, by the first impression whose list names it.

    A list that names an item for the k-th time tells of a k-th click on it, unless an earlier list did.
    """
    lists = impressions.filter(pl.col("history").str.strip_chars() != "").sort("timestamp", maintain_order=True)
    lists = lists.unique(["user_id", "history"], keep="first", maintain_order=True).with_row_index("list")
    clicks = lists.with_columns(pl.col("history").str.strip_chars().str.split(" ").alias("item_id")).explode("item_id")
    clicks = clicks.filter(pl.col("item_id") != "").with_columns(
        pl.int_range(pl.len()).over("list").alias("place"), pl.int_range(pl.len()).over("list", "item_id").alias("time")
    )
    clicks = clicks.unique(["user_id", "item_id", "time"], keep="first", maintain_order=True)
    later = shown.filter(pl.col("click") == 1).group_by("user_id", "item_id").agg(pl.col("timestamp").min().alias("before"))
    clicks = clicks.join(later, on=["user_id", "item_id"], how="left", maintain_order="left")
    clicks = clicks.filter((pl.col("before") >= pl.col("timestamp")).fill_null(True))
    from_end = pl.len().over("list") - pl.int_range(pl.len()).over("list")
    clicks = clicks.with_columns((pl.col("timestamp") - from_end).alias("when"))
    clicks = _between_impressions(clicks, impressions, report)
    number = pl.int_range(pl.len()).over("user_id")
    made = pl.format("h-{}-{}", "user_id", number).alias("impression_id"), pl.lit(None, pl.Int8).alias("clicked")
    return clicks.select("user_id", "item_id", pl.col("when").alias("timestamp"), pl.lit(1, pl.Int8).alias("click"), *made)


def _between_impressions(clicks: pl.DataFrame, impressions: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Leave out clicks for which there is no second between the impression that lists them and the user's one before it."""
    times = impressions.select("user_id", "timestamp").unique().sort("user_id", "timestamp")
    times = times.with_columns(pl.col("timestamp").shift(1).over("user_id").alias("previous"))
    placed = clicks.join(times, on=["user_id", "timestamp"], how="left", maintain_order="left")
    late = placed["when"] > placed["previous"].fill_null(-1)
    report.add("history clicks between two impressions without a second for them", int((~late).sum()))
    return placed.filter(late)


def _read_news(path: Path) -> pl.DataFrame:
    lines = read_lines(path).with_row_index("line", 1).filter(pl.col("text").str.strip_chars() != "")
    cells = lines.select("line", pl.col("text").str.split("\t").alias("cells"))
    wrong = cells.filter(pl.col("cells").list.len() < _NEWS.index("abstract") + 1)
    if wrong.height:
        line, found = wrong.row(0)
        raise DataError(f"{path.name}, line {line} does not fit", got=f"{len(found)} cells", expected=", ".join(_NEWS))
    table = cells.select(pl.col("cells").list.get(place, null_on_oob=True).alias(name) for place, name in enumerate(_NEWS))
    return table.select(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in _KEPT)
