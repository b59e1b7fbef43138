#!/usr/bin/env bash
# torchmetrics 1.9.0, 2026-11-30
# Guess: a ranking metric depends on the order of the scores alone, so adding a constant to all of them changes nothing.
# Seen: MRR, MAP, precision and recall treat a document whose score is 0 or below as not retrieved (it stays in the list, as
# irrelevant); hit rate, NDCG, R-precision and AUROC of the same package do not. A perfect ranker whose scores are log-probabilities has
# MRR 0 and hit rate 1, and MAP can rise from .83 to 1 by a shift, since the missed documents leave the denominator too.
# Matters: dot products, logits and log-likelihoods are negative as a matter of course. Shift scores above 0 before update().
#
# Output:
#   torchmetrics 1.9.0
#   MRR            scores as they are, minus 3.5, minus 10: 1.0 1.0 0.0
#   MAP            scores as they are, minus 3.5, minus 10: 0.833 1.0 0.0
#   Precision      scores as they are, minus 3.5, minus 10: 0.4 0.2 0.0
#   Recall         scores as they are, minus 3.5, minus 10: 1.0 0.5 0.0
#   HitRate        scores as they are, minus 3.5, minus 10: 1.0 1.0 1.0
#   NormalizedDCG  scores as they are, minus 3.5, minus 10: 0.92 0.92 0.92
#   RPrecision     scores as they are, minus 3.5, minus 10: 0.5 0.5 0.5
#   AUROC          scores as they are, minus 3.5, minus 10: 0.833 0.833 0.833
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
"$work/venv/bin/python" - <<'PY'
import torch
import torchmetrics
from torchmetrics import retrieval

relevant = torch.tensor([1, 0, 1, 0, 0])
scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
query = torch.zeros(5, dtype=torch.long)


def measure(name, shift):
    metric = getattr(retrieval, name)()
    metric.update(scores - shift, relevant, indexes=query)
    return round(metric.compute().item(), 3)


print("torchmetrics", torchmetrics.__version__)
names = ["MRR", "MAP", "Precision", "Recall", "HitRate", "NormalizedDCG", "RPrecision", "AUROC"]
table = {name: [measure("Retrieval" + name, shift) for shift in (0, 3.5, 10)] for name in names}
for name, values in table.items():
    print(f"{name:14} scores as they are, minus 3.5, minus 10:", *values)
assert table["MRR"] == [1.0, 1.0, 0.0]
assert table["MAP"] == [0.833, 1.0, 0.0]
assert table["Recall"] == [1.0, 0.5, 0.0]
assert table["HitRate"] == [1.0, 1.0, 1.0]
assert table["NormalizedDCG"] == [0.92, 0.92, 0.92]
PY
