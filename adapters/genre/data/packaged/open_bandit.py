"""The Open Bandit Dataset's small version: ads shown by two policies, and which were clicked.

Owns: its six logs as one, short names for hashed features, vectors of items. Ignores how the files were fetched.

    user_id bts-men-17, item_id men-4, click 0, position 2, propensity 0.12453, policy bts, campaign men

One impression is one user: the log names nobody, so there is no history and nothing is learnt of a person. A user's columns are
the context: four features, the position to fill, and the number of earlier clicks.
"""

from pathlib import Path

import numpy as np
import polars as pl

from genre.data.interactions import Interactions
from genre.data.packaged.fetch import Source
from genre.errors import DownloadError

POLICIES = ("random", "bts")
CAMPAIGNS = ("all", "men", "women")
_USER = [f"user_feature_{place}" for place in range(4)]
_ITEM = [f"item_feature_{place}" for place in range(1, 4)]


def convert_open_bandit(unpacked: Path, folder: Path, source: Source) -> None:
    """Write the data set folder: impressions with clicks, items, users, and affinity (user_id, item_id, affinity, where not 0).

    Of an impression: `click`; what off-policy evaluation needs: `policy`, `campaign`, `position` (1 to 3), `propensity` (the
    probability with which the policy showed this item at this position). Of a user: the features, `position`, and `past_clicks`,
    the sum of the affinities, which count earlier clicks on each item. Of an item: its campaign, the features, and `features`,
    the same as a vector. Hashes become short names, since those of one campaign's policies differ.
    """
    parts = [_read(unpacked, policy, campaign) for policy in POLICIES for campaign in CAMPAIGNS]
    shown = pl.concat([part.select(*_EVENT) for part in parts])
    affinity = pl.concat([_affinity(part) for part in parts])
    people = _short_names(pl.concat([part.select("user_id", *_USER, "position") for part in parts]), _USER)
    clicks = affinity.group_by("user_id").agg(pl.col("affinity").sum().round().cast(pl.Int64).alias("past_clicks"))
    people = people.join(clicks, on="user_id", how="left").with_columns(pl.col("past_clicks").fill_null(0))
    items = pl.concat([_items(unpacked, campaign) for campaign in CAMPAIGNS])
    items = items.with_columns(pl.Series("features", _vectors(items).tolist(), dtype=pl.List(pl.Float32)))
    info = source.info(roles={"affinity": {"affinity": "number"}})
    log = Interactions.from_frame(shown, items, people, info=info, max_bad=0.0)
    log.write(folder, extra={"affinity": affinity})


_EVENT = ("user_id", "item_id", "timestamp", "click", "policy", "campaign", "position", "propensity")


def _read(unpacked: Path, policy: str, campaign: str) -> pl.DataFrame:
    """One log, with our names, its users numbered by their rows; affinities stay as they are."""
    path = unpacked / policy / campaign / f"{campaign}.csv"
    table = _table(path).rename({"propensity_score": "propensity"})
    return table.with_columns(
        pl.format(f"{policy}-{campaign}-{{}}", pl.int_range(pl.len())).alias("user_id"),
        pl.format(f"{campaign}-{{}}", "item_id").alias("item_id"),
        pl.lit(policy).alias("policy"),
        pl.lit(campaign).alias("campaign"),
    )


def _items(unpacked: Path, campaign: str) -> pl.DataFrame:
    """A campaign's items; both policies describe the same ones, with other hashes."""
    first, second = (_table(unpacked / policy / campaign / "item_context.csv") for policy in POLICIES)
    same = first["item_id"].equals(second["item_id"]) and first["item_feature_0"].equals(second["item_feature_0"])
    if not same:
        raise DownloadError("the policies' items differ", got=campaign, expected="the same items in the same order")
    named = first.with_columns(pl.format(f"{campaign}-{{}}", "item_id").alias("item_id"), pl.lit(campaign).alias("campaign"))
    named = _short_names(named, _ITEM)
    own = [pl.format(f"{campaign} {{}}", name).alias(name) for name in _ITEM]  # a name in two campaigns is not one thing
    return named.select("item_id", "campaign", "item_feature_0", *own)


def _table(path: Path) -> pl.DataFrame:
    table = pl.read_csv(path, infer_schema_length=None)
    return table.drop(table.columns[0])  # a row number without a name


def _short_names(table: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Replace hashes by A, B, C … from the commonest to the rarest, equal ones by hash."""
    for name in columns:
        ranked = table[name].value_counts().sort("count", name, descending=[True, False])[name].to_list()
        table = table.with_columns(pl.col(name).replace_strict(ranked, [_letters(place) for place in range(len(ranked))]))
    return table


def _letters(place: int) -> str:
    return (_letters(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


def _vectors(items: pl.DataFrame) -> np.ndarray:
    """float32 [N, d]: item_feature_0 as it is (standardized in each campaign), then 0 or 1 for every value of the others."""
    flags = items.select(_ITEM).to_dummies()
    return np.column_stack([items["item_feature_0"].to_numpy(), flags.to_numpy()]).astype(np.float32)


def _affinity(part: pl.DataFrame) -> pl.DataFrame:
    campaign = part["campaign"][0]
    names = {name: f"{campaign}-{name.rpartition('_')[2]}" for name in part.columns if name.startswith("user-item_affinity_")}
    long = part.select("user_id", *names).rename(names).unpivot(index="user_id", variable_name="item_id", value_name="affinity")
    return long.filter(pl.col("affinity") != 0).sort("user_id", "item_id")
