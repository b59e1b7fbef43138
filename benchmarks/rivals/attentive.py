"""A small self-attentive sequence model: item and position vectors, two causal layers, cross-entropy over the catalogue.

Source: Kang and McAuley 2018 (SASRec), with pre-normalization and the full softmax instead of one sampled negative, which
is the stronger way (Klenitskiy and Vasilev 2023). Trained on all windows of the training events, stopped on validation.
The moving average of its weights, as adapters have it, is judged in the same run, for the rival that gets what an adapter adds
to itself.
"""

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre.data.interactions import Interactions
from genre.data.splits import TRAIN, Split
from genre.evaluation.history import Histories
from genre.evaluation.ranking import Block, block_rows
from genre.evaluation.targets import Targets
from genre.training.averaging import Average
from rivals.common import quality, validation_targets


class Network(nn.Module):
    """(B, T) item codes from 1, 0 for padding on the left → (B, T, N) logits."""

    def __init__(self, items: int, *, width: int, layers: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.item = nn.Embedding(items + 1, width, padding_idx=0)
        self.place = nn.Embedding(length, width)
        for table in (self.item, self.place):
            nn.init.normal_(table.weight, std=width**-0.5)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(items))

    def forward(self, codes: Tensor) -> Tensor:
        """Hidden states (B, T, D)."""
        length = codes.shape[1]
        x = self.dropout(self.item(codes) + self.place(torch.arange(length))[None])
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        hidden = future[None] | (codes == 0)[:, None, :]
        hidden = hidden & ~torch.eye(length, dtype=torch.bool)
        mask = hidden.repeat_interleave(self.body.layers[0].self_attn.num_heads, 0)
        return self.body(x, mask=mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """(…, D) → (…, N)."""
        return hidden @ self.item.weight[1:].t() + self.bias


class SelfAttentive:
    """A trained network as a ranker."""

    def __init__(self, log: Interactions, split: Split, network: Network, length: int, settings: dict[str, Any]) -> None:
        self.log = log
        self.split = split
        self.histories = Histories(log, split)
        self.network = network
        self.length = length
        self.settings = settings

    @torch.no_grad()
    def blocks(self, found: Targets) -> Iterator[Block]:
        """Scores of the whole catalogue for each target."""
        self.network.eval()
        for rows in block_rows(len(found)):
            owner, events = self.histories.pairs(found.event[rows])
            batch = np.zeros((rows.stop - rows.start, self.length), dtype=np.int64)
            ends = np.searchsorted(owner, np.arange(len(batch)), side="right")
            starts = np.searchsorted(owner, np.arange(len(batch)))
            for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
                own = self.log.item_codes[events[max(start, end - self.length) : end]] + 1
                if len(own):
                    batch[place, -len(own) :] = own
            yield rows, self.network.logits(self.network(torch.from_numpy(batch))[:, -1]).numpy()


DECAYS = (0.99, 0.998)
"""Of the averages; the better one on validation is kept."""


class Best:
    """The best weights so far, with their validation value."""

    def __init__(self) -> None:
        self.value = -1.0
        self.epoch = 0
        self.weights = {}

    def see(self, value: float, epoch: int, weights: dict[str, Tensor]) -> bool:
        """Keep these weights if they are better; return whether they are."""
        if better := value > self.value:
            self.value = value
            self.epoch = epoch
            self.weights = copy.deepcopy(weights)
        return better


def self_attentive(
    log: Interactions,
    split: Split,
    *,
    width: int = 64,
    length: int = 100,
    dropout: float = 0.3,
    seed: int = 0,
    averaged: bool = False,
    file: Path | None = None,
) -> SelfAttentive:
    """Train until validation NDCG@10, read every 5 epochs, has not risen for 8 readings.

    Args:
        log: The log.
        split: Its split.
        width: D.
        length: The latest so many events of a user are read.
        dropout: Everywhere.
        seed: Of everything drawn.
        averaged: The best average of the weights instead of the best weights.
        file: Where both are kept.
    """
    torch.manual_seed(seed)
    settings = {"width": width, "layers": 2, "length": length, "dropout": dropout, "seed": seed}
    network = Network(log.catalogue.size, width=width, layers=2, heads=2, length=length, dropout=dropout)
    ranker = SelfAttentive(log, split, network, length, settings)
    if file is not None and file.exists():
        held = torch.load(file, weights_only=True)
    else:
        held = _train(ranker, seed)
        if file is not None:
            torch.save(held, file)
    chosen = held["averaged" if averaged else "last"]
    network.load_state_dict(chosen["weights"])
    ranker.settings = settings | {key: value for key, value in chosen.items() if key != "weights"}
    return ranker


def _train(ranker: SelfAttentive, seed: int) -> dict[str, Any]:
    """The best weights and the best average of weights, each with its epoch and validation value."""
    network, log, split, length = ranker.network, ranker.log, ranker.split, ranker.length
    draw = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    train = np.asarray(split.part) == TRAIN
    users = [log.item_codes[np.flatnonzero(train & (log.user_codes == user))] for user in np.unique(log.user_codes[train])]
    users = [codes.astype(np.int64) + 1 for codes in users if len(codes) > 1]
    found = validation_targets(log, split)
    last, averages = Best(), {decay: (Average(dict(network.named_parameters()), decay), Best()) for decay in DECAYS}
    stale = epoch = step = 0
    begun = time.perf_counter()
    while stale < 8:
        network.train()
        windows = []
        for codes in users:
            stop = len(codes) - int(draw.integers(0, min(length, max(1, len(codes) - 1))))
            while stop > 1:
                windows.append(codes[max(0, stop - length - 1) : stop])
                stop -= length
            if len(codes) > 1:
                windows.append(codes[-length - 1 :])
        for batch in np.array_split(draw.permutation(len(windows)), max(1, len(windows) // 64)):
            data = np.zeros((len(batch), length + 1), dtype=np.int64)
            for place, chosen in enumerate(batch):
                data[place, -len(windows[chosen]) :] = windows[chosen]
            codes = torch.from_numpy(data)
            places = (codes[:, 1:] > 0) & (codes[:, :-1] > 0)
            loss = F.cross_entropy(network.logits(network(codes[:, :-1])[places]), codes[:, 1:][places] - 1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            for average, _ in averages.values():
                average.update(step)
        epoch += 1
        if epoch % 5 == 0:
            risen = last.see(quality(ranker, log, split, found), epoch, network.state_dict())
            for average, best in averages.values():
                with average.applied():
                    best.see(quality(ranker, log, split, found), epoch, network.state_dict())
            stale = 0 if risen else stale + 1
    seconds = round(time.perf_counter() - begun, 1)
    decay, (_, best) = max(averages.items(), key=lambda entry: entry[1][1].value)
    return {"last": _said(last, seconds), "averaged": {**_said(best, seconds), "average": decay}}


def _said(best: Best, seconds: float) -> dict[str, Any]:
    value = round(best.value, 5)
    return {"weights": best.weights, "epochs": best.epoch, "validation_ndcg@10": value, "seconds": seconds}
