#!/usr/bin/env bash
# pyarrow 26.0.1, polars 2.1.0, duckdb 2.0.1 (apache/arrow#31723), 2026-11-30
# Guess: key-value metadata that stands in a Parquet file's footer comes back as `schema.metadata` of pyarrow's tables.
# Seen: if the footer has an ARROW:schema, pyarrow's table, schema and dataset readers take the metadata inside that and none beside it. What
# polars writes with `metadata=` is unread, and so is what pyarrow's own `ParquetWriter.add_key_value_metadata` writes; the same key
# from duckdb, which writes no ARROW:schema, is read. Read and written again by pyarrow, the file has lost the key without a warning.
# Matters: digests, schema versions and column meanings of interaction logs and embeddings stand there, and a reader that finds no key takes
# the file for one without. `pq.read_metadata(file).metadata` has it in every case.
#
# Output:
#   pyarrow 26.0.1 polars 2.1.0 duckdb 2.0.1
#                                         footer  read_table  read_schema  dataset  written again
#   pyarrow, schema metadata              key     key         key          key      key
#   pyarrow, add_key_value_metadata       key     -           -            -        -
#   polars, write_parquet(metadata=)      key     -           -            -        -
#   duckdb, kv_metadata                   key     key         key          key      key
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyarrow==26.0.1 polars==2.1.0 duckdb==2.0.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import duckdb
import polars
import pyarrow
import pyarrow.dataset
import pyarrow.parquet as pq

KEY, VALUE = "log_version", "3"
table = pyarrow.table({"user": [1, 2], "item": [10, 20]})

pq.write_table(table.replace_schema_metadata({KEY: VALUE}), "schema.parquet")
with pq.ParquetWriter("writer.parquet", table.schema) as writer:
    writer.write_table(table)
    writer.add_key_value_metadata({KEY: VALUE})
polars.from_arrow(table).write_parquet("polars.parquet", metadata={KEY: VALUE})
duckdb.sql(f"copy (select 1 as user, 10 as item) to 'duckdb.parquet' (format parquet, kv_metadata {{{KEY}: '{VALUE}'}})")


def has_key(metadata):
    return (metadata or {}).get(KEY.encode()) == VALUE.encode()


print("pyarrow", pyarrow.__version__, "polars", polars.__version__, "duckdb", duckdb.__version__)
print(f"{'':38}footer  read_table  read_schema  dataset  written again")
answers = {}
for name, file in (
    ("pyarrow, schema metadata", "schema.parquet"),
    ("pyarrow, add_key_value_metadata", "writer.parquet"),
    ("polars, write_parquet(metadata=)", "polars.parquet"),
    ("duckdb, kv_metadata", "duckdb.parquet"),
):
    read = pq.read_table(file)
    pq.write_table(read, "again.parquet")
    answers[name] = (
        has_key(pq.read_metadata(file).metadata),
        has_key(read.schema.metadata),
        has_key(pq.read_schema(file).metadata),
        has_key(pyarrow.dataset.dataset(file).schema.metadata),
        has_key(pq.read_metadata("again.parquet").metadata),
    )
    print(f"{name:38}" + "".join(f"{'key' if held else '-':<{wide}}" for held, wide in zip(answers[name], (8, 12, 13, 9, 0))))
complete, lost = (True,) * 5, (True, False, False, False, False)
assert list(answers.values()) == [complete, lost, lost, complete]
PY
