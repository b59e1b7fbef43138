#!/usr/bin/env bash
# lightgbm 4.7.0, xgboost 3.2.0, 2026-11-30
# Guess: a booster that has learnt nothing (all scores equal) gets the NDCG of chance, as its AUC is .5.
# Seen: both count ties in the order of the rows. If each query's clicked item is written first, NDCG@1 and MAP@1 of a constant model
# are 1.0; written last, 0.0. The AUC of both stays .5 either way.
# Matters: logs are often written positives first (a positive and its sampled negatives), the first trees leave most scores equal, and
# early stopping on ndcg then stops at once with a perfect figure. Shuffle the rows inside each query.
#
# Output:
#   lightgbm 4.7.0 xgboost 3.2.0
#   with_lightgbm clicked item first {'ndcg@1': 1.0, 'map@1': 1.0, 'auc': 0.5}
#   with_xgboost clicked item first {'ndcg@1': 1.0, 'map@1': 1.0, 'auc': 0.5}
#   with_lightgbm clicked item last {'ndcg@1': 0.0, 'map@1': 0.0, 'auc': 0.5}
#   with_xgboost clicked item last {'ndcg@1': 0.0, 'map@1': 0.0, 'auc': 0.5}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 lightgbm==4.7.0
"$work/venv/bin/pip" install --quiet --no-deps xgboost==3.2.0
"$work/venv/bin/python" - <<'PY'
import lightgbm
import numpy
import xgboost

queries, shown = 50, 8
nothing = numpy.zeros((queries * shown, 1))


def with_lightgbm(labels):
    data = lightgbm.Dataset(nothing, labels, group=[shown] * queries)
    log = {}
    options = {"objective": "lambdarank", "metric": ["ndcg", "map", "auc"], "eval_at": [1], "verbose": -1}
    lightgbm.train(options, data, 1, valid_sets=[data], callbacks=[lightgbm.record_evaluation(log)])
    return {name: float(values[-1]) for name, values in next(iter(log.values())).items()}


def with_xgboost(labels):
    data = xgboost.DMatrix(nothing, labels)
    data.set_group([shown] * queries)
    log = {}
    options = {"objective": "rank:ndcg", "eval_metric": ["ndcg@1", "map@1", "auc"]}
    xgboost.train(options, data, 1, evals=[(data, "train")], evals_result=log, verbose_eval=False)
    return {name: float(values[-1]) for name, values in log["train"].items()}


print("lightgbm", lightgbm.__version__, "xgboost", xgboost.__version__)
for where, row in (("first", 0), ("last", shown - 1)):
    labels = numpy.tile(numpy.arange(shown) == row, queries).astype(int)
    for train in (with_lightgbm, with_xgboost):
        figures = train(labels)
        print(train.__name__, "clicked item", where, figures)
        assert figures == {"ndcg@1": float(row == 0), "map@1": float(row == 0), "auc": 0.5}
PY
