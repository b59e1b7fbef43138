#!/usr/bin/env bash
# faiss-cpu 1.15.1, 2026-11-30
# Guess: the first item of a search for 5 is the item of a search for 1, whatever the order of ties is.
# Seen: among equal inner products an exact index keeps the lowest ids but lists them highest first, so the best item is 0 for k = 1,
# 1 for k = 2 and 4 for k = 5 (flat and IVF alike). With L2 distance equal items come lowest first and lists are prefixes of each other.
# Matters: items with equal vectors are common (variants of a product, equal texts, cold items on one default vector): hit@1 computed from
# a search for 10 is not that of a search for 1, and paging by a larger k repeats and drops items. Sort by (-score, id) afterwards.
#
# Output:
#   faiss 1.15.1
#   inner product, flat: {1: [0], 2: [1, 0], 5: [4, 3, 2, 1, 0]}
#   inner product, IVF: {1: [0], 2: [1, 0], 5: [4, 3, 2, 1, 0]}
#   L2, flat: {1: [0], 2: [0, 1], 5: [0, 1, 2, 3, 4]}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 faiss-cpu==1.15.1
OMP_NUM_THREADS=1 "$work/venv/bin/python" - <<'PY'
import faiss
import numpy

same = numpy.ones((100, 8), dtype=numpy.float32)
inverted = faiss.IndexIVFFlat(faiss.IndexFlatIP(8), 8, 1, faiss.METRIC_INNER_PRODUCT)
inverted.train(same)
print("faiss", faiss.__version__)
for name, index, descending in (
    ("inner product, flat", faiss.IndexFlatIP(8), True),
    ("inner product, IVF", inverted, True),
    ("L2, flat", faiss.IndexFlatL2(8), False),
):
    index.add(same)
    lists = {k: index.search(same[:1], k)[1][0].tolist() for k in (1, 2, 5)}
    print(f"{name}:", lists)
    for k, items in lists.items():
        assert items == sorted(range(k), reverse=descending)
PY
