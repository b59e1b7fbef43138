"""Small real parts instead of mocks: a two-layer Llama or BERT with a byte tokenizer, a planted log and planted texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from genre.data.interactions import Interactions

if TYPE_CHECKING:
    from genre.data.texts.dataset import Texts


def make_base(folder: Path, *, layers: int = 2, width: int = 32, seed: int = 0, vocabulary: int = 260) -> Path:
    """Write a random Llama of the usual shape and a byte-level tokenizer as a transformers folder."""
    from tokenizers import pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<s>": 0, "</s>": 1, "<pad>": 2} | {letter: i + 3 for i, letter in enumerate(alphabet)}
    tokenizer = _byte_tokenizer(words)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return _write_random(LlamaForCausalLM, config, wrapped, folder, seed)


def make_encoder_base(folder: Path, *, layers: int = 2, width: int = 32, seed: int = 0, positions: int = 96) -> Path:
    """Write a random BERT of the usual shape and a byte-level tokenizer with [CLS] and [SEP] as a transformers folder."""
    from tokenizers import pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ("[PAD]", "[CLS]", "[SEP]")
    words = {word: i for i, word in enumerate((*special, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    tokenizer = _byte_tokenizer(words)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
    )
    config = BertConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        vocab_size=len(words),
        max_position_embeddings=positions,
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", model_max_length=positions
    )
    return _write_random(BertModel, config, wrapped, folder, seed)


def _byte_tokenizer(words: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _write_random(kind: Any, config: Any, tokenizer: Any, folder: Path, seed: int) -> Path:
    import torch

    from genre.modules.base.quiet import quiet

    with quiet():
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.1)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def planted_texts(*, groups: int = 80, per_group: int = 4, seed: int = 0, noise: float = 0.05) -> "Texts":
    """Reviews of products: `recommended` follows one word of the text but for `noise`, `rating` (1, 3 or 5) another one.

    Reading the words gives an AUC of 1 - noise for `recommended` and an accuracy of 1 for `rating`. A tenth have no rating.
    """
    from genre.data.texts.dataset import Texts

    draw = np.random.default_rng(seed)
    rows = []
    for number in range(groups * per_group):
        good, stars = draw.random() < 0.7, int(draw.integers(3))
        filler = " ".join(draw.choice(["the", "a", "it", "this"], size=draw.integers(1, 5)))
        said = f"{filler} {'XX' if good else 'oo'} {('@@', '##', '++')[stars]}"
        rows.append(
            (
                f"t{number}",
                f"g{number // per_group}",
                f"title {number % 7}",
                said,
                int(good != (draw.random() < noise)),
                None if draw.random() < 0.1 else (1, 3, 5)[stars],
            )
        )
    schema = ["text_id", "group_id", "title", "review", "recommended", "rating"]
    return Texts.from_frame(
        pl.DataFrame(rows, schema=schema, orient="row"),
        texts=["title", "review"],
        labels=["recommended", "rating"],
        name="planted-texts",
    )


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


def browsing_log(
    *,
    users: int = 200,
    items: int = 48,
    kinds: int = 4,
    views: int = 16,
    offers: int = 4,
    seed: int = 0,
    noise: float = 0.1,
    focus: float = 0.9,
    passed: str = "view",
) -> Interactions:
    """Browsing in, purchases out: a preference that shows only in views and pays in purchases.

    Every user has one of `kinds` hidden kinds, and so has every item (no title tells it). First come `views` events with items of
    the user's kind, but for a share 1 - `focus` of any kind; their `behaviour` is `view`, and by chance alone `cart`. Then comes
    one impression of `offers` items, every second one of the user's kind: an item is bought (`purchase`) if the kinds agree, and
    `passed` if not, but for `noise`. Siblings never see each other, users follow each other in time, and every kind has as many
    users and items, so neither items' nor users' shares tell anything.

    `bought` is 1 or 0 for offers and empty for views: the label of purchases among offers. Knowing both kinds gives an AUC of
    1 - noise there. Times are in milliseconds in the source; split by time, the test users are new.
    """
    draw = np.random.default_rng(seed)
    kind_of = draw.permutation(np.arange(items) % kinds)
    of_kind = [np.flatnonzero(kind_of == kind) for kind in range(kinds)]
    rows = []
    for user in range(users):
        kind = user % kinds
        start = 1_700_000_000_000 + 86_400_000 * user
        for step in range(views):
            item = draw.choice(of_kind[kind]) if draw.random() < focus else draw.integers(items)
            behaviour = "cart" if draw.random() < 0.15 else "view"
            rows.append((f"u{user}", f"i{item}", behaviour, None, f"v{user}-{step}", start + 60_000 * step))
        mine = draw.choice(of_kind[kind], size=(offers + 1) // 2, replace=False)
        others = draw.choice(np.flatnonzero(kind_of != kind), size=offers // 2, replace=False)
        for place, item in enumerate(draw.permutation([*mine, *others])):
            bought = (kind_of[item] == kind) != (draw.random() < noise)
            behaviour = "purchase" if bought else passed
            rows.append(
                (f"u{user}", f"i{item}", behaviour, int(bought), f"o{user}", start + 60_000 * (views + 1) + 1_000 * place)
            )
    schema = {"user_id": str, "item_id": str, "behaviour": str, "bought": pl.Int8, "impression_id": str, "timestamp": pl.Int64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    catalogue = pl.DataFrame({"item_id": [f"i{i}" for i in range(items)], "title": [f"thing {i}" for i in range(items)]})
    return Interactions.from_frame(frame, items=catalogue, name="browsing", time_unit="ms")


def tastes_log(
    *, users: int = 120, items: int = 36, events: int = 24, seed: int = 0, noise: float = 0.05, stay: float = 1 / 3
) -> Interactions:
    """Items of three kinds; users like or dislike each kind on its own, so that only events of a kind tell of that kind.

    With `stay` above a third, users take that share of their items from one kind, and what they take next follows from it.
    """
    draw, rows = np.random.default_rng(seed), []
    for user in range(users):
        likes = draw.random(3) < 0.5
        own = np.where(np.arange(items) % 3 == user % 3, stay, (1 - stay) / 2)
        taken = draw.choice(items, size=events if stay < 0.5 else events // 2, replace=False, p=own / own.sum())
        for step, item in enumerate(taken):
            agrees = bool(likes[item % 3]) != (draw.random() < noise)
            rating = float(draw.integers(4, 6) if agrees else draw.integers(1, 3))
            rows.append((f"u{user}", f"i{item}", rating, 1000 * step + user))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    titles = [f"{('war', 'love', 'farm')[item % 3]} {item}" for item in range(items)]
    catalogue = pl.DataFrame({"item_id": [f"i{item}" for item in range(items)], "title": titles})
    return Interactions.from_frame(frame, items=catalogue, name="tastes")
