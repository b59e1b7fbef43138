#!/usr/bin/env bash
# ir_measures 0.4.3, 2026-11-30
# Guess: RR@10 is RR of the first ten, so on a list of two documents both are the same number; one call orders ties one way.
# Seen: RR, AP, nDCG, P and R come from trec_eval (ties by document id, descending), RR@10 from the MS MARCO script (ties by id,
# ascending). On one list with equal scores one call answers RR = .5 and RR@10 = 1, and 1 and .5 if the other document is relevant.
# Matters: scores with ties are common (popularity of cold items, quantized or bucketed scores), and papers quote MRR@10 beside nDCG@10.
#
# Output:
#   ir_measures 0.4.3
#   relevant is a {'RR@10': 1.0, 'AP@10': 0.5, 'nDCG@10': 0.631, 'RR': 0.5}
#   relevant is b {'RR@10': 0.5, 'AP@10': 1.0, 'nDCG@10': 1.0, 'RR': 1.0}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 pytrec_eval-terrier==0.5.11 ir_measures==0.4.3
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from ir_measures import AP, RR, calc_aggregate, nDCG

run = {"q": {"a": 1.0, "b": 1.0}}
print("ir_measures", version("ir_measures"))
seen = {}
for relevant in "ab":
    qrels = {"q": {name: int(name == relevant) for name in "ab"}}
    values = calc_aggregate([RR, RR @ 10, AP @ 10, nDCG @ 10], qrels, run)
    seen[relevant] = {str(measure): round(value, 3) for measure, value in values.items()}
    print("relevant is", relevant, seen[relevant])
assert seen["a"] == {"RR": 0.5, "RR@10": 1.0, "AP@10": 0.5, "nDCG@10": 0.631}
assert seen["b"] == {"RR": 1.0, "RR@10": 0.5, "AP@10": 1.0, "nDCG@10": 1.0}
PY
