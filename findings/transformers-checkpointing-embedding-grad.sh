#!/usr/bin/env bash
# transformers 5.24.0, 2026-11-30
# Guess: activation_checkpointing_enable() trades time for memory and changes nothing else; activation_checkpointing_disable() undoes it.
# Seen: enable hooks the token embedding so that its output requires a gradient (reentrant checkpoints needed that), although the default
# is not reentrant; disable leaves the hook. From then on a frozen base without an adapter builds a graph in every pass, and backward runs
# below the lowest trainable layer down to the tokens. disable_input_require_grads() removes it, once per enable.
# Matters: with adapters in the upper layers alone, backward through the frozen layers below and their stored activations are wasted,
# and a model that was trained once keeps paying when it only scores (unless under no_grad).
#
# Output:
#   transformers 5.24.0
#   at first  embedding output requires grad: False, gradients reach frozen layer 0: False
#   enabled   embedding output requires grad: True, gradients reach frozen layer 0: True
#   disabled  embedding output requires grad: True, gradients reach frozen layer 0: True
#   unhooked  embedding output requires grad: False, gradients reach frozen layer 0: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'PY'
import torch
import transformers

shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2}
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **shape)).train()
model.requires_grad_(False)
layers = model.model.layers
layers[3].self_attn.q_proj.weight.requires_grad_(True)  # stands for an adapter in the last layer
differentiated = []


def watch(module, inputs, output):
    if output.requires_grad:
        output.register_hook(differentiated.append)


layers[0].register_forward_hook(watch)


def state(when):
    differentiated.clear()
    tokens = torch.arange(8)[None]
    embedded = model.get_input_embeddings()(tokens).requires_grad
    model(tokens, labels=tokens).loss.backward()
    print(f"{when:9} embedding output requires grad: {embedded}, gradients reach frozen layer 0: {bool(differentiated)}")
    return embedded, bool(differentiated)


print("transformers", transformers.__version__)
assert state("at first") == (False, False)
model.activation_checkpointing_enable()
assert state("enabled") == (True, True)
model.activation_checkpointing_disable()
assert state("disabled") == (True, True)
model.disable_input_require_grads()
assert state("unhooked") == (False, False)
PY
