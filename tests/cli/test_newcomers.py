"""An item known by its text alone, for somebody known by three titles alone, from the command line and the engine."""

import json

import polars as pl
import pytest

from genre import cli
from genre.data.interactions import Interactions
from genre.engine import Engine, Request
from genre.modules.base.base import Base

KINDS = {"war": ["war 1", "war 3", "war 5"], "love": ["love 0", "love 2", "love 4"]}
NEW = [f"{kind} {number}" for number in range(80, 88) for kind in KINDS]


@pytest.fixture(scope="module")
def grown(trained, tmp_path_factory):
    """The log's folder with items that have no event: the version has never heard of their ids."""
    items = trained.log.catalogue.frame.with_columns(pl.lit(False).alias("new"))
    more = pl.DataFrame({"item_id": [f"n{n}" for n in range(len(NEW))], "title": NEW, "new": True})
    log = Interactions.from_frame(
        trained.log.frame.drop("row"), items=pl.concat([items, more]), users=trained.log.users, name="grown"
    )
    return log.write(tmp_path_factory.mktemp("grown") / "data")


def wins(ordered, kind):
    """The share of pairs in which a title of the kind stands before one of the other."""
    places = {title: place for place, title in enumerate(ordered)}
    own, other = ([title for title in ordered if title.startswith(kind) == same] for same in (True, False))
    return sum(places[a] < places[b] for a in own for b in other) / (len(own) * len(other))


@pytest.mark.parametrize("kind", KINDS)
def test_new_items_for_a_new_user_on_the_command_line(trained, grown, tiny, kind, capsys, tmp_path):
    liked = [argument for title in KINDS[kind] for argument in ("--liked", title.upper())]
    asked = ["recommend", "like", "--data", str(grown), "--registry", str(trained.registry.url), "--base", str(tiny), *liked]
    assert cli.main([*asked, "-k", "16", "--where", "new == true", "--json", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    assert all(f"liked: {title} (i{title.split()[1]})" in shown for title in KINDS[kind])
    ids = [item["item_id"] for item in json.loads((tmp_path / "out.json").read_text())["results"]]
    assert sorted(ids) == sorted(f"n{n}" for n in range(len(NEW)))  # every new item, and none of the others
    assert wins([NEW[int(item[1:])] for item in ids], kind) >= 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_new_items_given_by_their_columns(trained, tiny, kind):
    history = [{"item_id": f"i{title.split()[1]}", "rating": 5} for title in KINDS[kind]]
    with Engine(Base.load(str(tiny)), trained.registry) as engine:
        answer = engine.score([Request("like", history=history, candidates=[{"title": title} for title in NEW], k=len(NEW))])[0]
    assert wins([item.item_id for item in answer.results], kind) >= 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--liked", "peace"], "no item has this title: got 'peace'"),
        (["--liked", "war 1", "--liked", "wa"], "several items have this title: got 'wa': war 1 (i1), war"),
        (["--liked", "war 1", "--user", "u1"], "name one user or all: got --user and --liked"),
        ([], "name one user or all: got neither; expected --user ID, --liked TITLE or --all-users"),
        (["--user", "u1", "--where", "stock"], "a condition cannot be read: got 'stock'"),
        (["--user", "u1", "--where", "stock > 1"], "the items have no column 'stock'"),
        (["--user", "u1", "--where", "new == 1"], "column 'new' does not fit"),
        (["--user", "u1", "--diversity", "1.5"], "diversity"),
    ],
)
def test_what_cannot_be_meant_is_told_in_a_line(trained, grown, tiny, arguments, message, capsys):
    asked = ["recommend", "like", "--data", str(grown), "--registry", str(trained.registry.url), "--base", str(tiny), *arguments]
    assert cli.main(asked) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_all_users_with_a_condition_and_diversity(trained, grown, tiny, tmp_path):
    asked = [
        "recommend",
        "next_item",
        "--data",
        str(grown),
        "--registry",
        str(trained.registry.url),
        "--base",
        str(tiny),
        "-k",
        "2",
    ]
    file = tmp_path / "rows.jsonl"
    assert cli.main([*asked, "--all-users", "--output", str(file), "--where", "new == false", "--diversity", "0.5"]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 60 and all(len(row["results"]) == 2 for row in rows)
    assert all(item["item_id"].startswith("i") for row in rows for item in row["results"])
