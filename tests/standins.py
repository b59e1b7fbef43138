"""Small stand-ins for what the README and the recipes name: MovieLens-100K with its columns, and a base of eight layers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl

from fakes import make_base, planted_log
from genre.data.interactions import Interactions

ROOT = Path(__file__).parent.parent
GENRES = ("Drama, War", "Comedy, Romance")
ITEMS = [*range(40, 60), *range(170, 190)]
USERS = range(150, 210)
KNOWN = {50: "Star Wars: ", 172: "Empire Strikes Back, The: ", 181: "Return of the Jedi: "}


def movies() -> Interactions:
    """60 users and 40 films under MovieLens' ids, "196", "50" and "181" among them, with the columns of ML-100K."""
    log = planted_log(users=len(USERS), items=len(ITEMS), events=20)
    of_item = {f"i{i}": str(item) for i, item in enumerate(ITEMS)}
    of_user = {f"u{i}": str(user) for i, user in enumerate(USERS)}
    frame = log.frame.with_columns(pl.col("user_id").replace(of_user), pl.col("item_id").replace(of_item)).drop("row")
    items = {
        "item_id": [str(item) for item in ITEMS],
        "title": [f"{KNOWN.get(item, '')}{'Battle' if i % 2 else 'Wedding'} {item}" for i, item in enumerate(ITEMS)],
        "year": [1950 + i for i in range(len(ITEMS))],
        "genres": [GENRES[1 - i % 2] for i in range(len(ITEMS))],
    }
    users = {
        "user_id": [str(user) for user in USERS],
        "age": [20 + user % 40 for user in USERS],
        "gender": ["MF"[user % 2] for user in USERS],
        "occupation": ["writer" if user % 3 else "doctor" for user in USERS],
    }
    return Interactions.from_frame(frame, items=pl.DataFrame(items), users=pl.DataFrame(users), name="ml-100k")


def deep_base(folder: Path, *, layers: int = 8) -> Path:
    """Eight layers (or so many), and a tokenizer that tells " No" from " Yes" by their first token, as every real one does."""
    file = make_base(folder, layers=layers, vocabulary=264) / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    for number, letter in enumerate("NY"):
        tokenizer["model"]["vocab"][f"Ġ{letter}"] = 259 + number
        tokenizer["model"]["merges"].append(["Ġ", letter])
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def prepare_from(folder: Path) -> Callable[..., Path]:
    """What `sources.prepare_data` does, from a folder instead of a package."""

    def prepare(name: str, out: Path | None = None, *, on_step: object = None) -> Path:
        return folder if out is None else Path(shutil.copytree(folder, out))

    return prepare


def write_events(path: Path) -> None:
    """The shop's log of the README: other column names, and a title in the log itself."""
    log = planted_log(users=20, items=12, events=10)
    frame = log.frame.join(log.catalogue.frame, on="item_id")
    names = {"user_id": "userId", "item_id": "sku", "rating": "stars", "timestamp": "when"}
    frame.select(*names, "title").rename(names).write_csv(path)
