"""The start of the rows of code tokens: a linear probe of the bare base, so that training begins with what the base knows.

Owns: which targets' states the probe reads, its fit. Ignores: how codes are trained, how items are generated.

The probe is the multinomial logistic regression of each level's codes on the states by which they are told, over the codes that
the trie leaves (`genre.modules.generation`), with a Gaussian prior on how far a row moves. To probe before tuning keeps what a
base has learnt (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution").
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genre.data.code_trie import CodeTrie
from genre.data.sequences.batches import LabelledReads, collate, plan_batches
from genre.data.sequences.rows import RowBuilder
from genre.data.sequences.transfer import upload
from genre.modules.base.planned import PlannedBase
from genre.modules.codes.item_codes import ItemCodes
from genre.modules.generation import tokens_before
from genre.modules.recommender import Recommender
from genre.recipe import Data

TARGETS = 50_000
"""Training events whose states are read, about; fewer for a wide base or large levels."""
CELLS = 2**25
"""Numbers of a level's states, or of its logits, that are in memory at once, 128 MiB of float32."""
MOVE = 0.05
"""Prior variance of what a row's move from its start adds to a logit; chosen on validation events of Amazon Scientific."""
ITERATIONS = 60


@dataclass(frozen=True)
class _Choices:
    """What is told at one depth: states (n, D) float32, the codes that go on (n, size) bool, and the right ones (n,) int64."""

    states: Tensor
    legal: Tensor
    codes: Tensor


def start_codes(model: Recommender, builder: RowBuilder, train_mask: np.ndarray, data: Data) -> None:
    """Start the rows of codes where a linear probe of the bare base tells training events best (mutates them).

    Rows begin at the codes' shares of the training events, along the mean of the states, and move from there. A model without its
    base, or one that is only planned, starts as chance made it.

    Args:
        model: Has a task that generates.
        builder: Of its rows.
        train_mask: (n,) bool, events that train.
        data: Limits the events of a row.
    """
    if model.blind or isinstance(model.base, PlannedBase):
        return
    assert model.soft is not None and model.soft.codes is not None and model.trie is not None
    trie, codes = model.trie, model.soft.codes
    events = builder.data.item_codes[train_mask]
    own = trie.rows[trie.position[events[trie.node_of(0, events) >= 0]]]
    for depth, choices in enumerate(_read(model, builder, train_mask, data)):
        if choices is None:
            continue
        counts = np.bincount(own[:, depth], minlength=trie.sizes[depth]) + 0.5
        shares = torch.from_numpy(np.log(counts / counts.sum())).to(choices.states)
        _fit(codes, depth, shares - shares.mean(), choices)


@torch.no_grad()
def _read(model: Recommender, builder: RowBuilder, train_mask: np.ndarray, data: Data) -> list[_Choices | None]:
    """For each depth what some rows of the training part tell; None where nothing is left to tell."""
    assert model.trie is not None and model.soft is not None
    trie, cut, training = model.trie, builder.cut, model.training
    rows, _ = builder.training_rows(train_mask, max_events=data.max_events, min_events=data.min_events)
    builder.cut = cut  # these rows are read here alone
    most = min(TARGETS, CELLS // max(model.base.hidden_size, *trie.sizes))
    targets = sum(int(row.targets.sum()) for row in rows)
    kept = math.ceil(len(rows) * min(1, most / max(targets, 1)))
    rows = [rows[index] for index in np.linspace(0, len(rows), kept, endpoint=False, dtype=int)]
    name = next(name for name in model.tasks if model.head(name).generates)
    supervise = builder.data.supervise([model.tasks[name]])
    found: list[list[_Choices]] = [[] for _ in range(trie.depth)]
    model.eval()
    for chosen in plan_batches(np.array([len(row) for row in rows]), 4096):
        batch = collate([rows[index] for index in chosen], supervise).to(model.base.device)
        hidden = model.hidden(batch)
        for depth, parts in enumerate(found):
            parts.append(_choices(hidden, batch.reads[name], trie, depth))
    model.train(training)
    return [_joined(parts) for parts in found]


def _choices(hidden: Tensor, reads: LabelledReads, trie: CodeTrie, depth: int) -> _Choices:
    there = reads.on_host
    items = there.labels.numpy()
    nodes = trie.node_of(depth, items)
    chosen = np.flatnonzero((nodes >= 0) & (trie.fan(depth, nodes) > 1))
    tokens = tokens_before(there, hidden.shape[1], depth)[chosen]
    codes = trie.rows[trie.position[items[chosen]], depth].astype(np.int64)
    return _Choices(
        hidden.flatten(0, 1)[upload(torch.from_numpy(tokens), hidden.device)].float(),
        upload(torch.from_numpy(trie.legal(depth, nodes[chosen])), hidden.device),
        upload(torch.from_numpy(codes), hidden.device),
    )


def _joined(parts: list[_Choices]) -> _Choices | None:
    if not sum(len(each.codes) for each in parts):
        return None
    return _Choices(*(torch.cat([getattr(each, name) for each in parts]) for name in ("states", "legal", "codes")))


def _fit(codes: ItemCodes, depth: int, shares: Tensor, choices: _Choices) -> None:
    """Move a level's rows to the probe's (mutates them); `shares` are the log shares of its codes, less their mean, (size,)."""
    states, width = choices.states, choices.states.shape[1]
    first = codes.offsets[depth]
    rows = codes.vectors.weight.data[first : first + codes.sizes[depth]]
    mean, gain = states.mean(0), float(codes.gain.detach()) / width**0.5
    rows += shares[:, None] * mean / (gain * mean.square().sum())
    moved = torch.zeros_like(rows, requires_grad=True)
    precision = width * gain**2 * float(states.square().mean()) / MOVE
    optimizer = torch.optim.LBFGS([moved], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = (states @ (rows + moved).t() * gain).masked_fill(~choices.legal, -torch.inf)
        value = F.cross_entropy(logits, choices.codes, reduction="sum") + precision / 2 * moved.square().sum()
        (value / len(states)).backward()
        return (value / len(states)).detach()

    optimizer.step(loss)
    rows += moved.detach()
