"""Bytes that the low-rank products of mixed rows make, gathered row by row and in groups by adapter slot, for 1 to 64 adapters.

    python benchmarks/grouped_products.py

64 rows of 64 tokens, as many of each adapter as of any other, rank 8 on all seven linears of four layers as wide as
SmolLM2-135M's, in float32 on the CPU. The bytes are those of all tensors that operators make beyond the bare base's; both ways
give the same states. No seconds: PyTorch has the kernel that grouped products are for on CUDA devices only.
"""

import argparse
import json
from pathlib import Path

import torch

from genre.modules.base.quiet import quiet
from genre.modules.live_tensors import LiveTensors
from genre.modules.lora.layer import find_linears, linear_shape
from genre.modules.lora.slots import AdapterSlots

ROWS, TOKENS, RANK = 64, 64, 8
WIDE = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 64}


def main() -> None:
    """Print the table."""
    from transformers import LlamaConfig, LlamaModel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.manual_seed(0)
    with quiet():
        model = LlamaModel(LlamaConfig(**WIDE, num_hidden_layers=4)).eval().requires_grad_(False)
    names = find_linears(model, "all-linear")
    shapes = {name: linear_shape(model.get_submodule(name)) for name in names}
    embeds = torch.randn(ROWS, TOKENS, WIDE["hidden_size"])
    slots = AdapterSlots(model, names, slots=64, dtype=torch.float32)
    places = []
    found = []

    def made(chosen: list[object], grouped: bool) -> tuple[int, torch.Tensor]:
        slots.routing.grouped = grouped
        slots.route(chosen)
        with LiveTensors() as live:
            live.forget([*model.parameters(), *model.buffers(), embeds])
            live.forget([value for group in slots.groups for value in group.stacks.values()])
            states = model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        slots.clear()
        return live.made, states

    print("| adapters | gathered, MiB | in groups, MiB | weights of the rows, MiB |\n|---|---|---|---|")
    with torch.no_grad():
        bare, _ = made([None] * ROWS, False)
        for count in (1, 2, 4, 8, 16, 32, 64):
            while len(places) < count:
                low = {name: (torch.randn(RANK, i) / i**0.5, torch.randn(o, RANK), 1.0) for name, (i, o) in shapes.items()}
                places.append(slots.write(low))
            chosen = [places[row * count // ROWS] for row in range(ROWS)]
            (gathered, one), (grouped, other) = made(chosen, False), made(chosen, True)
            assert torch.allclose(one, other, atol=1e-3 * float(one.abs().max()))
            weights = 4 * RANK * ROWS * sum(map(sum, shapes.values()))
            found.append({"adapters": count, "gathered": gathered - bare, "grouped": grouped - bare, "weights": weights})
            cells = " | ".join(f"{found[-1][key] / 2**20:,.0f}" for key in ("gathered", "grouped", "weights"))
            print(f"| {count} | {cells} |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
