"""AdapterHub's `adapters`: one batch with `BatchSplit`, a row per adapter.

The library adapts q, k, v, up and down of a Llama layer, so its adapters have these five linears.
"""

from typing import Any

import adapters
import adapters.composition as ac
import torch
from adapters import LoRAConfig
from adapters.methods.lora import LoRALayer
from rounds import Part, serve
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

PREFIX = "base_model.model."


def mixed(job: dict[str, Any]) -> Part:
    """A batch in which every row has an adapter of its own."""
    config = AutoConfig.from_pretrained(job["base"])
    config.rope_theta = config.rope_parameters["rope_theta"]  # transformers 4, which the library needs, has it elsewhere
    model = AutoModelForCausalLM.from_pretrained(job["base"], config=config, torch_dtype=torch.float32)
    adapters.init(model)
    names = [f"a{number}" for number in range(len(job["adapters"]["five"]))]
    lora = LoRAConfig(
        r=job["rank"],
        alpha=job["alpha"],
        dropout=0.0,
        attn_matrices=["q", "k", "v"],
        selfattn_lora=True,
        intermediate_lora=True,
        output_lora=True,
    )
    for name, adapter in zip(names, job["adapters"]["five"], strict=True):
        model.add_adapter(name, config=lora)
        fill(model, name, load_file(f"{adapter['folder']}/adapter_model.safetensors"))
    model.eval()
    model.set_active_adapters(ac.BatchSplit(*names, batch_sizes=[1] * len(names)))
    ids = torch.tensor([row["ids"] for row in job["mixed"]])
    words = job["words"]

    @torch.inference_mode()
    def answers() -> list[float]:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        return (logits[:, words[-1]] - logits[:, words[0]]).tolist()

    return Part(answers, lambda: float(len(answers())))


@torch.no_grad()
def fill(model: Any, name: str, weights: dict[str, torch.Tensor]) -> None:
    """Copy PEFT's weights into an adapter; every one must find its place."""
    left = dict(weights)
    for path, module in model.named_modules():
        if isinstance(module, LoRALayer):
            for side in "AB":
                value = left.pop(f"{PREFIX}{path}.lora_{side}.weight")
                getattr(module.loras[name], f"lora_{side}").copy_(value)
    if left:
        raise ValueError(f"no place for {next(iter(left))}")


if __name__ == "__main__":
    serve({"mixed_five": mixed}, ("torch", "transformers", "adapters"))
