#!/usr/bin/env bash
# cornac 3.0.1, 2026-11-30
# Guess: a tie between a relevant item and another counts half, so a model with one score for everything has AUC .5.
# Seen: a tie counts as a loss. A constant model has AUC 0.0, as bad as a perfectly wrong one, and every tie of a coarse score takes half
# a pair away: where four relevant items share one score with their four rivals, and beat four more, .5 instead of .75.
# scikit-learn's roc_auc_score on the same arrays gives .5 and .75.
# Matters: popularity ties most of the tail, item means and quantized scores tie a lot, so the baselines look worse than chance and
# a learnt model better beside them. Break ties with noise, or compute AUC from mid-ranks.
#
# Output:
#   cornac 3.0.1
#   all different: cornac 1.0, scikit-learn 1.0
#   constant: cornac 0.0, scikit-learn 0.5
#   two values: cornac 0.5, scikit-learn 0.75
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scikit-learn==1.9.1 cornac==3.0.1
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from cornac.metrics import AUC
from sklearn.metrics import roc_auc_score

print("cornac", version("cornac"))
for name, scores, expected, usual in (
    ("all different", numpy.arange(12)[::-1].astype(float), 1.0, 1.0),
    ("constant", numpy.ones(12), 0.0, 0.5),
    ("two values", numpy.repeat([1.0, 0.0], [8, 4]), 0.5, 0.75),
):
    relevant = numpy.arange(4)
    value = float(AUC().compute(item_indices=numpy.arange(12), pd_scores=scores, gt_pos=relevant))
    reference = float(roc_auc_score(numpy.isin(numpy.arange(12), relevant), scores))
    print(f"{name}: cornac {value}, scikit-learn {reference}")
    assert (value, reference) == (expected, usual)
PY
