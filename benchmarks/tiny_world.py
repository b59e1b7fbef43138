"""A tiny base and a small log, made in a second: for benchmarks of what surrounds the model.

Owns: making them. Ignores: quality, which nobody measures here.
"""

from pathlib import Path

import numpy as np
import polars as pl

import genre

USERS, ITEMS, EVENTS = 200, 1000, 40
NAME = "tiny"
"""What they are called where a base or a data set is named."""


def tiny_base(folder: Path) -> Path:
    """Write a random Llama of two layers, 64 wide, and a byte-level tokenizer as a transformers folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={word: code for code, word in enumerate(["<s>", "</s>", *letters])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters) + 2, num_hidden_layers=2, tie_word_embeddings=True, max_position_embeddings=8192, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def tiny_log() -> genre.Interactions:
    """A log of 200 users with 40 ratings each, of a thousand items with titles."""
    draw = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"i{item}", float(draw.integers(1, 6)), 1000 * step + user)
        for user in range(USERS)
        for step, item in enumerate(draw.choice(ITEMS, size=EVENTS, replace=False))
    ]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(ITEMS)], "title": [f"Film number {n}" for n in range(ITEMS)]})
    people = pl.DataFrame({"user_id": [f"u{n}" for n in range(USERS)], "age": [20 + n % 60 for n in range(USERS)]})
    return genre.Interactions.from_frame(events, items=items, users=people, name=NAME)
