#!/usr/bin/env bash
# implicit 0.7.3, 2026-11-30
# Guess: asked for more items than there are, recommend() and similar_items() return fewer, or pad with an id that is none (-1).
# Seen: matrix factorization pads with item 0 at score 0.0, a real item, several times. Real scores below 0 are common there, so after any
# sort by score (merging lists of shards, filtering on score > t) the padding stands above recommended items.
# Matters: small catalogues, markets or test sets; item 0 then gathers exposure and hits. Ask for at most item_factors.shape[0] items.
#
# Output:
#   implicit 0.7.3 8 items, asked for 12
#   recommend ['1: 0.83', '3: 0.65', '2: 0.64', '6: 0.62', '4: 0.40', '7: 0.24', '0: -0.12', '5: -0.18', '0: 0.00', '0: 0.00', '0: 0.00', '0: 0.00']
#   similar_items ['3: 1.00', '7: 0.73', '1: 0.47', '0: 0.40', '6: -0.04', '5: -0.23', '4: -0.67', '2: -0.72', '0: 0.00', '0: 0.00', '0: 0.00', '0: 0.00']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 implicit==0.7.3
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

log = csr_matrix((numpy.random.default_rng(0).random((30, 8)) < 0.4).astype(numpy.float32))
model = AlternatingLeastSquares(factors=4, iterations=5, random_state=0, num_threads=1)
model.fit(log, show_progress=False)
print("implicit", version("implicit"), "8 items, asked for 12")
for name, (items, scores) in {
    "recommend": model.recommend(0, log[:1], N=12, filter_already_liked_items=False),
    "similar_items": model.similar_items(3, N=12),
}.items():
    print(name, [f"{item}: {score:.2f}" for item, score in zip(items, scores)])
    assert sorted(items[:8]) == list(range(8))
    assert items[8:].tolist() == [0] * 4 and scores[8:].tolist() == [0.0] * 4
    assert scores[:8].min() < 0
PY
