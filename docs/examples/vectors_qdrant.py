"""Best items by Qdrant, run in an exported folder: PYTHONPATH=. python …/vectors_qdrant.py USER K."""

import json
import sys

from client import Vectors
from qdrant_client import QdrantClient, models

vectors = Vectors.read(".")
client = QdrantClient(":memory:")  # or QdrantClient("http://localhost:6333")
params = models.VectorParams(size=vectors.dimensions, distance=models.Distance.DOT)
client.create_collection("items", vectors_config=params, metadata={"digest": vectors.digest})
payload = [{"item_id": item, "title": title} for item, title in zip(vectors.item_ids, vectors.titles, strict=True)]
client.upload_collection("items", vectors.items, payload=payload, ids=range(len(payload)))


def search(query, count):
    points = client.query_points("items", query.tolist(), limit=count).points  # local mode is exact, a server approximate
    return [(point.id, point.score) for point in points]


kept = client.get_collection("items").config.metadata["digest"]
print(json.dumps(vectors.best(sys.argv[1], int(sys.argv[2]), search, digest=kept)))
