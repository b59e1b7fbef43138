"""Answers of llama.cpp from a folder of `genre registry export like_text --to gguf --out exported`.

    $ python server_llama_cpp.py exported
    like: 0.0812, 0.9188 (adapter 0.0812, 0.9188; base 0.6103, 0.3897)

Needs llama-cpp-python. Prompts are the export's canaries; `client.py` of the folder takes histories and candidates.
"""

import json
import math
import sys
from pathlib import Path

import llama_cpp

folder = Path(sys.argv[1])
exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # float16 moves the fourth digit
model = llama_cpp.Llama(str(folder / "base.gguf"), lora_path=str(folder / "adapter.gguf"), n_ctx=0, verbose=False, **exact)
for canary in json.loads((folder / "canaries.json").read_text())["canaries"]:
    model.reset()
    model.eval(canary["token_ids"])
    logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    weights = [math.exp(logits[word]) for word in canary["word_ids"]]
    shares = [weight / sum(weights) for weight in weights]
    answer, adapter, base = (", ".join(f"{s:.4g}" for s in row) for row in (shares, canary["adapter"], canary["base"]))
    print(f"{canary['task']}: {answer} (adapter {adapter}; base {base})")
