"""A knowledge graph as one vector per item.

Owns: the decomposition of the item-entity matrix. Ignores where the graph came from and what the vectors are for.

    item_id 50, relation film.film.genre, tail m.06n90     ->     50: [0.4821, -0.1303, …]
"""

import numpy as np
import polars as pl

DIMENSIONS = 64
"""Numbers per item."""

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
    gram = (matrix @ matrix.T).toarray()  # N x N: its eigenvectors are U, its eigenvalues S^2
    squares, left = eigh(gram, subset_by_index=[len(items) - kept, len(items) - 1])
    vectors = np.zeros((len(items), dimensions))
    vectors[:, :kept] = (left * np.sqrt(np.maximum(squares, 0.0)))[:, ::-1]
    vectors = np.round(vectors, _DECIMALS)
    vectors *= np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(dimensions)] < 0, -1.0, 1.0)
    rounded = (vectors + 0.0).astype(np.float32)  # no negative zeros
    return pl.DataFrame({"item_id": items, "kg": pl.Series(rounded.tolist(), dtype=pl.List(pl.Float32))})
