#!/usr/bin/env bash
# peft 0.21.2, 2026-11-30
# Guess: combination_type="linear" is the weighted sum of the updates, so half of an adapter and half of the same one is that adapter.
# Seen: the factors are summed, each with the root of its weight, and their product has cross terms: 2 halves are twice as strong, n parts
# of weight 1/n are n times as strong, and of two unrelated adapters the merge is about as far from the mean update as 0 is. "cat" gives
# the sum exactly, "svd" its best approximation of the given rank.
# Matters: weights for a merge of k adapters of one task (seeds, regions, months) are usually 1/k; scores then move with k.
#
# Output:
#   peft 0.21.2
#   linear 2, 4, 8 equal parts of one adapter: strength [2.0, 4.0, 8.0]
#   linear halves of two adapters: distance from the mean update, relative 0.98
#   cat    2, 4, 8 equal parts of one adapter: strength [1.0, 1.0, 1.0]
#   cat    halves of two adapters: distance from the mean update, relative 0.00
#   svd    2, 4, 8 equal parts of one adapter: strength [1.0, 1.0, 1.0]
#   svd    halves of two adapters: distance from the mean update, relative 0.47
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2
"$work/venv/bin/python" - <<'PY'
import peft
import torch
from torch import nn

torch.manual_seed(0)
config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"], init_lora_weights=False)
model = peft.get_peft_model(nn.Sequential(nn.Linear(32, 32)), config)
model.add_adapter("other", config)
layer = model.base_model.model[0]
one, two = layer.get_delta_weight("default"), layer.get_delta_weight("other")


def merged(adapters, weights, combination):
    model.add_weighted_adapter(adapters, weights, "merged", combination_type=combination)
    delta = layer.get_delta_weight("merged")
    model.delete_adapter("merged")
    return delta


print("peft", peft.__version__)
for combination, expected in (("linear", [2, 4, 8]), ("cat", [1, 1, 1]), ("svd", [1, 1, 1])):
    parts = [(merged(["default"] * n, [1 / n] * n, combination).norm() / one.norm()).item() for n in (2, 4, 8)]
    print(f"{combination:6} 2, 4, 8 equal parts of one adapter: strength", [round(part, 2) for part in parts])
    assert torch.allclose(torch.tensor(parts), torch.tensor(expected, dtype=torch.float), rtol=0.01)
    error = (merged(["default", "other"], [0.5, 0.5], combination) - (one + two) / 2).norm() / ((one + two) / 2).norm()
    print(f"{combination:6} halves of two adapters: distance from the mean update, relative {error:.2f}")
    assert (error > 0.8) == (combination == "linear")
PY
