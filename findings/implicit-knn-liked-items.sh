#!/usr/bin/env bash
# implicit 0.7.3 (noticed for 0.4 in benfred/implicit#345), 2026-11-30
# Guess: recommend(filter_already_liked_items=True), the default, never returns an item of the user's row; too few others give a shorter
# list. Seen: the item-item models (cosine, TF-IDF, BM25) fill the list with the user's own items, at score 0.0. Their matrix
# factorization siblings give such entries the least float there is; here nothing tells them from an unrelated item. Asked for a
# batch of users, places are left over as item -1.
# Matters: a shop shows what was just bought, and offline figures count train items as recommendations. Drop score 0 and id -1.
#
# Output:
#   implicit 0.7.3 user 0 has items [0, 1]
#   CosineRecommender alone: [2, 1, 0] [1.41, 0.0, 0.0] in a batch: [2, 1, 0, -1, -1]
#   TFIDFRecommender alone: [2, 1, 0] [1.01, 0.0, 0.0] in a batch: [2, 1, 0, -1, -1]
#   BM25Recommender alone: [2, 1, 0] [0.36, 0.0, 0.0] in a batch: [2, 1, 0, -1, -1]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 implicit==0.7.3
OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from scipy.sparse import csr_matrix

log = csr_matrix(numpy.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]], dtype=numpy.float32))
print("implicit", version("implicit"), "user 0 has items", log[0].indices.tolist())
for kind in (CosineRecommender, TFIDFRecommender, BM25Recommender):
    model = kind(K=6)
    model.fit(log, show_progress=False)
    items, scores = model.recommend(0, log[:1], N=5, filter_already_liked_items=True)
    batch, _ = model.recommend([0], log[:1], N=5, filter_already_liked_items=True)
    print(kind.__name__, "alone:", items.tolist(), scores.round(2).tolist(), "in a batch:", batch[0].tolist())
    assert items.tolist() == [2, 1, 0]
    assert scores[0] > 0 and scores[1:].tolist() == [0.0, 0.0]
    assert batch[0].tolist() == [2, 1, 0, -1, -1]
PY
