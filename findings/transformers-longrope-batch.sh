#!/usr/bin/env bash
# transformers 5.24.0, 2026-11-30
# Guess: rows of a padded batch do not depend on each other: a short user's states are the same beside a long user as alone.
# Seen: rotary positions of the types `longrope` (Phi 3 and 4) and `dynamic` change for the whole batch once its longest row is longer
# than the original length. A row of 12 tokens is off by a third beside one of 40 with an original length of 16 (`longrope`), and
# by 1 % (`dynamic`, 32); beside a row of 16 it is what it is alone.
# Matters: scores of a user depend on who else is in the batch, and of one user alone on the length of the history, with a jump. Batches of a
# service or an evaluation give other ranks than single requests. Keep rows within the original length, or batch long rows alone.
#
# Output:
#   transformers 5.24.0
#   longrope: beside a row of 16 tokens apart by 0.0, beside one of 40 by 0.297
#   dynamic: beside a row of 16 tokens apart by 0.0, beside one of 40 by 0.013
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'PY'
import torch
import transformers

shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
kinds = {
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16, "factor": 2.0},
    "dynamic": {"factor": 2.0},
}
print("transformers", transformers.__version__)
for kind, more in kinds.items():
    torch.manual_seed(0)
    positions = {"rope_type": kind, "rope_theta": 10000.0, **more}
    config = transformers.LlamaConfig(
        vocab_size=64, max_position_embeddings=32, rope_parameters=positions, initializer_range=0.1, **shape
    )
    model = transformers.LlamaForCausalLM(config).eval()
    short = torch.randint(0, 64, (1, 12))
    apart = {}
    for length in (16, 40):
        batch = torch.cat([torch.nn.functional.pad(short, (0, length - 12)), torch.randint(0, 64, (1, length))])
        mask = torch.ones_like(batch)
        mask[0, 12:] = 0
        with torch.no_grad():
            alone = model.model(short).last_hidden_state
            beside = model.model(batch, attention_mask=mask).last_hidden_state[:1, :12]
        apart[length] = round(float(((beside - alone).norm(dim=-1) / alone.norm(dim=-1)).max()), 3)
    print(f"{kind}: beside a row of 16 tokens apart by {apart[16]}, beside one of 40 by {apart[40]}")
    assert apart[16] == 0.0 and apart[40] > 0.0005
PY
