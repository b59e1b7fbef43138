"""A base's words: mean states of texts, and its language-model head's logits of some tokens.

Owns: these two. Ignores: the passes of the layers (`genre.modules.base.base`), what texts and words are of.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genre.data.sequences.batches import padded, plan_batches
from genre.data.sequences.transfer import upload
from genre.modules.base.kinds import scale_logits
from genre.modules.base.loading import weight_of

TEXT_TOKENS = 4096
"""Padded tokens of one pass over many texts."""


def word_logits(model: Any, hidden: Tensor, word_ids: Tensor) -> Tensor:
    """The logits (n, C), float32, of C tokens from states (n, D); see `Base.word_logits`."""
    head = model.get_output_embeddings()
    weight, bias = weight_of(head), getattr(head, "bias", None)
    ids = word_ids.to(weight.device)
    logits = nn.functional.linear(hidden, weight[ids].to(hidden.device, hidden.dtype)).float()
    if bias is not None:
        logits = logits + bias[ids].to(hidden.device).float()
    return scale_logits(model.config, logits)


@torch.no_grad()
def text_vectors(
    base: Any, token_ids: list[list[int]], *, batch_tokens: int, forward: AbstractContextManager[Any] | None
) -> Tensor:
    """Mean hidden states (N, D), float32 on the CPU, of N texts; see `Base.text_vectors`."""
    vectors = torch.zeros(len(token_ids), base.hidden_size)
    lengths = torch.tensor([len(ids) for ids in token_ids])
    words = lengths.nonzero().squeeze(-1)
    for chosen in plan_batches(lengths[words].numpy(), batch_tokens):
        rows = words[chosen]
        ids = upload(padded([np.array(token_ids[row]) for row in rows.tolist()], 0), base.device)
        with forward or nullcontext():
            hidden = base.hidden(base.embedding(ids), lengths=lengths[rows]).float().cpu()
        keep = (torch.arange(ids.shape[1]) < lengths[rows, None]).float()
        vectors[rows] = (hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
    return vectors
