#!/usr/bin/env bash
# torchmetrics 1.9.0 (Lightning-AI/torchmetrics#2195), 2026-11-30
# Guess: a metric that is fed in batches answers as if it had been fed at once.
# Seen: BinaryAUROC asks of each batch for itself whether a score lies outside 0 to 1, and takes the sigmoid of those batches only. Logits
# inside 0 to 1 stay as they are, larger ones end below them: a perfect ranker has AUROC 1 in one batch and 0 row by row.
# The documentation speaks of scores outside 0 to 1, not of batches.
# Matters: logits of click models lie around 0, the last batch of an epoch is small, and data-parallel ranks see other batches.
# Give it probabilities.
#
# Output:
#   torchmetrics 1.9.0
#   logits, by the size of a batch:        {5: 1.0, 2: 0.333, 1: 0.0}
#   probabilities, by the size of a batch: {5: 1.0, 2: 1.0, 1: 1.0}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
"$work/venv/bin/python" - <<'PY'
import torch
import torchmetrics

logits = torch.tensor([0.97, 0.98, 0.99, 1.5, 1.6])
labels = torch.tensor([0, 0, 0, 1, 1])


def auroc(size, scores):
    metric = torchmetrics.classification.BinaryAUROC()
    for batch, truth in zip(scores.split(size), labels.split(size)):
        metric.update(batch, truth)
    return round(metric.compute().item(), 3)


print("torchmetrics", torchmetrics.__version__)
of_logits = {size: auroc(size, logits) for size in (5, 2, 1)}
of_probabilities = {size: auroc(size, logits.sigmoid()) for size in (5, 2, 1)}
print("logits, by the size of a batch:       ", of_logits)
print("probabilities, by the size of a batch:", of_probabilities)
assert of_logits[5] == 1.0 and of_logits[1] == 0.0
assert set(of_probabilities.values()) == {1.0}
PY
