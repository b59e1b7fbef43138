"""Control tokens of a base's vocabulary, written out in data: read as the plain text that they are.

Owns: the two rules for them, which tokens they are, ids of a text without them. Ignores: tokens that a layout puts in by id.

A title that ends the text, for a GPT-2-like tokenizer:

    "Heat <|endoftext|>"   rule `token`: ["Heat", "Ġ", "<|endoftext|>"]
                           rule `text`:  ["Heat", "Ġ<", "|", "end", "of", "text", "|", ">"]

transformers' `split_special_tokens` is not enough: tokens that were added without being called special stay whole, a unigram
model knows control tokens as words of its own, and the switch is one for all threads of a tokenizer.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from genre.errors import ManifestError

ControlTokens = Literal["text", "token"]
"""Control tokens in data are plain `text`, or the `token` that the tokenizer makes of them (versions that record no rule)."""

_MARK = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
"""The form of a control token that nobody called special, such as `<think>` or `[INST]`."""

_CONTROL: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()


def recorded_rule(described: Any) -> ControlTokens:
    """Return the rule that a layout or an encoder of a version records.

    Raises:
        ManifestError: It is none.
    """
    rule = described.get("control_tokens", "token")
    if rule not in ("text", "token"):
        raise ManifestError("control_tokens cannot be read", got=repr(rule)[:80], expected="text or token")
    return cast(ControlTokens, rule)


def describe_rule(control_tokens: ControlTokens) -> dict[str, str]:
    """Return what a version records of a rule: nothing for the one that versions without a record were trained with."""
    return {} if control_tokens == "token" else {"control_tokens": control_tokens}


def is_control(content: str, *, special: bool) -> bool:
    """Return whether an added token steers a model: every special one, and those in brackets or the like."""
    return special or _MARK.fullmatch(content) is not None


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of a tokenizer's control tokens, the unknown token included."""
    found = _CONTROL.get(tokenizer)
    if found is None:
        added = getattr(tokenizer, "added_tokens_decoder", {})  # mistral-common's has none: it never reads them in a text
        marks = {number for number, token in added.items() if is_control(token.content, special=token.special)}
        found = _CONTROL[tokenizer] = frozenset(marks)
    return found


def token_ids(tokenizer: Any, text: str, control_tokens: ControlTokens) -> list[int]:
    """Tokenize a text that is data, without the special tokens that a tokenizer puts around it.

    A text without a control token has the same ids under both rules.

    Args:
        tokenizer: A transformers tokenizer.
        text: The text.
        control_tokens: The rule. Under `text` no id is of a control token, but the unknown token's for a word that the
            tokenizer does not know.
    """
    return _obeying(tokenizer, text, tokenizer(text, add_special_tokens=False)["input_ids"], control_tokens)


def batch_token_ids(tokenizer: Any, texts: list[str], control_tokens: ControlTokens) -> list[list[int]]:
    """Tokenize texts together, each as `token_ids` does."""
    if not texts:
        return []
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [_obeying(tokenizer, text, ids, control_tokens) for text, ids in zip(texts, found, strict=True)]


def _obeying(tokenizer: Any, text: str, ids: list[int], control_tokens: ControlTokens) -> list[int]:
    """The ids of a text under a rule, of those that its tokenizer gives."""
    if control_tokens == "token":
        return ids
    return list(_plain(tokenizer, text)) if _written(tokenizer, text, ids) else ids


def _written(tokenizer: Any, text: str, ids: list[int]) -> bool:
    """True if a text has control tokens in it; an unknown word is none."""
    if control_ids(tokenizer).isdisjoint(ids):
        return False
    return not refused_ids(tokenizer).isdisjoint(ids) or str(tokenizer.unk_token) in text


def refused_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that no data has under the rule `text`: of the control tokens, an unknown token without other use left out."""
    return control_ids(tokenizer) - {_unknown(tokenizer)}


def _unknown(tokenizer: Any) -> int | None:
    """The id of the unknown token, where it has no other use; GPT-2's also ends a text."""
    others = (getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "sep", "cls", "pad", "mask"))
    return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


def _plain(tokenizer: Any, text: str) -> Iterator[int]:
    """Token ids of a text, its added tokens unknown to the tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    refused = refused_ids(tokenizer)
    if backend is None:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        yield from (number for number in ids if number not in refused)
        return
    normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    parts = [normal] if backend.pre_tokenizer is None else [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]
    for token in (token for part in parts for token in backend.model.tokenize(part)):
        if token.id not in refused:
            yield token.id
        else:  # a word of the model's own, as in a unigram vocabulary
            letters = (each.id for letter in token.value for each in backend.model.tokenize(letter))
            yield from (number for number in letters if number not in refused)
