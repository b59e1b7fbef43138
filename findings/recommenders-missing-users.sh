#!/usr/bin/env bash
# recommenders 1.2.1, 2026-11-30
# Guess: a user with held-out items for whom a model returns nothing counts as a miss in every metric, or in none.
# Seen: recall, precision and MAP run over the users that stand in both frames, NDCG over all users with held-out items. Of two models the
# one that answers for its one easiest user alone wins by recall and MAP (1.0 against .75) and loses by NDCG (.25 against .75).
# Matters: models that drop cold users, or filter by a score, are compared with ones that answer everybody. (RecTools counts such users as
# 0, ranx refuses them unless told otherwise.) Add a row per missing user before measuring.
#
# Output:
#   recommenders 1.2.1
#   lists for all four users, three hits: recall, precision, MAP, NDCG [0.75, 0.08, 0.75, 0.75]
#   a list for one user, one hit: recall, precision, MAP, NDCG [1.0, 0.1, 1.0, 0.25]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==1.26.4 pandas==2.3.3 scikit-learn==1.7.2
"$work/venv/bin/pip" install --quiet --no-deps recommenders==1.2.1
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import pandas
from recommenders.evaluation.python_evaluation import map_at_k, ndcg_at_k, precision_at_k, recall_at_k

held_out = pandas.DataFrame({"userID": [1, 2, 3, 4], "itemID": [10, 20, 30, 40], "rating": 1.0})
everybody = pandas.DataFrame({"userID": [1, 2, 3, 4], "itemID": [10, 20, 30, 99], "prediction": 1.0})
easiest = everybody[everybody["userID"] == 1]
print("recommenders", version("recommenders"))
figures = {}
for name, lists in (("lists for all four users, three hits", everybody), ("a list for one user, one hit", easiest)):
    figures[name] = [round(float(measure(held_out, lists, k=10)), 2) for measure in (recall_at_k, precision_at_k, map_at_k, ndcg_at_k)]
    print(f"{name}: recall, precision, MAP, NDCG", figures[name])
assert list(figures.values()) == [[0.75, 0.08, 0.75, 0.75], [1.0, 0.1, 1.0, 0.25]]
PY
