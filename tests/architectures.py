"""Tiny random models of transformers' own configurations: what bases of today look like.

Sizes are small enough for a test and odd enough to matter: a sliding window of 8 tokens, several layers of each kind, biases and
norms that are not at their start.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import make_base, make_encoder_base
from genre.modules.base.quiet import quiet

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 260,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 8}
SLIDING = {"sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
EVERY_OTHER = ["sliding_attention", "full_attention"] * 2

CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3 (scaled positions)": ("LlamaConfig", GROUPED | {"rope_parameters": LLAMA3}),
    "Llama with biases, tied": ("LlamaConfig", GROUPED | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "Qwen 2 (biased q, k, v; sliding upper layers)": (
        "Qwen2Config",
        GROUPED | SLIDING | {"use_sliding_window": True, "max_window_layers": 2},
    ),
    "Qwen 3 (norms of q and k)": ("Qwen3Config", WIDE),
    "Mistral (sliding)": ("MistralConfig", GROUPED | SLIDING),
    "Gemma 3 (alternating)": (
        "Gemma3TextConfig",
        WIDE | SLIDING | {"layer_types": EVERY_OTHER, "query_pre_attn_scalar": 8},
    ),
    "Phi 2 (parallel, biased head)": ("PhiConfig", GROUPED),
    "Phi 3 (fused q, k, v; sliding)": ("Phi3Config", GROUPED | SLIDING),
    "Phi 4 mini (long positions)": (
        "Phi3Config",
        GROUPED | {"rope_parameters": LONG, "original_max_position_embeddings": 128, "tie_word_embeddings": True},
    ),
    "SmolLM 3 (layers without positions)": ("SmolLM3Config", GROUPED | {"no_rope_layer_interval": 2}),
    "OLMo 2": ("Olmo2Config", GROUPED),
    "OLMo 3 (sliding)": ("Olmo3Config", GROUPED | SLIDING | {"layer_types": EVERY_OTHER}),
    "GPT-2 (transposed linears)": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "vocab_size": 260, "bos_token_id": 0, "eos_token_id": 1},
    ),
    "GPT-NeoX (Pythia)": ("GPTNeoXConfig", SIZES),
}
"""Name → configuration class and its arguments."""

MORE_CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma": ("GemmaConfig", WIDE),
    "Gemma 2 (soft caps, alternating)": (
        "Gemma2Config",
        WIDE | SLIDING | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "OLMo": ("OlmoConfig", GROUPED | {"clip_qkv": 1.0}),
    "OPT": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "vocab_size": 260,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 32,
        },
    ),
    "Qwen 3 MoE": ("Qwen3MoeConfig", WIDE | EXPERTS),
    "Mixtral": ("MixtralConfig", GROUPED | {"num_local_experts": 4}),
    "gpt-oss (sinks, experts)": ("GptOssConfig", WIDE | SLIDING | {"num_local_experts": 4, "layer_types": EVERY_OTHER}),
    "Granite": ("GraniteConfig", GROUPED | {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "attention_multiplier": 0.3}),
    "Cohere": ("CohereConfig", GROUPED),
    "Cohere 2 (sliding)": ("Cohere2Config", GROUPED | SLIDING | {"layer_types": EVERY_OTHER}),
    "StarCoder 2 (sliding)": ("Starcoder2Config", GROUPED | SLIDING),
    "EXAONE 4 (sliding)": ("Exaone4Config", GROUPED | SLIDING | {"layer_types": EVERY_OTHER}),
    "SmolLM 3 (sliding)": (
        "SmolLM3Config",
        GROUPED | SLIDING | {"no_rope_layer_interval": 2, "use_sliding_window": True},
    ),
}
"""More of them, for the slow tests."""

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("BertConfig", SIZES),
    "ModernBERT (alternating)": (
        "ModernBertConfig",
        SIZES | {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 1},
    ),
    "RoBERTa": ("RobertaConfig", SIZES),
    "DeBERTa": ("DebertaV2Config", SIZES),
}

HYBRID = ["linear_attention", "full_attention"] * 2
LINEAR = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 260}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "T5": ("T5Config", T5, "is an encoder-decoder: got t5; expected a GPT-kind model, or an encoder"),
    "Qwen 3 Next": ("Qwen3NextConfig", WIDE | EXPERTS | LINEAR | {"layer_types": HYBRID}, "got qwen3_next with linear_attention"),
    "LFM 2": ("Lfm2Config", GROUPED | {"layer_types": ["conv", "full_attention"] * 2}, "got lfm2 with conv; expected full_att"),
    "Mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 260}, "got mamba with linear_attention"),
    "Llama 4": ("Llama4TextConfig", WIDE | {"no_rope_layers": [1, 0, 1, 0]}, "got llama4_text with chunked_attention"),
    "Gemma 3 with pictures": ("Gemma3Config", {"text_config": WIDE | SLIDING}, "is a model of more than text: got gemma3"),
    "EmbeddingGemma": (
        "Gemma3TextConfig",
        WIDE | SLIDING | {"use_bidirectional_attention": True},
        "decoder that reads both ways",
    ),
    "BLOOM": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 260}, "got bloom, whose attention is"),
    "Falcon with ALiBi": (
        "FalconConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 260, "alibi": True},
        "cannot keep the branches of a row apart: got falcon",
    ),
}
"""Name → configuration class, its arguments, and a part of the message; weights are written where a refusal needs them."""
WITH_WEIGHTS = ("BLOOM", "Falcon with ALiBi")


def config_of(kind: str, options: dict[str, Any]) -> Any:
    """A configuration of transformers' own."""
    import transformers

    with quiet():
        return getattr(transformers, kind)(**options)


def write_model(folder: Path, config: Any, *, encoder: bool = False, weights: bool = True) -> Path:
    """Write a random model of a configuration with a byte tokenizer as a transformers folder."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    make: Callable[[Path], Path] = make_encoder_base if encoder else make_base
    make(folder)
    for file in (*folder.glob("*.safetensors"), folder / "config.json"):
        file.unlink()
    with quiet():
        if not weights:
            config.save_pretrained(folder)
            return folder
        torch.manual_seed(0)
        auto: Any = AutoModel if encoder else AutoModelForCausalLM
        model = auto.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.15)
                elif "norm" in name or "bias" in name or "ln_" in name:
                    parameter.add_(torch.randn(parameter.shape) * 0.2)
        model.save_pretrained(folder)
    return folder
