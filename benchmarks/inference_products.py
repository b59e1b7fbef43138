"""Low-rank products and branches without the engine: many adapters in one batch, many candidates on one history.

lanes      16 rows x 128 tokens, 16 adapters of rank 8 on all seven linears of every layer: adapter slots against the bare
           base, PEFT's `adapter_names`, and `set_adapter` one adapter after the other; all give the same hidden states.
branches   100 text candidates of 14 tokens on a history of 420 tokens: branches of one row against one prompt each (batched, no
           padding) and against a prefix KV cache expanded over the candidates; all give the same hidden states.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

import genre
from genre.modules.base.quiet import quiet
from genre.modules.lora.layer import find_linears, linear_shape
from genre.modules.lora.slots import AdapterSlots

ROWS, TOKENS, RANK = 16, 128, 8
HISTORY, CANDIDATES, LENGTH = 420, 100, 14


def alternate(ways: dict[str, Callable[[], torch.Tensor]], rounds: int) -> tuple[dict[str, float], dict[str, float], float]:
    """Median seconds of each way, median ratio of each to the first one round by round, and the largest difference of results."""
    first = next(iter(ways))
    results = {name: way() for name, way in ways.items()}
    worst = max(float((result - results[first]).abs().max()) for result in results.values())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begun)
    ratios = {name: median(b / a for a, b in zip(seconds[first], values, strict=True)) for name, values in seconds.items()}
    return {name: median(values) for name, values in seconds.items()}, ratios, worst


@torch.inference_mode()
def lanes(depth: int, rounds: int) -> dict[str, Any]:
    """16 adapters in one batch."""
    draw = torch.Generator().manual_seed(0)
    ours = genre.Base.load("smollm2-135m", depth=depth)
    names = find_linears(ours.model, "all-linear")
    adapters = []
    for _ in range(ROWS):
        low = {}
        for name in names:
            inside, outside = linear_shape(ours.model.get_submodule(name))
            a = torch.randn(RANK, inside, generator=draw) / inside**0.5
            low[name] = (a, 0.02 * torch.randn(outside, RANK, generator=draw), 2.0)
        adapters.append(low)
    ids = torch.randint(0, 49152, (ROWS, TOKENS), generator=draw)
    bare = genre.Base.load("smollm2-135m", depth=depth)
    peft = _peft(genre.Base.load("smollm2-135m", depth=depth), names, adapters)
    stack = AdapterSlots(ours.model, names, slots=ROWS + 1, dtype=torch.float32)
    places = [stack.write(low) for low in adapters]
    embeds = bare.embedding(ids)

    def mixed() -> torch.Tensor:
        stack.route(places)
        hidden = ours.hidden(embeds)
        stack.clear()
        return hidden

    def peft_mixed() -> torch.Tensor:
        return peft(
            inputs_embeds=embeds,
            adapter_names=[f"a{i}" for i in range(ROWS)],
            use_cache=False,
            output_hidden_states=True,
            logits_to_keep=1,
        ).hidden_states[-1]

    def one_by_one() -> torch.Tensor:
        parts = []
        for number in range(ROWS):
            peft.set_adapter(f"a{number}")
            parts.append(
                peft.base_model.model.model(inputs_embeds=embeds[number : number + 1], use_cache=False).last_hidden_state
            )
        return torch.cat(parts)

    ways = {"lanes": mixed, "peft_mixed": peft_mixed, "one_by_one": one_by_one}
    seconds, ratios, worst = alternate(ways, rounds)
    base_seconds, base_ratios, _ = alternate({"lanes": mixed, "base": lambda: bare.hidden(embeds)}, rounds)
    return {
        "depth": depth,
        "seconds": seconds | {"base": base_seconds["base"]},
        "max_abs_difference": worst,
        "ratios": {
            "lanes_16_vs_base": base_ratios["base"],
            **{f"lanes_16_vs_{name}": ratios[name] for name in ways if name != "lanes"},
        },
    }


def _peft(base: genre.Base, names: list[str], adapters: list[Any]) -> Any:
    with quiet():
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=names, task_type="CAUSAL_LM")
        model = get_peft_model(base.model, config, adapter_name="a0")
        for number in range(1, len(adapters)):
            model.add_adapter(f"a{number}", config)
    for number, low in enumerate(adapters):
        for name, (a, b, _) in low.items():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_A[f"a{number}"].weight.copy_(a)
            layer.lora_B[f"a{number}"].weight.copy_(b)
    return model.eval()


@torch.inference_mode()
def branches(depth: int, rounds: int) -> dict[str, Any]:
    """100 candidates on one history."""
    from transformers import DynamicCache

    from genre.data.sequences.layout import Sequence
    from genre.modules.base.attention import block_attention, plan_blocks

    draw = torch.Generator().manual_seed(0)
    base = genre.Base.load("smollm2-135m", depth=depth)
    history = torch.randint(0, 49152, (HISTORY,), generator=draw)
    candidates = torch.randint(0, 49152, (CANDIDATES, LENGTH), generator=draw)

    def row() -> Sequence:
        total = HISTORY + CANDIDATES * LENGTH
        positions, masked = np.arange(total, dtype=np.int32), np.zeros((total, 2), dtype=np.int32)
        reads = HISTORY + LENGTH * (1 + np.arange(CANDIDATES)) - 1
        for number in range(CANDIDATES):
            start = HISTORY + number * LENGTH
            positions[start : start + LENGTH] = HISTORY + np.arange(LENGTH)
            masked[start : start + LENGTH] = (HISTORY, start)
        none, empty = np.full(total, -1, dtype=np.int32), np.empty(0, dtype=np.int32)
        return Sequence(
            tokens=torch.cat([history, candidates.reshape(-1)]).numpy().astype(np.int32),
            items=none,
            feedback=none,
            positions=positions,
            masked_spans=masked,
            event_starts=empty,
            item_reads=empty,
            next_reads=empty,
            item_codes=empty,
            feedback_codes=empty,
            history_lengths=empty,
            events=empty,
            targets=np.empty(0, dtype=bool),
            prefix_length=HISTORY,
            candidate_reads=reads,
        )

    def one_row() -> torch.Tensor:
        one = row()
        blocks = plan_blocks([one.masked_spans], torch.from_numpy(one.positions).long()[None])
        hidden = base.hidden(base.embedding(torch.from_numpy(one.tokens).long()[None]), blocks.positions, blocks=blocks)
        return hidden[0, HISTORY + LENGTH - 1 :: LENGTH]

    def prompts() -> torch.Tensor:
        parts = []
        for start in range(0, CANDIDATES, 10):
            some = candidates[start : start + 10]
            ids = torch.cat([history.expand(len(some), -1), some], 1)
            parts.append(base.hidden(base.embedding(ids))[:, -1])
        return torch.cat(parts)

    def kv_cache() -> torch.Tensor:
        cache = DynamicCache(config=base.model.config)
        base.body(input_ids=history[None], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(CANDIDATES)
        return base.body(input_ids=candidates, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]

    with block_attention(base.model):  # as in the engine; without blocks, attention is transformers' own
        seconds, ratios, worst = alternate({"branches": one_row, "prompts": prompts, "kv_cache": kv_cache}, rounds)
    return {
        "depth": depth,
        "seconds": seconds,
        "max_abs_difference": worst,
        "ratios": {"branches_vs_prompts": ratios["prompts"], "branches_vs_kv_cache": ratios["kv_cache"]},
    }
