"""Encoder bases: padding is masked, nothing causal is asked of them, and their states are transformers' own."""

import numpy as np
import pytest
import torch

from genre.errors import BaseModelError
from genre.modules.base.base import Base


def ids(base: Base, text: str) -> torch.Tensor:
    return torch.tensor([base.tokenizer(text)["input_ids"]])


def test_an_encoder_is_told_from_a_causal_base(bert, base):
    assert bert.bidirectional and not base.bidirectional
    assert (bert.max_tokens, base.max_tokens) == (96, None)
    base.need_causal("anything")
    assert bert.depth == 2 and bert.hidden_size == 32
    assert not any(parameter.requires_grad for parameter in bert.model.parameters())


def test_states_are_those_of_transformers(bert, text_bases):
    from transformers import BertModel

    theirs = BertModel.from_pretrained(text_bases / "bert").eval()
    tokens = ids(bert, "some words")
    with torch.no_grad():
        own = bert.hidden(bert.embedding(tokens), lengths=torch.tensor([tokens.shape[1]]))
        wanted = theirs(input_ids=tokens).last_hidden_state
    assert torch.allclose(own, wanted, atol=1e-6)


def test_padding_is_never_seen_and_later_tokens_are(bert):
    short, long = ids(bert, "short"), ids(bert, "a much longer text")
    size, most = short.shape[1], long.shape[1]
    padded = torch.cat([short, torch.full((1, most - size), 7)], 1)
    with torch.no_grad():
        alone = bert.hidden(bert.embedding(short), lengths=torch.tensor([size]))
        both = bert.hidden(bert.embedding(torch.cat([padded, long])), lengths=torch.tensor([size, most]))
        unmasked = bert.hidden(bert.embedding(padded), lengths=torch.tensor([most]))
        changed = bert.hidden(bert.embedding(torch.cat([short[:, :-1], short[:, :1]], 1)), lengths=torch.tensor([size]))
    assert torch.allclose(both[0, :size], alone[0], atol=1e-6)
    assert not torch.allclose(unmasked[0, :size], alone[0], atol=1e-3)
    assert not torch.allclose(changed[0, 0], alone[0, 0], atol=1e-3)  # the first token sees the last


def test_text_vectors_do_not_depend_on_what_is_beside_them(bert):
    texts = [bert.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("one", "another and longer one", "")]
    together = bert.text_vectors(texts)
    for row, text in enumerate(texts):
        assert torch.allclose(together[row], bert.text_vectors([text])[0], atol=1e-6)
    assert np.count_nonzero(together[2].numpy()) == 0


def test_what_needs_a_causal_base_is_refused(bert):
    embeds = torch.zeros(1, 3, 32)
    with pytest.raises(BaseModelError, match="a row with branches needs a causal base: got the encoder .*; expected a GPT-kind"):
        bert.hidden(embeds, torch.zeros(1, 3, dtype=torch.long), lengths=torch.tensor([3]))
    with pytest.raises(BaseModelError, match="a row with branches"):
        bert.hidden(embeds, mask=torch.ones(1, 1, 3, 3, dtype=torch.bool), lengths=torch.tensor([3]))
    with pytest.raises(BaseModelError, match="head 'verbalizer' needs a causal base"):
        bert.word_logits(torch.zeros(1, 32), torch.tensor([1]))


def test_depth_keeps_the_first_layers(text_bases):
    folder = str(text_bases / "bert")
    cut = Base.load(folder, depth=1)
    assert len(cut.model.encoder.layer) == 1 and cut.fingerprint == Base.load(folder).fingerprint
    with pytest.raises(BaseModelError, match="depth is out of range: got 3; expected 1 to 2"):
        Base.load(folder, depth=3)
