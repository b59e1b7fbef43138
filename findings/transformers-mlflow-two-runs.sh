#!/usr/bin/env bash
# transformers 5.24.0 with mlflow-skinny 3.17.2 (huggingface/transformers#35074, open), 2026-11-30
# Guess: `trainer.train()` and the `trainer.evaluate()` after it write into one MLflow run.
# Seen: the callback ends its run with the training and counts itself as set up from then on. The figures of the evaluation start a run of
# their own, under a random name instead of `run_name` and without any parameter. With a run that was started before, both write into it.
# Matters: held-out figures are measured last and once. The run that has the learning rate and the rank has no AUC, the run with the AUC says
# nothing of how the adapter was made, and a search over runs by parameters and metrics finds neither.
#
# Output:
#   transformers 5.24.0 mlflow-skinny 3.17.2
#     train, evaluate
#       run_name kept, learning rate, metrics: True 5e-05 ['train_loss']
#       run_name kept, learning rate, metrics: False None ['eval_loss']
#     start_run, train, evaluate, end_run
#       run_name kept, learning rate, metrics: True 5e-05 ['train_loss', 'eval_loss']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0 mlflow-skinny==3.17.2 \
  sqlalchemy==2.1.9 alembic==1.20.1
cd "$work"
"$work/venv/bin/python" -W ignore - 2>"$work/log" <<'PY' || { cat "$work/log" >&2; exit 1; }
from importlib.metadata import version

import mlflow
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

mlflow.set_tracking_uri("sqlite:///mlflow.db")


class Ranker(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, features, labels):
        logits = self.linear(features)
        return {"loss": torch.nn.functional.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


def train_and_evaluate():
    options = {"max_steps": 1, "run_name": "films", "report_to": "mlflow", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    events = [{"features": torch.ones(1), "labels": torch.ones(1)}] * 4
    trainer = Trainer(Ranker(), TrainingArguments("out", **options), train_dataset=events, eval_dataset=events)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.evaluate()


def runs(experiment):
    found = mlflow.search_runs(experiment_names=[experiment], order_by=["start_time"], output_format="list")
    answers = []
    for run in found:
        metrics = [name for name in ("train_loss", "eval_loss") if name in run.data.metrics]
        answers.append((run.info.run_name == "films", run.data.params.get("learning_rate"), metrics))
        print("    run_name kept, learning rate, metrics:", *answers[-1])
    return answers


print("transformers", version("transformers"), "mlflow-skinny", version("mlflow-skinny"))
print("  train, evaluate")
mlflow.set_experiment("by the trainer")
train_and_evaluate()
split = runs("by the trainer")
mlflow.end_run()

print("  start_run, train, evaluate, end_run")
mlflow.set_experiment("started before")
with mlflow.start_run(run_name="films"):
    train_and_evaluate()
together = runs("started before")

assert split == [(True, "5e-05", ["train_loss"]), (False, None, ["eval_loss"])]
assert together == [(True, "5e-05", ["train_loss", "eval_loss"])]
PY
