"""Items as codes, one after the other: the loss of a pass with every target's codes, and the logits of what a search asks for.

Owns: which states a generate head reads, and against which codes. Ignores: how states came about, beams, requests.

    code_losses(head, hidden, reads, soft, trie)            # (n,) of the targets
    code_losses(head, hidden, reads.drawn(), soft, trie)    # (n · m,) of the items that were drawn for each

The loss of a target is the negative log-probability of its item, the sum over levels of

    -log p(c_l | history, c_1 … c_{l-1}),   p(c | …) = exp(z_c) / Σ_{c' that go on in the trie} exp(z_c')

so training, exact scoring and beam search share one distribution over items (`genre.modules.beams`), and nothing is learnt of
codes that no item has. A level at which an item's prefix leaves one code only adds nothing.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genre.data.code_trie import CodeTrie
from genre.data.sequences.batches import LabelledReads
from genre.data.sequences.transfer import upload
from genre.modules.embedding import SoftVectors
from genre.modules.heads.heads import GenerateHead


def code_losses(head: GenerateHead, hidden: Tensor, reads: LabelledReads, soft: SoftVectors, trie: CodeTrie) -> Tensor:
    """(n,) float32 negative log-probability of each target's item.

    Args:
        head: The head.
        hidden: (B, T, D) states of rows with a branch of codes for each target.
        reads: The n targets.
        soft: Has the codes' vectors.
        trie: The items that are told apart; every target is one of them.
    """
    there = reads.on_host
    items, device = there.labels.numpy(), hidden.device
    losses = hidden.new_zeros(len(items), dtype=torch.float32)
    for depth in range(trie.depth):
        nodes = trie.node_of(depth, items)
        chosen = np.flatnonzero(trie.fan(depth, nodes) > 1)
        if len(items) and not len(chosen):
            continue
        # several items may be told apart by one state, which is then read once
        tokens, first, own = np.unique(
            tokens_before(there, hidden.shape[1], depth)[chosen], return_index=True, return_inverse=True
        )
        logits = level_logits(head, hidden.flatten(0, 1)[upload(torch.from_numpy(tokens), device)], soft, depth)
        legal = upload(torch.from_numpy(trie.legal(depth, nodes[chosen[first]])), device)
        shares = F.log_softmax(logits.masked_fill(~legal, -torch.inf), dim=-1)
        wanted = trie.rows[trie.position[items[chosen]], depth].astype(np.int64)
        some, row, code = (upload(torch.from_numpy(each), device) for each in (chosen, own, wanted))
        losses = losses.index_add(0, some, -shares[row, code])
    return losses


def tokens_before(reads: LabelledReads, width: int, depth: int) -> np.ndarray:
    """(n,) tokens of a flattened batch by which targets' codes at a depth are told: the one before, then those of the codes.

    Args:
        reads: The n targets, on the CPU.
        width: T of the batch (B, T).
        depth: Codes that are known.
    """
    if depth == 0:
        return (reads.rows * width + reads.token_index).numpy()
    assert reads.code_starts is not None, "rows without branches of codes cannot be learnt from"
    return (reads.rows * width + reads.code_starts + depth - 1).numpy()


def level_logits(head: GenerateHead, states: Tensor, soft: SoftVectors, level: int) -> Tensor:
    """(n, size) float32 logits of a level's codes after (n, D) states."""
    assert soft.codes is not None, "a generate head needs codes"
    found: Tensor = head(states, soft.codes.output_vectors(level))
    return found
