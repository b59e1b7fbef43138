"""Best items by FAISS, run in an exported folder: PYTHONPATH=. python …/vectors_faiss.py USER K."""

import json
import sys

import faiss
from client import Vectors

vectors = Vectors.read(".")
flat = faiss.IndexFlatIP(vectors.dimensions)  # the metric is the dot product; exact
graph = faiss.IndexHNSWFlat(vectors.dimensions, 32, faiss.METRIC_INNER_PRODUCT)  # approximate
for index in (flat, graph):
    index.add(vectors.items)
kept = vectors.digest  # keep it beside the index: faiss.write_index has no room for it


def search_in(index):
    def search(query, count):
        scores, rows = index.search(query[None], count)
        return zip(rows[0].tolist(), scores[0].tolist(), strict=True)

    return search


print(json.dumps(vectors.best(sys.argv[1], int(sys.argv[2]), search_in(flat), digest=kept)))
print(f"recall@10 of HNSW: {vectors.recall(search_in(graph), 10):.4f}", file=sys.stderr)
