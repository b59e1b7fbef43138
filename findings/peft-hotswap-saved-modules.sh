#!/usr/bin/env bash
# peft 0.21.2, 2026-11-30
# Guess: after hotswap_adapter the model answers as if the new adapter had been loaded alone, or the swap is refused.
# Seen: where the old adapter had a module of its own (modules_to_save, such as a score head) or rows of its own for some tokens
# (trainable_token_indices) and the new one has neither, the swap succeeds and the new low-rank weights work with the old head and the
# old rows. LoRA layers that the new adapter lacks are zeroed, as one would expect. The other direction is refused.
# Matters: a service that swaps tasks in place answers one task with another task's head, without an error.
# Load the new adapter beside the old one and delete that, instead.
#
# Output:
#   peft 0.21.2
#   q and v -> q: no error, 0.00 from the new adapter loaded alone
#   saved head -> none: no error, 3.01 from the new adapter loaded alone
#   token rows -> none: no error, 0.29 from the new adapter loaded alone
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2
"$work/venv/bin/python" - "$work" <<'PY'
import sys

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TOKENS = torch.arange(10)[None]


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def adapter(name, seed, targets=("q_proj", "v_proj"), **more):
    model = get_peft_model(base(), LoraConfig(r=8, lora_alpha=16, target_modules=list(targets), init_lora_weights=False, **more))
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(f"{sys.argv[1]}/{name}")
    return f"{sys.argv[1]}/{name}"


@torch.no_grad()
def gap(old, new):
    swapped = PeftModel.from_pretrained(base(), old).eval()
    hotswap_adapter(swapped, new, adapter_name="default", torch_device="cpu")
    alone = PeftModel.from_pretrained(base(), new).eval()
    return (swapped(TOKENS).logits - alone(TOKENS).logits).abs().max().item()


plain = adapter("plain", 1)
found = {
    "q and v -> q": gap(plain, adapter("q", 2, targets=["q_proj"])),
    "saved head -> none": gap(adapter("head", 3, modules_to_save=["lm_head"]), plain),
    "token rows -> none": gap(adapter("rows", 5, trainable_token_indices=[3, 5]), plain),
}
print("peft", peft.__version__)
for name, value in found.items():
    print(f"{name}: no error, {value:.2f} from the new adapter loaded alone")
assert found["q and v -> q"] < 1e-5 and found["saved head -> none"] > 1 and found["token rows -> none"] > 0.1
PY
