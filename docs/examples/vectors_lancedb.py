"""Best items by LanceDB, run in an exported folder: PYTHONPATH=. python …/vectors_lancedb.py USER K."""

import json
import sys

import lancedb
import pyarrow.parquet as parquet
from client import Vectors

vectors = Vectors.read(".")
table = parquet.read_table("items.parquet").replace_schema_metadata({"digest": vectors.digest})
table = table.append_column("row", [range(len(table))])
rows = lancedb.connect("items.lance").create_table("items", table, mode="overwrite")


def search(query, count):
    found = rows.search(query).distance_type("dot").limit(count).to_list()
    return [(one["row"], 1 - one["_distance"]) for one in found]  # the distance is 1 - product


kept = rows.schema.metadata[b"digest"].decode()
print(json.dumps(vectors.best(sys.argv[1], int(sys.argv[2]), search, digest=kept)))
