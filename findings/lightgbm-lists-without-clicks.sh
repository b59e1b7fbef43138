#!/usr/bin/env bash
# lightgbm 4.7.0, 2026-11-30
# Guess: a query without a relevant item says nothing about a ranking and is left out (or counts 0, as in trec_eval).
# Seen: it counts as 1.0 in ndcg and in map, and there is no option against it (xgboost documents the same default and offers "ndcg-").
# A model that puts the only click of each list last scores NDCG@3 .9 where nine of ten lists have no click.
# Matters: most impressions end without a click. The figure then measures the share of lists with none, two data sets cannot be compared,
# and differences between models shrink by that share. Drop such queries before training and evaluation.
#
# Output:
#   lightgbm 4.7.0
#   the click is ranked last, all lists:          {'ndcg@3': 0.9, 'map@3': 0.9}
#   the click is ranked last, lists with a click: {'ndcg@3': 0.0, 'map@3': 0.0}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 lightgbm==4.7.0
"$work/venv/bin/python" - <<'PY'
import lightgbm
import numpy

queries, shown = 100, 6
feature = numpy.tile(numpy.arange(shown), queries)[:, None].astype(float)
clicked_list = numpy.repeat(numpy.arange(queries) % 10 == 0, shown)
other_way = numpy.tile(numpy.arange(shown) == 0, queries).astype(int)  # trained on: the lowest feature is clicked
clicks = (numpy.tile(numpy.arange(shown) == shown - 1, queries) & clicked_list).astype(int)  # evaluated: the highest, if any
group = [shown] * queries


def evaluate(rows, labels, groups):
    train = lightgbm.Dataset(feature, other_way, group=group)
    valid = lightgbm.Dataset(rows, labels, group=groups, reference=train)
    log = {}
    options = {"objective": "lambdarank", "metric": ["ndcg", "map"], "eval_at": [3], "verbose": -1}
    lightgbm.train(options, train, 5, valid_sets=[valid], callbacks=[lightgbm.record_evaluation(log)])
    return {name: round(float(values[-1]), 3) for name, values in log["valid_0"].items()}


print("lightgbm", lightgbm.__version__)
print("the click is ranked last, all lists:         ", with_empty := evaluate(feature, clicks, group))
print("the click is ranked last, lists with a click:", without := evaluate(feature[clicked_list], clicks[clicked_list], [shown] * 10))
assert with_empty == {"ndcg@3": 0.9, "map@3": 0.9}
assert without == {"ndcg@3": 0.0, "map@3": 0.0}
PY
