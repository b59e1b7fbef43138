"""A follow graph as vectors of items: whose vector an item gets, what is refused, and the two ways of the decomposition."""

import numpy as np
import polars as pl
import pytest

from genre.cli import main
from genre.data import graph as interactions_graph
from genre.data.graph import graph_vectors, with_graph
from genre.data.importers.log import import_log
from genre.data.interactions import Interactions
from genre.data.schema import Report
from genre.errors import DataError, InputError
from worlds import network

FOLLOWS = pl.DataFrame({"source": ["a", "b", "c", "d", "a"], "target": ["x", "x", "y", "y", "b"]})
ITEMS = pl.DataFrame({"item_id": ["p1", "p2", "x", "p3"], "author": ["a", "c", None, "nobody"]})


def test_an_item_has_its_authors_vector_and_an_account_its_own():
    report = Report()
    found = with_graph(ITEMS, FOLLOWS, report, item_id="item_id", author="author")
    vectors = dict(zip(found["item_id"], found["graph"].to_list(), strict=True))
    accounts = pl.DataFrame({"item_id": ["a", "c", "x"]})
    own = with_graph(accounts, FOLLOWS, Report(), item_id="item_id", author="author")["graph"].to_list()
    assert [vectors["p1"], vectors["p2"], vectors["x"]] == own and len(own[0]) == interactions_graph.DIMENSIONS
    assert vectors["p3"] is None and report.counts == {"items that are not in the graph": 1}
    assert report.examples == ["items that are not in the graph: item p3"]
    assert np.dot(vectors["p1"], vectors["p2"]) == pytest.approx(0, abs=1e-3)  # a and c share no neighbour


def test_many_accounts_are_decomposed_alike(monkeypatch):
    draw = np.random.default_rng(0)
    rows = sorted({(f"i{draw.integers(60)}", "has", f"p{draw.integers(20)}") for _ in range(400)})
    triples = pl.DataFrame(rows, schema=["item_id", "relation", "tail"], orient="row")
    exact = np.array(graph_vectors(triples, 8)["kg"].to_list())
    monkeypatch.setattr(interactions_graph, "DENSE", 10)
    np.testing.assert_allclose(np.array(graph_vectors(triples, 8)["kg"].to_list()), exact, atol=2e-3)


def test_a_network_is_imported_with_its_circles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network()
    maps = {"user_id": "user", "item_id": "item", "behaviour": "action", "timestamp": "at", "title": "text"}
    ends = {"source": "follower", "target": "followed"}
    command = [part for pair in (maps | ends).items() for part in ("--map", "=".join(pair))]
    tables = ["--items", "network/posts.jsonl", "--graph", "network/follows.csv"]
    assert main(["data", "import", "network/events.csv", *tables, *command, "--out", "data/social"]) == 0
    log = Interactions.read("data/social")
    vectors = log.catalogue.dense("graph")
    circle = np.array([int(author.removeprefix("member")) % 2 for author in log.catalogue.frame["author"]])
    like = vectors @ vectors.T
    assert like[np.ix_(circle == 0, circle == 0)].mean() > 5 * abs(like[np.ix_(circle == 0, circle == 1)].mean())
    assert log.info.roles["items"]["graph"] == "dense" and "follow" in log.column("behaviour").tolist()


@pytest.mark.parametrize(
    ("options", "maps", "error", "text"),
    [
        ({"items": None}, {}, InputError, "--graph needs a table of items: got none"),
        ({}, {"source": None}, DataError, "column 'source' is missing in the graph: got follower, target"),
        ({}, {"author": "kind"}, DataError, "no item is in the graph: got member0, .*--map author=THEIRS"),
        ({}, {"target": "followee"}, DataError, "no column 'followee' to take target from"),
        ({"graph": "nowhere.csv"}, {}, DataError, "nowhere.csv cannot be read: got no such file"),
    ],
)
def test_a_wrong_graph_is_refused(tmp_path, monkeypatch, options, maps, error, text):
    monkeypatch.chdir(tmp_path)
    network()
    mapping = {"user_id": "user", "item_id": "item", "timestamp": "at", "source": "follower", "target": "followed"} | maps
    given = {"items": "network/posts.jsonl", "graph": "network/follows.csv"} | options
    with pytest.raises(error, match=text):
        import_log("network/events.csv", mapping={ours: theirs for ours, theirs in mapping.items() if theirs}, **given)
