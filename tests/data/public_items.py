"""Tables of items and users in the exact formats of public ones, and the row that the first item or user has to become."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from data.public_logs import ITEMS, USERS, printed


@dataclass(frozen=True)
class Table:
    """A table beside a log.

    Attributes:
        log: The kind of log in `LOGS`.
        option: items or users.
        file: The exact name.
        text: Its content, or a frame for Parquet.
        wanted: Columns and values of the row with the first id.
        gone: Columns that it must not have, since they were not known at the time of an event.
    """

    log: str
    option: str
    file: str
    text: str | pl.DataFrame
    wanted: dict[str, Any]
    gone: tuple[str, ...] = ()


def write_table(table: Table, folder: Path) -> Path:
    path = folder / table.file
    if isinstance(table.text, pl.DataFrame):
        table.text.write_parquet(path)
    else:
        data = table.text.encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(row: Callable[[int], dict[str, Any]], count: int = ITEMS) -> str:
    return "".join(json.dumps(row(n)) + "\n" for n in range(count))


def amazon() -> Table:
    def row(n: int) -> dict[str, Any]:
        return {
            "main_category": "All Beauty",
            "title": f"Howard &amp; Co. LC000{n}",
            "average_rating": 4.8,
            "rating_number": 10,
            "features": [],
            "description": ["A", "piece."],
            "price": "None" if n else 12.5,
            "images": [],
            "videos": [],
            "store": "Howard Products",
            "categories": ["Beauty", "Soap"],
            "details": {"Package": "1 x 1"},
            "parent_asin": f"B00YQ6X8E{n}",
            "bought_together": None,
        }

    wanted = {"item_id": "B00YQ6X8E0", "title": "Howard & Co. LC0000", "brand": "Howard Products", "price": 12.5}
    wanted |= {"categories": "Beauty, Soap", "description": "A piece."}
    return Table("amazon-csv", "items", "meta_Baby_Products.jsonl.gz", lines(row), wanted, ("average_rating", "rating_number"))


def yelp() -> Table:
    def row(n: int) -> dict[str, Any]:
        row = {
            "business_id": f"_QfwVwDr-v0ZS3_CbbE5X{n}",
            "name": f"Abby Rappoport, LAC {n}",
            "address": "1616 Chapala St, Ste 2",
        }
        row |= {"city": "Santa Barbara", "state": "CA", "postal_code": "93101", "latitude": 34.4, "longitude": -119.7}
        row |= {"stars": 5.0, "review_count": 7, "is_open": 0, "attributes": {"ByAppointmentOnly": "True"} if n % 2 else None}
        row |= {"categories": None if n == 1 else "Doctors, Acupuncture", "hours": {"Monday": "7:30-15:0"} if n % 2 else None}
        return row

    wanted = {"item_id": "_QfwVwDr-v0ZS3_CbbE5X0", "title": "Abby Rappoport, LAC 0", "categories": "Doctors, Acupuncture"}
    wanted |= {"city": "Santa Barbara"}
    return Table("yelp", "items", "yelp_academic_dataset_business.json", lines(row), wanted, ("stars", "review_count", "rating"))


def yelp_users() -> Table:
    def row(n: int) -> dict[str, Any]:
        row = {"user_id": f"-h_-eMZ6K5RLWhZyISBhw{n}", "name": "Walker", "review_count": 585, "elite": "2007"}
        return row | {"yelping_since": "2007-01-25 16:47:26", "friends": "a, b", "average_stars": 3.91, "compliment_hot": 250}

    wanted = {"user_id": "-h_-eMZ6K5RLWhZyISBhw0", "yelping_since": "2007-01-25 16:47:26"}
    return Table("yelp", "users", "yelp_academic_dataset_user.json", lines(row, USERS), wanted, ("average_stars", "friends"))


def steam() -> Table:
    """Prices are numbers or words; a game without a title has the name of its app; one has no id."""

    def row(n: int) -> dict[str, Any]:
        row = {
            "publisher": "Kotoshiro",
            "genres": ["Action", "Indie"],
            "app_name": f"Lost O'Summoner {n}",
            "title": f"Lost O'S {n}",
        }
        row |= {"url": f"http://store.steampowered.com/app/{725280 + n}/", "price": "Free To Play" if n == 3 else 4.99}
        row |= {"tags": ["Strategy", "Indie"], "early_access": False, "id": f"{725280 + n}", "sentiment": "Mostly Positive"}
        if n == 2:
            del row["title"]
        if n == 5:
            del row["id"]
        return row

    text = "".join(printed(row(n), "u") + "\n" for n in range(ITEMS))
    wanted = {"item_id": "725280", "title": "Lost O'S 0", "genres": ["Action", "Indie"]}
    return Table("steam", "items", "steam_games.json.gz", text, wanted, ("sentiment", "url", "app_name"))


def goodreads() -> Table:
    """Everything is a text, empty where nothing is known; lists of objects."""

    def row(n: int) -> dict[str, Any]:
        row = {"isbn": "", "text_reviews_count": "1", "series": [], "country_code": "US", "language_code": "", "asin": ""}
        row |= {"popular_shelves": [{"count": "3", "name": "to-read"}], "is_ebook": "false", "average_rating": "4.00"}
        row |= {"similar_books": [], "description": "A life." if n else "", "format": "Paperback", "publisher": "St. Martin's"}
        row |= {"authors": [{"author_id": "604031", "role": ""}], "num_pages": "256" if n < 5 else "", "publication_year": "1984"}
        return row | {"book_id": f"{24375660 + n}", "ratings_count": "3", "title": "W.C. Fields: A Life on Film", "work_id": "1"}

    wanted = {"item_id": "24375660", "title": "W.C. Fields: A Life on Film", "num_pages": 256, "publisher": "St. Martin's"}
    gone = ("average_rating", "ratings_count", "popular_shelves")
    return Table("goodreads", "items", "goodreads_books_poetry.json.gz", lines(row), wanted, gone)


def kuairec() -> Table:
    head = "video_id,manual_cover_text,caption,topic_tag,first_level_category_id,first_level_category_name\n"
    rows = [
        f'{3649 + n},{"UNKNOWN" if n else "封面"},"caption, with\n""comma"" {n}",{"[]" if n else "[美食]"},27,生活\n'
        for n in range(ITEMS)
    ]
    wanted = {"item_id": "3649", "title": "封面", "description": 'caption, with\n"comma" 0', "tags": "[美食]"}
    return Table("kuairec", "items", "kuairec_caption_category.csv", head + "".join(rows), wanted)


def hm() -> Table:
    head = "article_id,product_code,prod_name,product_type_no,product_type_name,colour_group_code,colour_group_name,detail_desc\n"
    rows = [
        f'066371300{n},0663713,Atlanta Push Body,283,Underwear body,09,Black,"Lace push-up body, and ""more"""\n'
        for n in range(ITEMS)
    ]
    wanted = {"item_id": "0663713000", "title": "Atlanta Push Body", "category": "Underwear body", "colour_group_name": "Black"}
    wanted |= {"description": 'Lace push-up body, and "more"'}
    return Table("hm", "items", "articles.csv", head + "".join(rows), wanted)


def hm_users() -> Table:
    head = "customer_id,FN,Active,club_member_status,fashion_news_frequency,age,postal_code\n"
    start = "000058a12d5b43e67d225668fa1f8d618c13dc232df0cad8ffe7ad4a1091e31"
    rows = [f"{start}{n},{'1.0' if n else ''},,ACTIVE,NONE,{49 if n < 3 else ''},52043ee2162cf5aa\n" for n in range(USERS)]
    return Table("hm", "users", "customers.csv", head + "".join(rows), {"user_id": f"{start}0", "age": 49, "FN": None})


def diginetica() -> Table:
    """Words of names as numbers with commas between."""
    rows = [f"{81760 + n};{8 + n};4875,77{n}\n" for n in range(ITEMS)]
    wanted = {"item_id": "81760", "title": "4875,770", "pricelog2": 8}
    return Table("diginetica", "items", "products.csv", "itemId;pricelog2;product.name.tokens\n" + "".join(rows), wanted)


def lastfm() -> Table:
    rows = [f"user_00000{n}\tm\t{20 + n if n else ''}\tJapan\tAug 13, 2006\n" for n in range(USERS)]
    wanted = {"user_id": "user_000000", "gender": "m", "age": None, "country": "Japan", "registered": "Aug 13, 2006"}
    return Table("lastfm", "users", "userid-profile.tsv", "#id\tgender\tage\tcountry\tregistered\n" + "".join(rows), wanted)


def yambda() -> Table:
    frame = pl.DataFrame(
        {"item_id": [6_928_390 + n for n in range(ITEMS)], "embed": [[0.5 * n, 1.0] for n in range(ITEMS)]},
        schema={"item_id": pl.UInt32, "embed": pl.List(pl.Float64)},
    )
    return Table("yambda-listens", "items", "embeddings.parquet", frame, {"item_id": "6928390", "embed": [0.0, 1.0]})


TABLES: dict[str, Callable[[], Table]] = {
    "amazon": amazon,
    "amazon-beauty": lambda: replace(amazon(), log="amazon", file="meta_All_Beauty.jsonl.gz"),
    "diginetica": diginetica,
    "goodreads": goodreads,
    "hm": hm,
    "hm-users": hm_users,
    "kuairec": kuairec,
    "lastfm-users": lastfm,
    "steam": steam,
    "yambda": yambda,
    "yelp": yelp,
    "yelp-users": yelp_users,
}
