"""What each recipe is tested on: a generated log in the exact format of its data, brought in as a user would.

`WORLDS` names a writer for every recipe. A recipe of data that are downloaded has the command that imports them in its head,
after `# $`; its writer leaves the raw files where that command looks for them, and `prepare_world` runs the command. A recipe of
data that come as a package has none; its writer makes the data set folder that the recipe names.

    WORLDS["news"]    writes MINDsmall/behaviors.tsv and MINDsmall/news.tsv in the current folder
    recipes/news.yaml says  # $ genre data import MINDsmall --format mind --out data/mind
"""

import gzip
import json
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from fakes import browsing_log, planted_texts
from genre.cli import main
from genre.data.importers.log import import_log
from genre.data.importers.movielens import GENRES_100K
from genre.data.packaged import sources
from genre.data.packaged.convert import convert_reviews
from genre.data.packaged.open_bandit import convert_open_bandit
from standins import movies

FIRST = 1_573_430_400  # 2019-11-11


def prepare_world(recipe: Path) -> None:
    """Make the data set folder that a recipe names, in the current folder."""
    WORLDS[recipe.stem]()
    lines = recipe.read_text(encoding="utf-8").splitlines()
    for command in (line.removeprefix("# $ ") for line in lines if line.startswith("# $ genre data import ")):
        assert main(shlex.split(command)[1:]) == 0, command


def ml_100k() -> None:
    """MovieLens-100K: u.data, u.item and u.user, Latin-1."""
    folder, log = Path("ml-100k"), movies()
    folder.mkdir(exist_ok=True)
    events = log.frame.select("user_id", "item_id", pl.col("rating").cast(pl.Int64), "timestamp")
    events.write_csv(folder / "u.data", separator="\t", include_header=False)
    items = [
        [item["item_id"], f"{item['title']} ({item['year']})", "01-Jan-1995", "", "http://us.imdb.com/M/title-exact"]
        + [str(int(genre in item["genres"].split(", "))) for genre in GENRES_100K]
        for item in log.catalogue.frame.to_dicts()
    ]
    (folder / "u.item").write_text("".join("|".join(item) + "\n" for item in items), encoding="latin-1")
    assert log.users is not None
    users = log.users.select("user_id", "age", "gender", "occupation", pl.lit("85711"))
    users.write_csv(folder / "u.user", separator="|", include_header=False)
    import_log(folder, name="ml-100k").write("data/ml-100k")


def womens_clothing() -> None:
    """Women's Clothing reviews: one Parquet table, as the package holds it."""
    texts = planted_texts().frame
    table = texts.select(
        pl.col("group_id").str.strip_prefix("g").cast(pl.Int64).alias("Clothing ID"),
        pl.lit(40).alias("Age"),
        pl.col("title").alias("Title"),
        pl.col("review").alias("Review Text"),
        pl.col("rating").fill_null(3).alias("Rating"),
        pl.col("recommended").alias("Recommended IND"),
        pl.lit(0).alias("Positive Feedback Count"),
        pl.lit("General").alias("Division Name"),
        pl.lit("Tops").alias("Department Name"),
        pl.lit("Knits").alias("Class Name"),
    )
    folder = Path("womens-clothing")
    folder.mkdir(exist_ok=True)
    table.write_parquet(folder / "reviews.parquet.brotli")
    convert_reviews(folder, Path("data/womens-clothing"), sources.DATA["womens-clothing"])


def kinds_of(count: int, kinds: int = 2) -> list[int]:
    """The hidden kind of each of so many users or items."""
    return [place % kinds for place in range(count)]


def mind(users: int = 40, news: int = 24, seed: int = 0) -> None:
    """MIND: readers of two kinds click the news of theirs, but for a tenth; a list of earlier clicks in every impression."""
    draw, folder = np.random.default_rng(seed), Path("MINDsmall")
    folder.mkdir(exist_ok=True)
    kind = kinds_of(news)
    lines = [
        f"N{n}\t{('sports', 'finance')[kind[n]]}\tsub{n % 4}\t{('Match', 'Market')[kind[n]]} report {n}\tAbstract of {n}.\t"
        f'https://assets.msn.com/labs/mind/AA{n}.html\t[{{"Label": "E{n}", "Type": "O", "WikidataId": "Q{n}"}}]\t[]'
        for n in range(news)
    ]
    (folder / "news.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines, clicked = [], {user: [] for user in range(users)}
    for user in range(users):
        own = [n for n in range(news) if kind[n] == user % 2]
        clicked[user] = draw.choice(own, size=4, replace=False).tolist()
    for step in range(4):
        for user in range(users):
            shown = draw.choice(news, size=5, replace=False).tolist()
            clicks = [int((kind[n] == user % 2) != (draw.random() < 0.1)) for n in shown]
            when = datetime.fromtimestamp(FIRST + 3600 * (users * step + user), UTC)
            time = f"{when:%m}/{when.day}/{when.year} {when.hour % 12 or 12}:{when:%M:%S} {when:%p}"
            seen = " ".join(f"N{n}" for n in clicked[user])
            marks = " ".join(f"N{n}-{click}" for n, click in zip(shown, clicks, strict=True))
            lines.append(f"{len(lines) + 1}\tU{user}\t{time}\t{seen}\t{marks}")
            clicked[user] += [n for n, click in zip(shown, clicks, strict=True) if click]
    (folder / "behaviors.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def amazon(users: int = 40, items: int = 24, seed: int = 0) -> None:
    """Amazon reviews of 2023: reviews and metadata as JSON lines under gzip, with all of their fields."""
    draw, kind = np.random.default_rng(seed), kinds_of(items)
    reviews = []
    for user in range(users):
        for step, item in enumerate(draw.choice(items, size=10, replace=False).tolist()):
            agrees = (kind[item] == user % 2) != (draw.random() < 0.1)
            reviews.append(
                {
                    "rating": 5.0 if agrees else 2.0,
                    "title": "Said so",
                    "text": "As described.",
                    "images": [],
                    "asin": f"B{item:09}",
                    "parent_asin": f"B{item:09}",
                    "user_id": f"AE{user:026}",
                    "timestamp": 1000 * (FIRST + 86_400 * user + 3600 * step) + 7,
                    "helpful_vote": 0,
                    "verified_purchase": step % 3 > 0,
                }
            )
    metadata = [
        {
            "main_category": "All Beauty",
            "title": f"{('Rose &amp; co', 'Mint')[kind[n]]} soap {n}",
            "average_rating": 4.8,
            "rating_number": 10,
            "features": [],
            "description": ["A piece of soap."],
            "price": "None" if n % 5 == 0 else 9.99,
            "images": [],
            "videos": [],
            "store": "Acme",
            "categories": ["Beauty", "Soap"],
            "details": {"Package": "1 x 1"},
            "parent_asin": f"B{n:09}",
            "bought_together": None,
        }
        for n in range(items)
    ]
    for name, rows in (("All_Beauty", reviews), ("meta_All_Beauty", metadata)):
        with gzip.open(f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def open_bandit(rounds: int = 40, seed: int = 0) -> None:
    """Open Bandit: an impression a row under each policy and campaign; two kinds of people click the ads of theirs but a tenth.

    Hashes differ between the policies of a campaign, and `bts` shows the first item half of the time.
    """
    draw, folder = np.random.default_rng(seed), Path("obd")
    for policy in ("random", "bts"):
        for campaign, count in (("all", 6), ("men", 4), ("women", 4)):
            place = folder / policy / campaign
            place.mkdir(parents=True, exist_ok=True)
            items = [f"{i},{i},{i / 2 - 1},{policy}-kind-{i % 2},{policy}-b{i % 3},{policy}-c" for i in range(count)]
            head = ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3"
            (place / "item_context.csv").write_text("\n".join([head, *items]) + "\n", encoding="utf-8")
            names = [*(f"user_feature_{i}" for i in range(4)), *(f"user-item_affinity_{i}" for i in range(count))]
            lines = [",timestamp,item_id,position,click,propensity_score," + ",".join(names)]
            shares = np.full(count, 1 / count) if policy == "random" else np.array([0.5, *[0.5 / (count - 1)] * (count - 1)])
            for row in range(rounds):
                item, kind = int(draw.choice(count, p=shares)), int(draw.integers(2))
                click = int((item % 2 == kind) != (draw.random() < 0.1))
                when = datetime.fromtimestamp(FIRST + 600 * row, UTC)
                features = [f"{policy}-person-{kind}", f"{policy}-x", f"{policy}-y{row % 3}", f"{policy}-z"]
                affinity = [f"{float(other == item and row % 5 == 0)}" for other in range(count)]
                cells = [row, f"{when:%Y-%m-%d %H:%M:%S}.5+00:00", item, row % 3 + 1, click, shares[item], *features, *affinity]
                lines.append(",".join(map(str, cells)))
            (place / f"{campaign}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    convert_open_bandit(folder, Path("data/open-bandit"), sources.DATA["open-bandit"])


def kuairec(users: int = 40, videos: int = 24, seed: int = 0) -> None:
    """KuaiRec: big_matrix.csv, and captions with a title, a description and tags; seconds with a fraction, some words unknown."""
    draw, kind, folder = np.random.default_rng(seed), kinds_of(videos), Path("KuaiRec/data")
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio"]
    for user in range(users):
        for step, video in enumerate(draw.choice(videos, size=10, replace=False).tolist()):
            agrees = (kind[video] == user % 2) != (draw.random() < 0.1)
            ratio = round(draw.uniform(0.9, 1.5) if agrees else draw.uniform(0.0, 0.5), 4)
            second = FIRST + 86_400 * user + 3600 * step
            when = datetime.fromtimestamp(second, UTC)
            lines.append(
                f"{user},{video},{int(9000 * ratio)},9000,{when:%Y-%m-%d %H:%M:%S}.438,{when:%Y%m%d},{second}.438,{ratio}"
            )
    (folder / "big_matrix.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [
        "video_id,manual_cover_text,caption,topic_tag,first_level_category_id,first_level_category_name,"
        "second_level_category_id,second_level_category_name,third_level_category_id,third_level_category_name"
    ]
    for n in range(videos):
        title = "UNKNOWN" if n % 7 == 0 else f"{('Noodles', 'Football')[kind[n]]} {n}"
        tags = f'"[{("food", "sport")[kind[n]]},daily]"' if n % 3 else "[]"
        lines.append(f'{n},{title},"A caption, {n}",{tags},8,{("Food", "Sport")[kind[n]]},673,UNKNOWN,-124,UNKNOWN')
    (folder / "kuairec_caption_category.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def shop_events() -> None:
    """A shop's log as it might come out of a warehouse: what was browsed, offered, put into the cart and bought; milliseconds."""
    log = browsing_log(users=80, items=24, views=8, passed="ignore")
    names = {"user_id": "customer", "item_id": "sku", "behaviour": "action", "impression_id": "list"}
    frame = log.frame.join(log.catalogue.frame, on="item_id").with_columns((pl.col("timestamp") * 1000).alias("at"))
    frame.select(*names, "at", "bought", "title").rename(names).write_csv("shop-events.csv")


def network(users: int = 30, posts: int = 24, seed: int = 0) -> None:
    """A network of two circles: members follow their own, and like or answer what their own post, but for a tenth."""
    draw, folder = np.random.default_rng(seed), Path("network")
    folder.mkdir(exist_ok=True)
    names, author = [f"member{n}" for n in range(users)], draw.permutation(posts) % users
    follows = [(a, b) for a in range(users) for b in range(users) if a != b and a % 2 == b % 2 and draw.random() < 0.3]
    lines = ["follower,followed", *(f"{names[a]},{names[b]}" for a, b in follows)]
    (folder / "follows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    items = [
        {
            "item": f"p{n}",
            "kind": ("post", "comment")[n % 3 == 0],
            "author": names[author[n]],
            "text": f"Some words {n}",
            "parent": f"p{n - 1}" if n % 3 == 0 and n else None,
        }
        for n in range(posts)
    ] + [{"item": name, "kind": "account", "author": name, "text": f"I am {name}", "parent": None} for name in names]
    (folder / "posts.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    lines = ["user,item,action,at,engaged"]
    for user in range(users):
        start = FIRST + 86_400 * user
        for step, other in enumerate([b for a, b in follows if a == user][:3]):
            lines.append(f"{names[user]},{names[other]},follow,{start + step},")
        for step, post in enumerate(draw.choice(posts, size=8, replace=False).tolist()):
            engaged = (author[post] % 2 == user % 2) != (draw.random() < 0.1)
            action = draw.choice(["like", "reply"]) if engaged else "view"
            lines.append(f"{names[user]},p{post},{action},{start + 3600 * (step + 1)},{int(engaged)}")
    (folder / "events.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


WORLDS: dict[str, Callable[[], None]] = {
    "ads": open_bandit,
    "like": ml_100k,
    "multitask": ml_100k,
    "news": mind,
    "next_item": ml_100k,
    "rating": ml_100k,
    "reviews": womens_clothing,
    "shop": amazon,
    "shop_joint": shop_events,
    "social": network,
    "video": kuairec,
}
"""A recipe's name to what writes its data into the current folder."""
