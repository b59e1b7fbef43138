"""Small real parts instead of mocks: a two-layer Llama with a byte tokenizer, and a log with a planted preference."""

from pathlib import Path

import numpy as np
import polars as pl

from genre.interactions import Interactions


def make_base(folder: Path, *, layers: int = 2, width: int = 32, seed: int = 0, vocabulary: int = 260) -> Path:
    """Write a random Llama of the usual shape and a byte-level tokenizer as a transformers folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from genre.base import quiet

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<s>": 0, "</s>": 1, "<pad>": 2} | {letter: i + 3 for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=vocabulary, tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    with quiet():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.1)
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>").save_pretrained(
            folder
        )
    return folder


def planted_log(*, users: int = 60, items: int = 30, events: int = 24, seed: int = 0, noise: float = 0.1) -> Interactions:
    """Users of two kinds, items of two kinds; ratings 4-5 where the kinds agree, 1-2 where they differ, but for `noise`.

    Knowing a user's kind from the history and an item's kind from its title gives an AUC of 1 - noise.
    """
    draw = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        kind = user % 2
        for step, item in enumerate(draw.choice(items, size=min(events, items), replace=False)):
            agrees = (item % 2 == kind) != (draw.random() < noise)
            rating = float(draw.integers(4, 6) if agrees else draw.integers(1, 3))
            rows.append((f"u{user}", f"i{item}", rating, 1000 * step + user))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    catalogue = pl.DataFrame(
        {"item_id": [f"i{i}" for i in range(items)], "title": [f"{'war' if i % 2 else 'love'} {i}" for i in range(items)]}
    )
    people = pl.DataFrame({"user_id": [f"u{i}" for i in range(users)], "age": [20 + i for i in range(users)]})
    return Interactions.from_frame(frame, items=catalogue, users=people, name="planted")
