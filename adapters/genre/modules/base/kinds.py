"""Kinds of models: which can be a base, and how far their positions reach.

Owns: refusals by configuration, and for model types that no test knows by a short pass. Ignores: loading, adapters.

Rows have branches: tokens that see a history and themselves, and not what lies between (`genre.modules.base.attention`). A model
must leave that to its attention mask and the tokens' positions. Recurrent layers carry what is between along, and so does
attention that counts places in the row.
"""

from typing import Any

import torch
from torch import Tensor

from genre.errors import BaseModelError, InputError, first_line

VERIFIED = (
    *("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo", "olmo2", "olmo3"),
    *("gpt2", "gpt_neox", "opt", "qwen3_moe", "mixtral", "gpt_oss", "granite", "cohere", "cohere2", "starcoder2", "exaone4"),
)
"""Types of causal models that tests/modules/test_architectures.py trains, publishes and serves."""

EAGER = ("gemma2", "gpt_oss")
"""Causal models whose attention has parts (a soft cap, sinks) that PyTorch's fused attention does not know."""

ATTENTION = ("full_attention", "sliding_attention")


def need_kind(name: str, config: Any) -> None:
    """Check that a configuration is of a model that can be a base.

    Raises:
        BaseModelError: It is not; the message has the reason.
    """
    kind = config.model_type
    text = "a GPT-kind model, or an encoder (BERT kind)"
    if config.is_encoder_decoder:
        raise BaseModelError(f"base {name!r} is an encoder-decoder", got=kind, expected=text)
    if config.get_text_config() is not config:
        todo = "load it with transformers and save its text model as a folder of its own"
        raise BaseModelError(f"base {name!r} is a model of more than text", got=kind, expected=text, todo=todo)
    if other := sorted(set(getattr(config, "layer_types", None) or ()) - {*ATTENTION}):
        what = f"base {name!r} has layers that are no attention over all tokens or a sliding window"
        todo = "branches of a row could not be kept apart in them; choose another base"
        raise BaseModelError(what, got=f"{kind} with {', '.join(other)}", expected=" and ".join(ATTENTION), todo=todo)
    if getattr(config, "use_bidirectional_attention", None):
        got = f"{kind} with use_bidirectional_attention"
        raise BaseModelError(f"base {name!r} is a decoder that reads both ways", got=got, expected=text)


def position_limit(config: Any) -> int | None:
    """The number of positions that a causal model can tell apart; None where nothing but its training limits them.

    Learned positions end with their table. Rotary ones of the types `dynamic` and `longrope` change for a whole batch once it has
    one position beyond those of the first training, so a row's states would depend on the rows beside it.
    """
    rotary = getattr(config, "rope_parameters", None)
    most: int | None = getattr(config, "max_position_embeddings", None)
    if rotary is None:
        return most
    types = [rotary, *(each for each in rotary.values() if isinstance(each, dict))]
    limits = [
        each.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None) or most
        for each in types
        if each.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(filter(None, limits), default=None)


def need_positions(limit: int | None, tokens: int, positions: Tensor | None) -> None:
    """Check that rows of so many tokens, at (B, T) positions or None for 0, 1, 2, …, stay within `position_limit`.

    Raises:
        InputError: One does not.
    """
    if limit is None or tokens <= limit:
        return
    longest = tokens if positions is None else int(positions.max()) + 1
    if longest > limit:
        got, todo = f"{longest:,} tokens", "give fewer events, or shorter texts"
        raise InputError("a row is longer than the base can read", got=got, expected=f"at most {limit:,}", todo=todo)


def scale_logits(config: Any, logits: Tensor) -> Tensor:
    """Scale and cap what a language-model head gives as the model itself does (Granite, Cohere, Gemma 2)."""
    logits = logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def check_branches(base: Any) -> None:
    """Compare a row of a history and two branches with each branch alone after the history; the base must be bare.

    Raises:
        BaseModelError: They differ, or the base cannot be told positions and a mask.
    """
    draw = torch.Generator().manual_seed(0)
    embeds = (torch.randn(1, 7, base.hidden_size, generator=draw) * base.embedding_rms).to(base.device, base.dtype)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    mask[5:, 3:5] = False
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 4]])
    what, todo = f"base {base.name!r} cannot keep the branches of a row apart", "choose another base"
    try:
        found = base.hidden(embeds, positions.to(base.device), mask[None, None].to(base.device))
        alone = base.hidden(torch.cat([embeds[:, :3], embeds[:, 5:]], dim=1))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BaseModelError(what, got=f"{base.model.config.model_type}: {first_line(error)}", todo=todo) from None
    close = 1e-3 if base.quantization == "none" and base.dtype == torch.float32 else 0.1  # others round
    if not _differ(found[:, 5:], alone[:, 3:]) <= close:
        got = f"{base.model.config.model_type}, whose tokens see more than a mask lets them, or at other positions"
        raise BaseModelError(what, got=got, todo=todo)


def _differ(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).float().norm() / wanted.float().norm())
