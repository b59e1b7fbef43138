#!/usr/bin/env bash
# peft 0.21.2, 2026-11-30
# Guess: add_weighted_adapter of one adapter with weight 1 is that adapter, as it is for plain LoRA.
# Seen: an rsLoRA adapter comes back sqrt(rank) too strong, in every combination (linear, svd, cat, ties). The factors are multiplied by
# alpha / sqrt(r) already, and the new adapter keeps use_rslora with alpha = r, so it is scaled by sqrt(r) once more instead of 1.
# At rank 16 all merged updates are four times as strong, and at rank 64 eight times.
# Matters: a merge of adapters that were trained with the scaling advised for high ranks looks like "merging does not work here".
# Divide the weights by sqrt(r of the new adapter), or merge the products yourself.
#
# Output:
#   peft 0.21.2 strength of one adapter merged with weight 1, rank 16
#   linear  LoRA 1.0, rsLoRA 4.0
#   svd     LoRA 1.0, rsLoRA 4.0
#   cat     LoRA 1.0, rsLoRA 4.0
#   ties    LoRA 1.0, rsLoRA 4.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2
"$work/venv/bin/python" - <<'PY'
import peft
import torch
from torch import nn


def strength(rslora, combination):
    config = peft.LoraConfig(r=16, lora_alpha=16, target_modules=["0"], use_rslora=rslora, init_lora_weights=False)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(32, 32)), config)
    options = {"density": 1.0} if combination == "ties" else {}
    model.add_weighted_adapter(["default"], [1.0], "merged", combination_type=combination, **options)
    layer = model.base_model.model[0]
    return round((layer.get_delta_weight("merged").norm() / layer.get_delta_weight("default").norm()).item(), 3)


torch.manual_seed(0)
print("peft", peft.__version__, "strength of one adapter merged with weight 1, rank 16")
for combination in ("linear", "svd", "cat", "ties"):
    plain, rslora = strength(False, combination), strength(True, combination)
    print(f"{combination:7} LoRA {plain}, rsLoRA {rslora}")
    assert abs(plain - 1) < 0.01 and abs(rslora - 4) < 0.01
PY
