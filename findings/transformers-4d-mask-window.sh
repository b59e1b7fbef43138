#!/usr/bin/env bash
# transformers 5.24.0, 2026-11-30
# Guess: a mask that is given is combined with what a model's layers do anyway, as a 2-D one is: with sliding windows a token sees the
# window's tokens that the mask leaves it.
# Seen: a 4-D mask takes the window's place. With the plain causal mask in four dimensions, Mistral with a window of 8 computes
# what it would without one; states behind the window are off by half. Rows no longer than the window are right, so short tests pass.
# Matters: packed rows, trees of candidates and users' branches are what 4-D masks are for; a base with windows (Mistral, Gemma 2 and 3, gpt-oss)
# then sees what it was never trained on. Write the window into the mask of those layers.
#
# Output:
#   transformers 5.24.0
#   2-D mask of ones: apart by 0.0
#   4-D causal mask: apart by 0.52, on the first 8 tokens by 0.0; from the model without a window by 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'PY'
import torch
import transformers

torch.manual_seed(0)
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
models = {}
for window in (8, None):
    config = transformers.MistralConfig(vocab_size=64, sliding_window=window, attn_implementation="sdpa", **shape)
    models[window] = transformers.MistralForCausalLM(config).eval()
models[None].load_state_dict(models[8].state_dict())
tokens = torch.randint(0, 64, (1, 24))
causal = torch.ones(24, 24, dtype=torch.bool).tril()[None, None]


@torch.no_grad()
def states(window, mask=None):
    return models[window].model(tokens, attention_mask=mask).last_hidden_state


def apart(one, other):
    return round(float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max()), 3)


print("transformers", transformers.__version__)
plain, ones, given = states(8), states(8, torch.ones_like(tokens)), states(8, causal)
print("2-D mask of ones: apart by", apart(ones, plain))
first, wide = apart(given[:, :8], plain[:, :8]), apart(given, states(None))
print(f"4-D causal mask: apart by {apart(given, plain)}, on the first 8 tokens by {first}; from the model without a window by {wide}")
assert apart(ones, plain) == 0.0 and apart(given, plain) > 0.2 and first == 0.0 and wide == 0.0
PY
