"""Answers of stock PEFT from a folder of `genre registry export like_text --to peft --base FOLDER --out exported`.

    $ python server_peft.py exported
    like: 0.0812, 0.9188 (adapter 0.0812, 0.9188; base 0.6103, 0.3897)

Needs peft and transformers. Prompts are the export's canaries: token ids, so no tokenizer is needed.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

folder = Path(sys.argv[1])
base = folder / "base" if (folder / "base").is_dir() else Path(sys.argv[2])  # an export of all layers leaves the base out
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
for canary in json.loads((folder / "canaries.json").read_text())["canaries"]:
    with torch.no_grad():
        logits = model(torch.tensor([canary["token_ids"]])).logits[0, -1]
    shares = logits[canary["word_ids"]].softmax(-1).tolist()
    answer, adapter, base_alone = (", ".join(f"{s:.4g}" for s in row) for row in (shares, canary["adapter"], canary["base"]))
    print(f"{canary['task']}: {answer} (adapter {adapter}; base {base_alone})")
