"""Small logs in the exact formats of public ones, their quirks in them, and what each has to be imported as.

`LOGS` names a maker for each kind of file: its rows as the real file has them, and the events that they are. `write_log` writes
them, plain or in a variant that people meet: under gzip, with empty cells, with a bad row, in another order, with CRLF, with one
more column.

    kind = LOGS["retailrocket"]()
    write_log(kind, folder, "crlf")     events.csv: timestamp,visitorid,event,itemid,transactionid
    kind.wanted()                       {"257590": [("355900", 1433221332117000, "view"), …], …}
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

EVENTS, USERS, ITEMS = 40, 5, 7
BAD = 11  # the row that is bad in the variant of this name
FIRST = 1_567_300_000  # seconds: 2019-09-01
CUSTOMER = "000058a12d5b43e67d225668fa1f8d618c13dc232df0cad8ffe7ad4a1091e31"  # and a letter
VARIANTS = ("plain", "gz", "missing", "bad", "shuffled", "crlf", "extra")


Event = tuple[dict[str, Any], str, str, int, Any]
"""A row as the file has it, and the user, item, microseconds and feedback that it is."""

Nest = Callable[[str, list[dict[str, Any]]], dict[str, Any]]
"""Makes one row of a user's events."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        format: What `--format` takes.
        file: The exact name.
        style: csv, json (lines), python (lines of dicts), parquet.
        events: In each user's order.
        optional: A column that may be empty.
        time: The column of times.
        feedback: Our name for the feedback, if there is any.
        separator: Of a CSV.
        header: False if a CSV has none.
        quoted: False if quotes mean nothing.
        newest_first: The file has the events in this order.
        nest: For a file with a user per row.
        dtypes: Of Parquet.
    """

    format: str
    file: str
    style: str
    events: list[Event]
    optional: str
    time: str
    feedback: str | None = None
    separator: str = ","
    header: bool = True
    quoted: bool = True
    newest_first: bool = False
    nest: Nest | None = None
    dtypes: dict[str, pl.DataType] = field(default_factory=dict)

    def wanted(self, but: int | None = None) -> dict[str, list[tuple[str, int, Any]]]:
        """(item, microseconds, feedback) of each user's events, in order, without that of one row."""
        wanted: dict[str, list[tuple[str, int, Any]]] = {}
        for n, (_, user, item, time, feedback) in enumerate(self.events):
            if n != but:
                wanted.setdefault(user, []).append((item, time, feedback))
        return wanted


def steps(step_us: int, first: int = FIRST) -> Iterator[tuple[int, int, int, int]]:
    """(n, user, item, microseconds) of each event."""
    for n in range(EVENTS):
        yield n, n % USERS, (3 * n) % ITEMS, first * 1_000_000 + n * step_us


def utc(us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)


def amazon() -> Kind:
    events = [
        (
            {
                "rating": float(1 + n % 5),
                "title": 'A "must", truly',
                "text": "Scent, not overpowering.<br />Yes",
                "images": [],
                "asin": f"B07{i:07}",
                "parent_asin": f"B00YQ6X8E{i}",
                "user_id": f"AGKHLEW2SOWHNMFQIJGBECAF7IN{u}",
                "timestamp": t // 1000,
                "helpful_vote": 0,
                "verified_purchase": n % 3 > 0,
            },
            f"AGKHLEW2SOWHNMFQIJGBECAF7IN{u}",
            f"B00YQ6X8E{i}",
            t,
            1 + n % 5,
        )
        for n, u, i, t in steps(400_000)
    ]
    return Kind("amazon", "All_Beauty.jsonl", "json", events, optional="helpful_vote", time="timestamp", feedback="rating")


def amazon_csv() -> Kind:
    events, seen = [], {}
    for n, u, i, t in steps(400_000):
        user, item = f"AGKHLEW2SOWHNMFQIJGBECAF7IN{u}", f"B00YQ6X8E{i}"
        row = {"user_id": user, "parent_asin": item, "rating": f"{1 + n % 5}.0", "timestamp": t // 1000}
        events.append((row | {"history": " ".join(seen.get(user, []))}, user, item, t, 1 + n % 5))
        seen.setdefault(user, []).append(item)
    options = {"optional": "history", "time": "timestamp", "feedback": "rating"}
    return Kind("amazon", "Baby_Products.train.csv", "csv", events, **options)


def yelp() -> Kind:
    events = [
        (
            {
                "review_id": f"KU_O5udG6zpxOg-VcAEod{n}",
                "user_id": f"-h_-eMZ6K5RLWhZyISBhw{u}",
                "business_id": f"_QfwVwDr-v0ZS3_CbbE5X{i}",
                "stars": float(1 + n % 5),
                "useful": n,
                "funny": 0,
                "cool": 0,
                "text": 'If you decide to eat here,\nbe aware: "2 hours". It\u0027s slow',
                "date": f"{utc(t):%Y-%m-%d %H:%M:%S}",
            },
            f"-h_-eMZ6K5RLWhZyISBhw{u}",
            f"_QfwVwDr-v0ZS3_CbbE5X{i}",
            t,
            1 + n % 5,
        )
        for n, u, i, t in steps(7_000_000)
    ]
    options = {"optional": "cool", "time": "date", "feedback": "rating"}
    return Kind("yelp", "yelp_academic_dataset_review.json", "json", events, **options)


def steam() -> Kind:
    """Lines that Python 2 printed; a name with a quote has double quotes around it; days."""
    events = []
    for n, u, i, t in steps(86_400_000_000, FIRST // 86_400 * 86_400):
        user = f"Chaos O'Syren {u}" if u % 2 else f"坂本 {u}"
        row = {"username": user, "hours": n / 10, "products": 41, "product_id": f"{725280 + i}", "page_order": n % 10}
        row |= {"date": f"{utc(t):%Y-%m-%d}", "text": "This would not be \"acceptable\" as 'entertainment'.\n", "page": 1}
        events.append((row | {"early_access": n % 4 == 0}, user, f"{725280 + i}", t, None))
    return Kind("steam", "steam_reviews.json", "python", events, optional="hours", time="date")


def steam_australian() -> Kind:
    """A user a line; dates as a page shows them, without a year in the year of the crawl."""
    events = []
    for n, u, i, t in steps(10 * 86_400_000_000, 1_420_070_400):  # 2015-01-01, 400 days
        day = utc(t)
        posted = f"{day:%B} {day.day}" + ("." if day.year == 2016 else f", {day.year}.")
        row = {"funny": "", "posted": f"Posted {posted}", "last_edited": "", "item_id": f"{1250 + i}"}
        row |= {"helpful": "No ratings yet", "recommend": n % 3 > 0, "review": 'Simple yet with "great" replayability. It\'s'}
        events.append((row, f"7656119797098247{u}", f"{1250 + i}", t, int(n % 3 > 0)))
    options = {"optional": "funny", "time": "posted", "feedback": "rating", "nest": australian}
    return Kind("steam", "australian_user_reviews.json", "python", events, **options)


def australian(user: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"user_id": user, "user_url": f"http://steamcommunity.com/profiles/{user}", "reviews": rows}


def goodreads() -> Kind:
    """Dates as ctime has them with an offset, which changes with summer time; 0 stars are none."""
    events = []
    for n, u, i, t in steps(777_661_000_000, 1_500_000_000):
        local = utc(t) - timedelta(hours=7 + n % 2)
        row = {"user_id": f"8842281e1d1347389f2ab93d6077373{u}", "book_id": f"{24375660 + i}", "review_id": f"5cf416f{n:04}"}
        row |= {"is_read": True, "rating": 1 + n % 5, "review_text_incomplete": "", "date_updated": ""}
        row |= {"date_added": f"{local:%a %b %d %H:%M:%S} -0{7 + n % 2}00 {local:%Y}", "read_at": "", "started_at": ""}
        events.append((row, row["user_id"], row["book_id"], t, 1 + n % 5))
    options = {"optional": "date_updated", "time": "date_added", "feedback": "rating"}
    return Kind("goodreads", "goodreads_interactions_poetry.json", "json", events, **options)


def kuairec() -> Kind:
    """Float seconds in UTC beside a time and a day of China."""
    events = []
    for n, u, i, t in steps(400_000):
        local = utc(t) + timedelta(hours=8)
        row = {"user_id": u, "video_id": 3649 + i, "play_duration": 13838, "video_duration": 10867}
        row |= {"time": f"{local:%Y-%m-%d %H:%M:%S.%f}"[:-3], "date": f"{local:%Y%m%d}", "timestamp": f"{t / 1e6:.3f}"}
        events.append((row | {"watch_ratio": f"{n / 8:.6f}"}, str(u), str(3649 + i), t, n / 8))
    return Kind("kuairec", "big_matrix.csv", "csv", events, optional="time", time="timestamp", feedback="rating")


_YAMBDA = {"uid": pl.UInt32(), "timestamp": pl.UInt32(), "item_id": pl.UInt32(), "is_organic": pl.UInt8()}


def yambda(file: str, feedback: str | None = None) -> Kind:
    """Seconds since an unknown day in steps of five; here they look like days as numbers: 20,230,405."""
    events = []
    for n, u, i, t in steps(5_000_000, 20_230_105):
        row = {"uid": 10 * u, "timestamp": t // 1_000_000, "item_id": 6_928_390 + i, "is_organic": n % 2}
        wanted = None
        if feedback is not None:
            row |= {"played_ratio_pct": 30 + n * 3, "track_length_seconds": 210}
            wanted = 30 + n * 3
        if feedback == "behaviour":
            wanted = row["event_type"] = "like" if n % 4 == 0 else "listen"
            row |= {"played_ratio_pct": None if n % 4 == 0 else row["played_ratio_pct"]}
        events.append((row, str(10 * u), str(row["item_id"]), t, wanted))
    types = _YAMBDA | {"played_ratio_pct": pl.UInt16(), "track_length_seconds": pl.UInt32()}
    types["event_type"] = pl.Enum(["listen", "like", "dislike", "unlike", "undislike"])
    options = {"optional": "is_organic", "time": "timestamp", "feedback": feedback, "dtypes": types}
    return Kind("yambda", file, "parquet", events, **options)


def yambda_sequential() -> Kind:
    """A user a row, lists in the other columns."""
    flat = yambda("listens.parquet", "rating")
    return replace(flat, nest=listed)


def listed(user: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: rows[0][name] if name == "uid" else [row[name] for row in rows] for name in rows[0]}


def hm() -> Kind:
    """Days; article numbers with leading zeros."""
    events = []
    for n, u, i, t in steps(86_400_000_000, FIRST // 86_400 * 86_400):
        row = {
            "t_dat": f"{utc(t):%Y-%m-%d}",
            "customer_id": f"000058a12d5b43e67d225668fa1f8d618c13dc232df0cad8ffe7ad4a1091e31{u}",
        }
        row |= {"article_id": f"066371300{i}", "price": "0.050830508474576264", "sales_channel_id": 1 + n % 2}
        events.append((row, row["customer_id"], row["article_id"], t, None))
    return Kind("hm", "transactions_train.csv", "csv", events, optional="price", time="t_dat")


def otto() -> Kind:
    """A session a line, with its events, milliseconds."""
    events = [
        (
            {"aid": 1517085 + i, "ts": t // 1000, "type": ("clicks", "carts", "orders")[n % 3]},
            str(12899779 + u),
            str(1517085 + i),
            t,
            ("clicks", "carts", "orders")[n % 3],
        )
        for n, u, i, t in steps(400_000)
    ]
    options = {"optional": "", "time": "ts", "feedback": "behaviour", "nest": session}
    return Kind("otto", "otto-recsys-train.jsonl", "json", events, **options)


def session(user: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"session": int(user), "events": rows}


def rees46() -> Kind:
    """A zone in letters; a category of 19 digits; empty category codes and brands."""
    events = []
    for n, u, i, t in steps(1_000_000):
        row = {"event_time": f"{utc(t):%Y-%m-%d %H:%M:%S} UTC", "event_type": ("view", "cart", "purchase")[n % 3]}
        row |= {"product_id": 44600060 + i, "category_id": 2103807459595387724 + i % 2}
        row |= {"category_code": "" if i % 2 else "appliances.environment.water_heater", "brand": "" if i == 3 else "shiseido"}
        row |= {"price": f"{35 + n}.79", "user_id": 541312140 + u, "user_session": f"72d76fde-8bb3-4e00-8c23-a032dfed738{u}"}
        events.append((row, str(row["user_id"]), str(row["product_id"]), t, row["event_type"]))
    options = {"optional": "price", "time": "event_time", "feedback": "behaviour"}
    return Kind("rees46", "2019-Oct.csv", "csv", events, **options)


def yoochoose(what: str) -> Kind:
    """No header; times with milliseconds and a Z."""
    events = []
    for n, u, i, t in steps(400_000):
        row = {"session": 420370 + u, "time": f"{utc(t):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z", "item": 214536500 + i}
        row |= {"category": ("0", "S", "12", "2089046289")[n % 4]} if what == "click" else {"price": 12462, "quantity": 1}
        events.append((row, str(row["session"]), str(row["item"]), t, what))
    optional = "category" if what == "click" else "price"
    options = {"optional": optional, "time": "time", "feedback": "behaviour", "header": False}
    return Kind("yoochoose", f"yoochoose-{what}s.dat", "csv", events, **options)


def diginetica() -> Kind:
    """Semicolons; a day, and milliseconds since the session began; users that are NA."""
    events = []
    for n, u, i, _ in steps(0):
        row = {"sessionId": 1 + u, "userId": "NA" if u % 4 else 7, "itemId": 81760 + i, "timeframe": 526309 - 5000 + 131 * n}
        row |= {"eventdate": f"2016-05-0{1 + u}"}
        events.append((row, str(1 + u), str(81760 + i), (1_462_060_800 + 86_400 * u) * 1_000_000, "view"))
    options = {"optional": "userId", "time": "eventdate", "feedback": "behaviour", "separator": ";"}
    return Kind("diginetica", "train-item-views.csv", "csv", events, **options)


def lastfm() -> Kind:
    """No header, newest first, quotes that are text, tracks without an id."""
    titles = ('"Heroes" (Single Version)', '"Live at Leeds', "Parolibre (Live_2009_4_15)", "Don't", 'Bibo "No" Aozora')
    events = []
    for _, u, i, t in steps(61_000_000):
        title, known = f"{titles[i % 5]} {i}", i % 3 > 0
        row = {"user": f"user_00000{u}", "time": f"{utc(t):%Y-%m-%dT%H:%M:%SZ}", "artist_id": f"a7f7df4a-77d8-{i:04}"}
        row |= {"artist": '"Weird" 坂本龍一', "track": f"f7c1f8f8-b935-{i:04}" if known else "", "title": title}
        events.append((row, row["user"], row["track"] if known else f'"Weird" 坂本龍一 – {title}', t, None))
    return Kind(
        "lastfm",
        "userid-timestamp-artid-artname-traid-traname.tsv",
        "csv",
        events,
        optional="artist_id",
        time="time",
        separator="\t",
        header=False,
        quoted=False,
        newest_first=True,
    )


def retailrocket() -> Kind:
    events = []
    for n, u, i, t in steps(400_000):
        event = ("view", "addtocart", "transaction")[n % 3]
        row = {"timestamp": t // 1000, "visitorid": 257590 + u, "event": event, "itemid": 355900 + i}
        row["transactionid"] = 4000 + n if event == "transaction" else ""
        events.append((row, str(row["visitorid"]), str(row["itemid"]), t, event))
    options = {"optional": "transactionid", "time": "timestamp", "feedback": "behaviour"}
    return Kind("retailrocket", "events.csv", "csv", events, **options)


LOGS: dict[str, Callable[[], Kind]] = {
    "amazon": amazon,
    "amazon-csv": amazon_csv,
    "diginetica": diginetica,
    "goodreads": goodreads,
    "hm": hm,
    "kuairec": kuairec,
    "lastfm": lastfm,
    "otto": otto,
    "rees46": rees46,
    "retailrocket": retailrocket,
    "steam": steam,
    "steam-australian": steam_australian,
    "yambda-likes": lambda: yambda("likes.parquet"),
    "yambda-listens": lambda: yambda("listens.parquet", "rating"),
    "yambda-multi": lambda: yambda("multi_event.parquet", "behaviour"),
    "yambda-sequential": yambda_sequential,
    "yelp": yelp,
    "yoochoose-clicks": lambda: yoochoose("click"),
    "yoochoose-buys": lambda: yoochoose("buy"),
}


def varied(kind: Kind, variant: str) -> list[dict[str, Any]]:
    """The rows of a variant."""
    events = [(user, dict(row)) for row, user, *_ in kind.events]
    for n, (_, row) in enumerate(events):
        if variant == "missing" and kind.optional and n % 5 == 0:
            row[kind.optional] = "" if kind.style == "csv" else None
        if variant == "bad" and n == BAD:
            row[kind.time] = "soon" if kind.style != "parquet" else None
        if variant == "extra":
            row["channel"] = f"c{n % 3}"
    if variant == "shuffled":
        events = events[1::2] + events[::2]
    events = events[::-1] if kind.newest_first else events
    if kind.nest is None:
        return [row for _, row in events]
    users = list(dict.fromkeys(user for user, _ in events))
    return [kind.nest(user, [row for owner, row in events if owner == user]) for user in users]


def write_log(kind: Kind, folder: Path, variant: str = "plain") -> Path:
    """Write a log, and return its path."""
    rows = varied(kind, variant)
    path = folder / kind.file
    if kind.style == "parquet":
        names = list(dict.fromkeys(name for row in rows for name in row))
        types = {name: kind.dtypes.get(name, pl.String()) for name in names}
        types = {name: pl.List(dtype) if isinstance(rows[0][name], list) else dtype for name, dtype in types.items()}
        pl.DataFrame(rows, schema=types).write_parquet(path, compression="gzip" if variant == "gz" else "zstd")
        return path
    end = "\r\n" if variant == "crlf" else "\n"
    lines = {"csv": csv_lines, "json": json_lines, "python": python_lines}[kind.style](kind, rows)
    data = "".join(line + end for line in lines).encode()
    if variant == "gz":
        path, data = path.with_name(f"{path.name}.gz"), gzip.compress(data)
    path.write_bytes(data)
    return path


def csv_lines(kind: Kind, rows: list[dict[str, Any]]) -> list[str]:
    cells = [list(rows[0])] * kind.header + [list(row.values()) for row in rows]
    if not kind.quoted:
        return [kind.separator.join(map(str, row)) for row in cells]
    text = io.StringIO()
    csv.writer(text, delimiter=kind.separator, lineterminator="\n").writerows(cells)
    return text.getvalue().splitlines()


def json_lines(kind: Kind, rows: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(row) for row in rows]


def python_lines(kind: Kind, rows: list[dict[str, Any]]) -> list[str]:
    """As Python 2 printed a dict of unicode texts; the crawl of Australia is of plain ones."""
    mark = "" if kind.nest else "u"
    return [printed(row, mark) for row in rows]


def printed(value: Any, mark: str) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{printed(key, mark)}: {printed(cell, mark)}" for key, cell in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(printed(part, mark) for part in value) + "]"
    return mark + (ascii(value) if mark else repr(value)) if isinstance(value, str) else repr(value)
