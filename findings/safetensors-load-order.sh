#!/usr/bin/env bash
# safetensors 0.8.0, 2026-11-30
# Guess: reading one file gives its tensors in one order.
# Seen: safetensors.torch.load (from bytes) gives a dictionary in another order at every call, within one process too; load_file gives
# the order of the file.
# Matters: whoever makes an adapter's layers by walking that dictionary gets them, and the parameters of the optimizer, in another order
# after a restart. torch's optimizer states go by position, so a resumed run puts the moments of one layer on another: an error where the
# shapes differ, and silently another run where they are equal, as q and o of most models are.
#
# Output:
#   safetensors 0.8.0
#   load gives 20 orders in 20 calls, load_file 1
#   a resumed AdamW step differs by 0.0036 where nothing but the order of two equal shapes did
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
"$work/venv/bin/python" - "$work/adapter.safetensors" <<'PY'
import sys
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load, load_file, save_file

save_file({f"layers.{number}.lora_A": torch.full((2,), float(number)) for number in range(12)}, sys.argv[1])
content = Path(sys.argv[1]).read_bytes()
mapped = {tuple(load_file(sys.argv[1])) for _ in range(20)}
read = {tuple(load(content)) for _ in range(20)}
print("safetensors", safetensors.__version__)
print(f"load gives {len(read)} orders in 20 calls, load_file {len(mapped)}")
assert len(mapped) == 1 and len(read) > 1

first, second = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)


def step(optimizer):
    first.grad, second.grad = torch.ones(2), torch.zeros(2)
    optimizer.step()
    return first.detach().clone()


state = torch.optim.AdamW([first, second], lr=0.01, weight_decay=0.0)
step(state)
kept = state.state_dict()
found = []
for order in ([first, second], [second, first]):
    with torch.no_grad():
        first.zero_()
        second.zero_()
    resumed = torch.optim.AdamW(order, lr=0.01, weight_decay=0.0)
    resumed.load_state_dict(kept)
    found.append(step(resumed))
gap = (found[0] - found[1]).abs().max().item()
print(f"a resumed AdamW step differs by {gap:.2g} where nothing but the order of two equal shapes did")
assert gap > 1e-3
PY
