#!/usr/bin/env bash
# ranx 0.3.21, 2026-11-30
# Guess: documents of equal score keep the order in which they were given, or are sorted by id; either way by one rule.
# Seen: up to 15 documents keep the order given; from 16 on the sort is another one and mostly turns it around. A constant model has MRR 1.0
# on a relevant document written first among 15, and 1/15 among 16; given last, it stays last in both.
# Matters: lists have 10, 20, 50 or 100 entries, and popularity, rounded and fused scores tie. The same run cut at 15 and at 20
# differs by more than models do. Break ties before evaluation.
#
# Output:
#   ranx 0.3.21 ranks of equal documents, in the order given
#   8 documents: [1, 2, 3, 4, 5, 6, 7, 8]
#   15 documents: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
#   16 documents: [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 16]
#   20 documents: [19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 20]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 ranx==0.3.21
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

from ranx import Qrels, Run, evaluate


def rank(row, documents):
    names = [f"d{at:02}" for at in range(documents)]
    run = Run({"q": dict.fromkeys(names, 1.0)})
    return round(1 / evaluate(Qrels({"q": {names[row]: 1}}), run, "mrr"))


print("ranx", version("ranx"), "ranks of equal documents, in the order given")
ranks = {documents: [rank(row, documents) for row in range(documents)] for documents in (8, 15, 16, 20)}
for documents, found in ranks.items():
    print(f"{documents} documents:", found)
assert ranks[8] == list(range(1, 9)) and ranks[15] == list(range(1, 16))
assert ranks[16][0] == 15 and ranks[16][-1] == 16
PY
