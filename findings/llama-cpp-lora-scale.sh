#!/usr/bin/env bash
# llama.cpp as vendored in llama-cpp-python 0.3.36, 2026-11-30
# Guess: convert_lora_to_gguf.py keeps the strength of a PEFT adapter, or refuses the adapter.
# Seen: it reads lora_alpha of adapter_config.json and nothing else of the scale. llama.cpp then multiplies B A by alpha / rank, so an rsLoRA
# adapter is the root of its rank too weak (4 times at rank 16), and a module of `alpha_pattern` has the scale of the others. Both are
# converted with exit code 0 and no warning. (`rank_pattern` is right: the rank is taken from B.)
# Matters: the adapter answers, only nearer to the base, and nothing but a comparison of scores with PEFT tells. Before the conversion
# multiply each module's B by its scale times rank / lora_alpha, and drop both options from the config.
#
# Output:
#   llama-cpp-python 0.3.36, peft 0.21.2
#   strength in llama.cpp over strength in PEFT, rank 16, alpha 16
#     plain          {'o_proj': 1.0, 'v_proj': 1.0}
#     rank_pattern   {'o_proj': 1.0, 'v_proj': 1.0}
#     rslora         {'o_proj': 0.25, 'v_proj': 0.25}
#     alpha_pattern  {'o_proj': 0.25, 'v_proj': 1.0}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
cd "$work"
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2
venv/bin/pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz
mv llama_cpp_python-0.3.36/vendor/llama.cpp .
grep -q 'adapter_scale \* alpha / rank' llama.cpp/src/llama-adapter.h # the loader's scale, which is computed below
PYTHONPATH="$work/llama.cpp/gguf-py" venv/bin/python -W ignore - 2>"$work/log" <<'PY' || { cat "$work/log" >&2; exit 1; }
import subprocess
import sys
from importlib.metadata import version

import gguf
import peft
import torch
import transformers

transformers.utils.logging.disable_progress_bar()
size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, num_hidden_layers=1, **size)).save_pretrained("base")
places = {"o_proj": "blk.0.attn_output.weight", "v_proj": "blk.0.attn_v.weight"}


def strengths(name, **options):
    """Norm of each module's update in llama.cpp over that in PEFT."""
    base = transformers.LlamaForCausalLM.from_pretrained("base")
    config = peft.LoraConfig(r=16, lora_alpha=16, target_modules=list(places), init_lora_weights=False, **options)
    model = peft.get_peft_model(base, config)
    model.save_pretrained(name)
    command = [sys.executable, "llama.cpp/convert_lora_to_gguf.py", "--base", "base", "--outtype", "f32", "--outfile", f"{name}.gguf", name]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert "WARNING" not in log and "ERROR" not in log
    file = gguf.GGUFReader(f"{name}.gguf")
    alpha = file.fields["adapter.lora.alpha"].contents()
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in file.tensors}
    attention = model.base_model.model.model.layers[0].self_attn
    ratios = {}
    for module, place in places.items():
        a, b = tensors[f"{place}.lora_a"], tensors[f"{place}.lora_b"]
        update = alpha / b.shape[1] * (b @ a)
        expected = getattr(attention, module).get_delta_weight("default").detach()
        ratios[module] = round((update.norm() / expected.norm()).item(), 3)
    return ratios


print("llama-cpp-python 0.3.36, peft", version("peft"))
print("strength in llama.cpp over strength in PEFT, rank 16, alpha 16")
for name, options, expected in (
    ("plain", {}, [1.0, 1.0]),
    ("rank_pattern", {"rank_pattern": {"o_proj": 4}}, [1.0, 1.0]),
    ("rslora", {"use_rslora": True}, [0.25, 0.25]),
    ("alpha_pattern", {"alpha_pattern": {"o_proj": 64}}, [0.25, 1.0]),
):
    ratios = strengths(name, **options)
    print(f"  {name:14}", ratios)
    assert list(ratios.values()) == expected
PY
