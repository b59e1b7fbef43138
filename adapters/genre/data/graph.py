"""A graph as one vector per item: a knowledge graph (properties of items), or a follow graph (edges between accounts).

Owns: the decomposition of the matrix of items and properties, edges between accounts as properties, vectors beside a table of
items. Ignores the origin of the graph and the use of the vectors.

    item_id 50, relation film.film.genre, tail m.06n90     ->     50: [0.4821, -0.1303, …]
    source alice, target bob                               ->     alice and bob, and all that they post
"""

import numpy as np
import polars as pl

from genre.data.fields import ids, plain_ids
from genre.data.schema import Report
from genre.errors import DataError

DIMENSIONS = 64
"""Numbers per item."""

DENSE = 5_000
"""Up to so many items all eigenvalues are computed at once; beyond, the largest are iterated for."""

_DECIMALS = 4  # what another machine's linear algebra may round differently is cut off, so that a catalogue's digest is one


def graph_vectors(triples: pl.DataFrame, dimensions: int = DIMENSIONS) -> pl.DataFrame:
    """Return the vectors of the items of a graph by a truncated singular value decomposition.

    M[i, f] = log(N / n_f) if item i has the property f, a pair of relation and tail, and 0 otherwise; N items are in the graph
    and n_f of them have f. Properties of one item alone connect nothing and are left out. Rows are scaled to length 1. With
    M = U S V^T, item i's vector is the i-th row of U S, cut to the largest `dimensions` singular values, each column's sign
    such that the first of its largest entries is positive. (Latent semantic analysis, Deerwester et al., 1990, with entities for
    words.) Nothing is drawn at random.

    Args:
        triples: item_id, relation, tail (str).
        dimensions: Columns of the result; those beyond the matrix's rank hold zeros.

    Returns:
        item_id, kg (list of float32), by item_id; items that share no property with another are left out.
    """
    from scipy.linalg import eigh
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import svds

    counted = triples.select("item_id", "relation", "tail").unique().with_columns(pl.len().over("relation", "tail").alias("n"))
    total = triples["item_id"].n_unique()
    shared = counted.filter((pl.col("n") > 1) & (pl.col("n") < total)).sort("item_id", "relation", "tail")
    if shared.is_empty():
        return pl.DataFrame(schema={"item_id": pl.String, "kg": pl.List(pl.Float32)})
    items = shared["item_id"].unique().sort()
    rows = shared["item_id"].cast(pl.Enum(items)).to_physical().to_numpy()
    columns = shared.select(pl.struct("relation", "tail").rank("dense") - 1).to_series().to_numpy()
    weights = np.log(total / shared["n"].to_numpy())
    weights /= np.sqrt(np.bincount(rows, weights**2))[rows]
    matrix = csr_array((weights, (rows, columns)), shape=(len(items), int(columns.max()) + 1))
    kept = min(dimensions, len(items))
    if len(items) <= DENSE:
        gram = (matrix @ matrix.T).toarray()  # N x N: its eigenvectors are U, its eigenvalues S^2
        squares, left = eigh(gram, subset_by_index=[len(items) - kept, len(items) - 1])
        scaled = left * np.sqrt(np.maximum(squares, 0.0))
    else:
        least = min(matrix.shape)
        left, values, _ = svds(matrix, k=min(kept, least - 1), v0=np.ones(least), return_singular_vectors="u")
        scaled = (left * values)[:, np.argsort(values)]
    vectors = np.zeros((len(items), dimensions))
    vectors[:, : scaled.shape[1]] = scaled[:, ::-1]
    vectors = np.round(vectors, _DECIMALS)
    vectors *= np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(dimensions)] < 0, -1.0, 1.0)
    rounded = (vectors + 0.0).astype(np.float32)  # no negative zeros
    return pl.DataFrame({"item_id": items, "kg": pl.Series(rounded.tolist(), dtype=pl.List(pl.Float32))})


def with_graph(items: pl.DataFrame, edges: pl.DataFrame, report: Report, *, item_id: str, author: str) -> pl.DataFrame:
    """Put the vectors of a follow graph beside a table of items.

    An account's properties are its edges in both directions. An item's vector is its author's where the table has authors,
    and otherwise that of the account that the item is.

    Args:
        items: The items.
        edges: source (who follows), target (who is followed).
        report: Counts items without a vector; theirs are empty.
        item_id: The column of the items' ids.
        author: The column of their authors, if there is one; an empty cell means the item itself.

    Returns:
        The items with a column `graph`, a list of `DIMENSIONS` float32.

    Raises:
        DataError: A column is missing, or no item is in the graph.
    """
    for name, table, what in (("source", edges, "graph"), ("target", edges, "graph"), (item_id, items, "items")):
        if name not in table.columns:
            got, todo = ", ".join(table.columns), f"name yours with --map {name}=THEIRS"
            raise DataError(f"column '{name}' is missing in the {what}", got=got, expected=name, todo=todo)
    pairs = pl.DataFrame({"a": ids(plain_ids(edges["source"])), "b": ids(plain_ids(edges["target"]))}).drop_nulls()
    follows = pairs.select(pl.col("a").alias("item_id"), pl.lit("follows").alias("relation"), pl.col("b").alias("tail"))
    followed = pairs.select(pl.col("b").alias("item_id"), pl.lit("is followed by").alias("relation"), pl.col("a").alias("tail"))
    vectors = graph_vectors(pl.concat([follows, followed])).rename({"item_id": "account", "kg": "graph"})
    own = ids(plain_ids(items[item_id]))
    account = ids(plain_ids(items[author])).rename("account") if author in items.columns else own.rename("account")
    table = items.drop("graph", strict=False).with_columns(account.fill_null(own))
    found = table.join(vectors, on="account", how="left", maintain_order="left").drop("account")
    missing = found["graph"].null_count()
    if missing == len(found):
        got = ", ".join(vectors["account"].head(3)) or "no two accounts that share a neighbour"
        expected = f"authors or ids of items, such as {', '.join(account.drop_nulls().head(3))}"
        todo = "name the column of authors with --map author=THEIRS"
        raise DataError("no item is in the graph", got=got, expected=expected, todo=todo)
    report.add("items that are not in the graph", missing, f"item {own[int(found['graph'].is_null().arg_max() or 0)]}")
    return found
