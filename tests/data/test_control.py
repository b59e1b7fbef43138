"""Control tokens of a base's vocabulary in titles, instructions and user columns: plain text, for three kinds of tokenizers."""

import json

import numpy as np
import pytest

from genre.data.sequences.control import batch_token_ids, control_ids, recorded_rule, refused_ids, token_ids
from genre.data.sequences.layout import Layout
from genre.data.sequences.text_rows import TextLayout
from genre.errors import ManifestError

pytest.importorskip("torch")

LETTERS = "abcdefghijklmnopqrstuvwxyz<>/|_[]{}SEPMAKUN"


def llama():
    """Like Llama's: BPE over words that begin with ▁, unknown letters as bytes."""
    from transformers import LlamaTokenizer

    words = ["<unk>", "<s>", "</s>", "▁", *dict.fromkeys(LETTERS), *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "st"]
    return LlamaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[("▁", "a"), ("s", "t")])


def gpt2():
    """Like GPT-2's: BPE over bytes, one control token for begin, end and unknown words, and chat tokens as SmolLM has."""
    from tokenizers import pre_tokenizers
    from transformers import AddedToken, GPT2Tokenizer

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "st", "Ġ<", "<|endoftext|>"]
    made = GPT2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[("s", "t"), ("Ġ", "<")])
    made.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<think>", special=False)])
    made.add_tokens(["Jedi"])
    return made


def bert():
    """Like BERT's: whole words and pieces of words, punctuation apart."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "sep", "mask", "un", "##k", "a", "heat", "<", "/", "s", ">"]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def unigram():
    """Like XLM-R's, whose model has the control tokens among its own words."""
    from transformers import XLMRobertaTokenizer

    marks = [(mark, 0.0) for mark in ("<s>", "<pad>", "</s>", "<unk>")]
    return XLMRobertaTokenizer(vocab=[*marks, *((letter, -3.0) for letter in "▁" + LETTERS), ("<mask>", 0.0)])


def python():
    """One without a fast backend."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


CASES = [
    (llama, "</s>", ["▁", "<", "/", "s", ">"]),
    (llama, "a<s>a", ["▁a", "<", "s", ">", "a"]),
    (llama, "<unk>", ["▁", "<", "u", "n", "k", ">"]),
    (gpt2, "<|im_start|>", [*"<|im_", "st", *"art|>"]),
    (gpt2, "a <|endoftext|>", ["a", "Ġ<", *"|endoftext|>"]),
    (gpt2, "<think>", list("<think>")),
    (bert, "heat [SEP] a", ["heat", "[", "sep", "]", "a"]),
    (bert, "[MASK]a", ["[", "mask", "]", "a"]),
    (bert, "[UNK]", ["[", "un", "##k", "]"]),
    (unigram, "a</s>", ["▁", "a", "<", "/", "s", ">"]),
    (unigram, "<mask>", ["▁", *"<mask>"]),
    (python, "a</s>", list("a</s>")),
]


@pytest.mark.parametrize(("kind", "text", "wanted"), CASES)
def test_a_control_token_in_data_is_text(kind, text, wanted):
    tokenizer = kind()
    old = token_ids(tokenizer, text, "token")
    assert not control_ids(tokenizer).isdisjoint(old), "the tokenizer reads it as a token: the rule is needed"
    ids = token_ids(tokenizer, text, "text")
    assert tokenizer.convert_ids_to_tokens(ids) == wanted and refused_ids(tokenizer).isdisjoint(ids)
    assert batch_token_ids(tokenizer, ["a", text], "text")[1] == ids
    assert token_ids(tokenizer, text, "token") == old, "the tokenizer is left as it was, for other threads too"


@pytest.mark.parametrize("kind", [llama, gpt2, bert, unigram, python])
def test_other_texts_have_the_same_ids_under_both_rules(kind):
    tokenizer, draw = kind(), np.random.default_rng(0)
    texts = [
        "",
        " ",
        "a",
        "heat",
        "ünknown 猫",
        "[sep] < s >",
        "\na st:",
        *("".join(draw.choice(list(LETTERS), 12)) for _ in range(20)),
    ]
    for text in texts:
        assert token_ids(tokenizer, text, "text") == token_ids(tokenizer, text, "token"), text


@pytest.mark.parametrize("kind", [llama, gpt2, bert])
def test_what_transformers_splits_by_itself_is_split_as_it_does(kind):
    tokenizer = kind()
    for mark in tokenizer.all_special_tokens:
        for text in (mark, f"a {mark}st", f"{mark}{mark} a", f"\n{mark}:"):
            split = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert token_ids(tokenizer, text, "text") == split, text


def test_a_word_that_was_added_stays_a_word():
    tokenizer = gpt2()
    assert tokenizer.convert_ids_to_tokens(token_ids(tokenizer, "Jedi", "text")) == ["Jedi"]


def test_an_unknown_word_stays_unknown_beside_a_control_token():
    tokenizer = bert()
    found = tokenizer.convert_ids_to_tokens(token_ids(tokenizer, "zzz [SEP] [UNK]", "text"))
    assert found == ["[UNK]", "[", "sep", "]", "[", "un", "##k", "]"]


@pytest.mark.parametrize(("kind", "mark"), [(llama, "</s>"), (gpt2, "<|endoftext|>"), (bert, "[SEP]")])
@pytest.mark.parametrize("rule", ["text", "token"])
def test_a_layout_has_the_rule_for_titles_users_and_instructions_and_records_it(kind, mark, rule):
    tokenizer = kind()
    layout = Layout.make(
        tokenizer, item="text", text=("title",), feedback=None, instruction=f"{mark} of {{age}}", control_tokens=rule
    )
    refused = refused_ids(tokenizer)
    for ids in (
        layout.item_tokens(f"heat {mark}")[0],
        layout.prefix({"age": "a"})[len(layout.start) :],
        layout.prefix({"age": mark})[1:],
    ):
        assert refused.isdisjoint(ids.tolist()) == (rule == "text")
    assert list(layout.start) == ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id])
    described = json.loads(json.dumps(layout.describe()))
    assert described.get("control_tokens") == ("text" if rule == "text" else None)
    again = Layout.restore(tokenizer, described)
    assert again.control_tokens == rule and (again.prefix({"age": mark}) == layout.prefix({"age": mark})).all()


@pytest.mark.parametrize("rule", ["text", "token"])
def test_a_text_keeps_the_tokens_that_the_layout_puts_around_it(rule):
    from types import SimpleNamespace

    tokenizer = bert()
    base = SimpleNamespace(tokenizer=tokenizer, bidirectional=True, max_tokens=64)
    shape = {"text": ("title",), "instruction": "", "max_tokens": 32, "pool": "mean"}
    layout = TextLayout.make(base, **shape, control_tokens=rule)
    (row,) = TextLayout.restore(base, layout.describe()).rows(["heat [SEP] a"], [0])
    inner = ["[", "sep", "]"] if rule == "text" else ["[SEP]"]
    assert tokenizer.convert_ids_to_tokens(row.tokens.tolist()) == ["[CLS]", "heat", *inner, "a", "[SEP]"]


def test_a_rule_that_nobody_knows_is_refused():
    assert recorded_rule({}) == "token"
    with pytest.raises(ManifestError, match="control_tokens cannot be read: got 'both'; expected text or token"):
        recorded_rule({"control_tokens": "both"})
