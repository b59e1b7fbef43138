#!/usr/bin/env bash
# huggingface_hub 2.4.0 (huggingface/huggingface_hub#4975, closed), 2026-11-30
# Guess: a model card has one result per task and data set that its EvalResults name.
# Seen: results are grouped by the types of task and data set, its config, split and revision. The names of task and data set are not
# asked for: those of the first result stand over the figures of all. Read back from the card, every result has the first one's name, and
# two figures that were told apart by the task are now two values of one metric.
# Matters: recommendation has one task type on the Hub for many tasks, and adapters of one base are measured on one log. Give each task a
# `dataset_config` of its own, or write the task into `metric_name`.
#
# Output:
#   huggingface_hub 2.4.0
#   two tasks, one data set:    [('likes the film', 'films', 0.8), ('likes the film', 'films', 0.6)]
#   one task, two data sets:    [('likes the film', 'films of 2025', 0.8), ('likes the film', 'films of 2025', 0.6)]
#   two tasks, two configs:     [('likes the film', 'films', 0.8), ('watches the next episode', 'films', 0.6)]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet huggingface_hub==2.4.0
"$work/venv/bin/python" - <<'PY'
import huggingface_hub
from huggingface_hub import EvalResult, ModelCard, ModelCardData


def read_back(*results):
    data = ModelCardData(model_name="films", eval_results=list(results))
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n")
    return [(r.task_name, r.dataset_name, r.metric_value) for r in card.data.eval_results]


def result(task, dataset, value, **more):
    names = {"task_type": "other", "task_name": task, "dataset_type": "me/films", "dataset_name": dataset}
    return EvalResult(metric_type="auc", metric_value=value, **names, **more)


print("huggingface_hub", huggingface_hub.__version__)
tasks = read_back(result("likes the film", "films", 0.8), result("watches the next episode", "films", 0.6))
print("two tasks, one data set:   ", tasks)
datasets = read_back(result("likes the film", "films of 2025", 0.8), result("likes the film", "films of 2026", 0.6))
print("one task, two data sets:   ", datasets)
configs = read_back(
    result("likes the film", "films", 0.8, dataset_config="like"),
    result("watches the next episode", "films", 0.6, dataset_config="next"),
)
print("two tasks, two configs:    ", configs)
assert tasks == [("likes the film", "films", 0.8), ("likes the film", "films", 0.6)]
assert datasets == [("likes the film", "films of 2025", 0.8), ("likes the film", "films of 2025", 0.6)]
assert configs == [("likes the film", "films", 0.8), ("watches the next episode", "films", 0.6)]
PY
