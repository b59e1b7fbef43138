#!/usr/bin/env bash
# peft 0.21.2, 2026-11-30
# Guess: an adapter that was saved and loaded gives the outputs it gave before.
# Seen: of several alpha_pattern (or rank_pattern) keys that match a module the first one written counts, and save_pretrained sorts the
# keys. Two keys that both match, general one first, change places in the file: the module is scaled by 2 before and by 16 after.
# With rank_pattern loading fails instead, since the shapes disagree. Neither is reported when the adapter is made or saved.
# Matters: figures measured in training are not those of the published adapter, and readers in other languages see sorted keys only.
# Write keys that exclude each other ("layers\\.1\\.q").
#
# Output:
#   peft 0.21.2 written: {'q': 4, 'layers.1.q': 32}
#   saved: {'layers.1.q': 32, 'q': 4}
#   scales in training [2.0, 2.0] after loading [2.0, 16.0] outputs differ by 5.7
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2
"$work/venv/bin/python" - "$work/adapter" <<'PY'
import copy
import json
import sys

import peft
import torch
from torch import nn


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(4, 4)}) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer["q"](x)
        return x


def scales(model):
    return [layer["q"].scaling["default"] for layer in model.base_model.model.layers]


torch.manual_seed(0)
base = Tower()
config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q"], alpha_pattern={"q": 4, "layers.1.q": 32}, init_lora_weights=False)
trained = peft.get_peft_model(copy.deepcopy(base), config)
trained.save_pretrained(sys.argv[1])
loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), sys.argv[1])
gap = (trained(torch.ones(1, 4)) - loaded(torch.ones(1, 4))).abs().max().item()
print("peft", peft.__version__, "written:", config.alpha_pattern)
print("saved:", json.load(open(sys.argv[1] + "/adapter_config.json"))["alpha_pattern"])
print("scales in training", scales(trained), "after loading", scales(loaded), f"outputs differ by {gap:.1f}")
assert scales(trained) == [2.0, 2.0] and scales(loaded) == [2.0, 16.0] and gap > 0.1
PY
