#!/usr/bin/env bash
# pytrec_eval-terrier 0.5.11 (and what calls it: ir_measures 0.4.3), 2026-11-30
# Guess: scores are Python floats (64 bits) and are compared as such.
# Seen: they are narrowed to 32 bits, and what is equal then is ordered by document id, the highest first. A ranker whose order is
# perfect loses to the ids: NDCG .43 instead of 1. Renaming the documents gives 1 again.
# Matters: a cascade that adds 1e6 per stage to a score of the stage, probabilities near 1 and scores made of timestamps are all
# equal in 32 bits; the figure then measures how items are named. Hand over ranks, such as -rank, instead of scores.
#
# Output:
#   pytrec_eval-terrier 0.5.11 ir_measures 0.4.3
#   scores of one stage:       (1.0, 1.0)
#   the same plus 1e6:         (0.431, 0.431)
#   plus 1e6, ids reversed:    (1.0, 1.0)
#   minus their ranks:         (1.0, 1.0)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 pytrec_eval-terrier==0.5.11 ir_measures==0.4.3
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import ir_measures
import pytrec_eval

second_stage = [0.03, 0.02, 0.01, 0.0]  # the first is relevant


def ndcg(names, scores):
    qrels = {"q": {name: int(at == 0) for at, name in enumerate(names)}}
    run = {"q": dict(zip(names, scores))}
    trec = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg"}).evaluate(run)["q"]["ndcg"]
    measures = ir_measures.calc_aggregate([ir_measures.nDCG], qrels, run)[ir_measures.nDCG]
    return round(trec, 3), round(measures, 3)


print("pytrec_eval-terrier", version("pytrec_eval-terrier"), "ir_measures", version("ir_measures"))
cascade = [1e6 + score for score in second_stage]
print("scores of one stage:      ", plain := ndcg("abcd", second_stage))
print("the same plus 1e6:        ", cascaded := ndcg("abcd", cascade))
print("plus 1e6, ids reversed:   ", renamed := ndcg("dcba", cascade))
print("minus their ranks:        ", ranks := ndcg("abcd", [-1, -2, -3, -4]))
assert plain == renamed == ranks == (1.0, 1.0)
assert cascaded == (0.431, 0.431)
PY
