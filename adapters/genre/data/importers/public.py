"""Public logs that import by name: a description of each. What was seen of the real files is in docs/formats.md.

Owns: the columns, times, orders and quirks of each format. Ignores how a description is applied (`genre.data.importers.named`).

    genre data import yoochoose-clicks.dat --out data/yoochoose        the name of the file says what it is
    genre data import events.csv --format retailrocket --out data/rr   the name says nothing
"""

import polars as pl

from genre.data.importers.named import Format, Log, Side
from genre.data.schema import Report

_YEARLESS = r"^Posted (\w+ \d{1,2})\.$"
_DATED = r"^Posted (\w+ \d{1,2}), (\d{4})\.$"


def _tracks(table: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Name tracks without an id by their artist and title: a tenth of all plays have none."""
    named = pl.concat_str(pl.col("artist"), pl.col("title"), separator=" – ")
    lacking = int(table["track"].is_null().sum())
    report.note(f"{lacking:,} of {table.height:,} plays have no track id: their item is 'artist – title'" if lacking else "")
    return table.with_columns(pl.coalesce("track", named).alias("track"))


def _posted(table: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Dates as days: of the year of the crawl Steam names none, which is the year after the latest that is named."""
    if "posted" not in table.columns:
        return table
    posted = table["posted"].cast(pl.String)
    latest = posted.str.extract(_DATED, 2).cast(pl.Int32, strict=False).max()
    named = posted.str.replace(_DATED, "$1 $2")
    if latest is not None:
        crawl = int(latest) + 1  # type: ignore[arg-type]
        yearless = int(posted.str.contains(_YEARLESS).fill_null(False).sum())
        what = f"{yearless:,} of {len(posted):,} dates name no year, as Steam writes those of the year of the crawl"
        report.note(f"{what}: read as {crawl}, the year after the latest named" if yearless else "")
        named = named.str.replace(_YEARLESS, f"$1 {crawl}")
    days = named.str.to_date("%B %d %Y", strict=False).cast(pl.String)
    return table.with_columns(pl.coalesce(days, posted).alias("posted"))


def _seconds(table: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Whole numbers are seconds from a day that nobody tells, never days such as 20240301."""
    if "timestamp" not in table.columns or not table["timestamp"].dtype.is_integer():
        return table
    report.times = "seconds from a day that Yambda does not tell, as if that were 1970-01-01"
    return table.with_columns(pl.from_epoch(pl.col("timestamp").cast(pl.Int64), time_unit="s"))


def _known(table: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Make cells empty that say that nothing is known."""
    texts = [name for name, dtype in table.schema.items() if dtype == pl.String]
    return table.with_columns(pl.when(~pl.col(name).is_in(["UNKNOWN", "[]"])).then(pl.col(name)).alias(name) for name in texts)


def _titled(table: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Games of Steam without a title have the name of their app."""
    if not {"title", "app_name"} <= set(table.columns):
        return table
    return table.with_columns(pl.coalesce("title", "app_name").alias("title"))


_AMAZON = Format(
    sure=(),
    parts=True,
    logs=(
        Log(
            names=("*.train.csv", "*.valid.csv", "*.test.csv", "*.csv"),
            mapping={"user_id": "user_id", "item_id": "parent_asin", "rating": "rating", "timestamp": "timestamp"},
            dropped=("history",),
            time_unit="ms",
        ),
    ),
)

_YELP = Format(
    sure=("yelp_academic_dataset_review.json",),
    logs=(
        Log(
            names=("*review*.json",),
            mapping={"user_id": "user_id", "item_id": "business_id", "rating": "stars", "timestamp": "date"},
            dropped=("review_id", "text", "useful", "funny", "cool"),  # votes came later
        ),
    ),
    items=Side(
        mapping={"item_id": "business_id", "title": "name"},
        dropped=("stars", "review_count", "is_open", "attributes", "hours", "address", "postal_code"),
    ),
    users=Side(
        mapping={"user_id": "user_id"},
        dropped=(
            *("name", "review_count", "useful", "funny", "cool", "fans", "average_stars", "friends", "elite"),
            *("compliment_hot", "compliment_more", "compliment_profile", "compliment_cute", "compliment_list"),
            *("compliment_note", "compliment_plain", "compliment_cool", "compliment_funny", "compliment_writer"),
            "compliment_photos",
        ),
    ),
)

_STEAM = Format(
    sure=("steam_reviews.json", "steam_new.json", "australian_user_reviews.json"),
    logs=(
        Log(
            names=("steam_reviews*.json", "steam_new.json"),
            mapping={"user_id": "username", "item_id": "product_id", "timestamp": "date"},
            dropped=("text", "page", "page_order", "found_funny", "found_helpful", "found_unhelpful", "compensation"),
        ),
        Log(
            names=("australian_user_reviews.json",),
            marks=("user_id", "reviews"),
            mapping={"user_id": "user_id", "item_id": "item_id", "rating": "recommend", "timestamp": "posted"},
            dropped=("review", "funny", "helpful", "last_edited", "user_url"),
            prepare=_posted,
        ),
    ),
    items=Side(
        mapping={"item_id": "id"},
        dropped=("app_name", "url", "reviews_url", "sentiment", "metascore", "discount_price"),
        prepare=_titled,
    ),
)

_GOODREADS = Format(
    sure=("goodreads_interactions*.json", "goodreads_reviews*.json"),
    logs=(
        Log(
            names=("goodreads_interactions*.json", "goodreads_reviews*.json"),
            mapping={"user_id": "user_id", "item_id": "book_id", "rating": "rating", "timestamp": "date_added"},
            dropped=(
                *("review_id", "review_text", "review_text_incomplete", "date_updated", "read_at", "started_at"),
                *("n_votes", "n_comments"),
            ),
            missing=(("rating", "0"),),
        ),
    ),
    items=Side(
        mapping={"item_id": "book_id"},
        dropped=(
            *("isbn", "isbn13", "asin", "kindle_asin", "work_id", "url", "link", "image_url", "title_without_series"),
            *("average_rating", "ratings_count", "text_reviews_count", "popular_shelves", "similar_books"),
            *("series", "authors", "country_code", "edition_information", "publication_day", "publication_month"),
        ),
    ),
)

_KUAIREC = Format(
    sure=("big_matrix.csv", "small_matrix.csv"),
    logs=(
        Log(
            names=("big_matrix.csv", "small_matrix.csv"),
            mapping={"user_id": "user_id", "item_id": "video_id", "rating": "watch_ratio", "timestamp": "timestamp"},
            dropped=("time", "date"),  # of China, where `timestamp` is UTC
        ),
    ),
    items=Side(
        mapping={"item_id": "video_id", "title": "manual_cover_text", "description": "caption", "tags": "topic_tag"},
        prepare=_known,
    ),
)

_YAMBDA_KEYS = {"user_id": "uid", "item_id": "item_id", "timestamp": "timestamp"}
_YAMBDA = Format(
    sure=(),
    logs=(
        Log(names=("multi_event*.parquet",), mapping=_YAMBDA_KEYS | {"behaviour": "event_type"}, prepare=_seconds),
        Log(names=("listens*.parquet",), mapping=_YAMBDA_KEYS | {"rating": "played_ratio_pct"}, prepare=_seconds),
        Log(names=("likes*.parquet", "dislikes*.parquet", "un*likes*.parquet"), mapping=_YAMBDA_KEYS, prepare=_seconds),
    ),
)

_HM = Format(
    sure=("transactions_train.csv",),
    logs=(
        Log(
            names=("transactions_train*.csv",),
            mapping={"user_id": "customer_id", "item_id": "article_id", "timestamp": "t_dat"},
        ),
    ),
    items=Side(
        mapping={
            "item_id": "article_id",
            "title": "prod_name",
            "description": "detail_desc",
            "category": "product_type_name",
        },
        dropped=(
            *("product_code", "product_type_no", "graphical_appearance_no", "colour_group_code", "department_no"),
            *("perceived_colour_value_id", "perceived_colour_master_id", "index_code", "index_group_no", "section_no"),
            "garment_group_no",
        ),
    ),
    users=Side(mapping={"user_id": "customer_id"}),
)

_OTTO_KEYS = {"user_id": "session", "item_id": "aid", "behaviour": "type", "timestamp": "ts"}
_OTTO = Format(
    sure=("otto-recsys-train.jsonl", "otto-recsys-test.jsonl"),
    parts=True,
    logs=(
        Log(
            names=("otto-recsys-train.jsonl", "train*.jsonl", "otto-recsys-test.jsonl", "test*.jsonl"),
            marks=("session", "events"),
            mapping=_OTTO_KEYS,
            time_unit="ms",
        ),
        Log(marks=("session", "aid"), mapping=_OTTO_KEYS),  # a row per event, as Parquet copies have it, in seconds
    ),
)

_REES46 = Format(
    sure=(),
    parts=True,
    logs=(
        Log(
            names=("20[12][0-9]-[a-z][a-z][a-z]*.csv",),
            mapping={
                "user_id": "user_id",
                "item_id": "product_id",
                "behaviour": "event_type",
                "timestamp": "event_time",
                "category": "category_code",
            },
            item_columns=("category", "brand", "category_id"),
        ),
    ),
)

_YOOCHOOSE = Format(
    sure=("yoochoose-clicks.dat", "yoochoose-buys.dat"),
    parts=True,
    logs=(
        Log(
            names=("yoochoose-clicks*",),
            columns=("session", "time", "item", "category"),
            mapping={"user_id": "session", "item_id": "item", "timestamp": "time"},
            constants={"behaviour": "click"},
            separator=",",
            item_columns=(),  # the category is the page's: "S" for a special offer
        ),
        Log(
            names=("yoochoose-buys*",),
            columns=("session", "time", "item", "price", "quantity"),
            mapping={"user_id": "session", "item_id": "item", "timestamp": "time"},
            constants={"behaviour": "buy"},
            separator=",",
            item_columns=(),
        ),
    ),
)

_DIGINETICA_KEYS = {"user_id": "sessionId", "item_id": "itemId", "timestamp": "eventdate"}
_DIGINETICA = Format(
    sure=("train-item-views.csv", "train-purchases.csv"),
    parts=True,
    logs=tuple(
        Log(
            names=(f"train-{what}.csv",),
            mapping=_DIGINETICA_KEYS,
            constants={"behaviour": behaviour},
            dropped=("userId",),  # NA in most rows
            order="timeframe",
            separator=";",
        )
        for what, behaviour in (("item-views", "view"), ("purchases", "purchase"))
    ),
    items=Side(mapping={"item_id": "itemId", "title": "product.name.tokens"}, separator=";"),
)

_LASTFM = Format(
    sure=("userid-timestamp-artid-artname-traid-traname.tsv",),
    logs=(
        Log(
            names=("userid-timestamp-*.tsv",),
            columns=("user", "time", "artist_id", "artist", "track", "title"),
            mapping={"user_id": "user", "item_id": "track", "timestamp": "time"},
            separator="\t",
            quote="none",
            item_columns=("title", "artist", "artist_id"),
            prepare=_tracks,
        ),
    ),
    users=Side(mapping={"user_id": "#id"}),
)

_RETAILROCKET = Format(
    sure=(),
    logs=(
        Log(
            names=("events*.csv",),
            mapping={"user_id": "visitorid", "item_id": "itemid", "behaviour": "event", "timestamp": "timestamp"},
            time_unit="ms",
        ),
    ),
)

PUBLIC = {
    "amazon": _AMAZON,  # its CSV files; JSON lines have a reader of their own
    "diginetica": _DIGINETICA,
    "goodreads": _GOODREADS,
    "hm": _HM,
    "kuairec": _KUAIREC,
    "lastfm": _LASTFM,
    "otto": _OTTO,
    "rees46": _REES46,
    "retailrocket": _RETAILROCKET,
    "steam": _STEAM,
    "yambda": _YAMBDA,
    "yelp": _YELP,
    "yoochoose": _YOOCHOOSE,
}
"""Formats by the name that `--format` takes."""
