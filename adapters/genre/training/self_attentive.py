"""A self-attentive next-item model of ids, trained from scratch: the baseline that a language model on the same log has to beat.

Owns: the network, its training until validation stops rising, and scores from histories. Ignores item texts, feedback, and
metrics other than the one that stops it.

Item and position vectors, two causal layers, cross-entropy over the catalogue: Kang and McAuley 2018 (SASRec), with
pre-normalization, and the full softmax instead of one sampled negative, which is the stronger loss (Klenitskiy and Vasilev 2023).

    model = self_attentive(log, split)
    model.settings                                              # {"width": 64, …, "epochs": 45, "validation_ndcg@10": 0.1012}
    rank_in_blocks(log, split, found, model.blocks(found))
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre.data.interactions import Interactions
from genre.data.splits import TRAIN, Split
from genre.evaluation.ease import validation_ndcg, validation_targets
from genre.evaluation.history import Histories
from genre.evaluation.ranking import Block, Seen, block_rows, block_size
from genre.evaluation.targets import Targets
from genre.modules.base.devices import AUTO, choose_device
from genre.training.averaging import Average
from genre.training.runtime import same_random_states

LAYERS, HEADS = 2, 2
BATCH = 64
"""Windows of a step."""
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
EPOCHS_A_READING, STEPS_A_READING = 5, 1_000
"""Validation is read after so many epochs, or at the end of the epoch in which so many steps are full."""
PATIENCE = 5
"""Readings without a rise that end the training."""
MOST_EPOCHS = 300
EPOCHS_UNREAD = 30
"""Without validation targets, where nothing says when to stop."""
CELLS = 2**24
"""Logits that are in memory at once in a step, 64 MiB of float32."""


class Network(nn.Module):
    """Item codes from 1, (B, T), 0 for padding on the left → hidden states (B, T, D); positions count from the end."""

    def __init__(self, items: int, *, width: int, length: int, dropout: float) -> None:
        super().__init__()
        self.item = nn.Embedding(items + 1, width, padding_idx=0)
        self.position = nn.Embedding(length, width)
        for table in (self.item, self.position):
            nn.init.normal_(table.weight, std=width**-0.5)
        layer = nn.TransformerEncoderLayer(width, HEADS, 2 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(items))

    def forward(self, codes: Tensor) -> Tensor:
        """Hidden states (B, T, D), each of the events up to its own."""
        length = codes.shape[1]
        x = self.dropout(self.item(codes) + self.position.weight[-length:])
        future = torch.ones(length, length, dtype=torch.bool, device=codes.device).triu(1)
        hidden = future | (codes == 0)[:, None, :]
        hidden = hidden & ~torch.eye(length, dtype=torch.bool, device=codes.device)
        states: Tensor = self.body(x, mask=hidden.repeat_interleave(HEADS, 0))
        return states

    def logits(self, states: Tensor) -> Tensor:
        """(…, D) → (…, N)."""
        return states @ self.item.weight[1:].t() + self.bias


class SelfAttentive:
    """A network as a scorer of the catalogue.

    Args:
        log: The log.
        split: A split of this log.
        network: Trained on it.
        length: The latest so many events of a history are read.

    Attributes:
        settings: JSON values that describe the network and its training.
    """

    def __init__(self, log: Interactions, split: Split, network: Network, length: int) -> None:
        self.log = log
        self.histories = Histories(log, split)
        self.network = network
        self.length = length
        self.settings: dict[str, Any] = {}

    @torch.no_grad()
    def blocks(self, found: Targets) -> Iterator[Block]:
        """Yield (rows, float32 [b, N]) scores from each target's history; puts the network into evaluation mode."""
        self.network.eval()
        device = self.network.bias.device
        for rows in block_rows(len(found), block_size(self.log.catalogue.size)):
            owner, events = self.histories.pairs(found.event[rows])
            count = rows.stop - rows.start
            age = np.bincount(owner, minlength=count).cumsum()[owner] - 1 - np.arange(len(owner))
            longest = int(min(self.length, age.max(initial=0) + 1))
            read = age < longest
            codes = np.zeros((count, longest), dtype=np.int64)
            codes[owner[read], longest - 1 - age[read]] = self.log.item_codes[events[read]] + 1
            states = self.network(torch.from_numpy(codes).to(device))
            yield rows, self.network.logits(states[:, -1]).cpu().numpy()


def self_attentive(
    log: Interactions,
    split: Split,
    *,
    seen: Seen = "masked",
    width: int = 64,
    length: int = 100,
    dropout: float = 0.3,
    averages: Sequence[float] = (),
    seed: int = 0,
    progress: Callable[[str], None] = lambda state: None,
) -> SelfAttentive:
    """Train a network on the training events until NDCG@10 on validation has not risen for a while; keep the best weights.

    The test part is not looked at. Random numbers outside are left as they were. On a GPU if there is one.

    Args:
        log: The log.
        split: A split of this log.
        seen: How validation targets are ranked.
        width: D.
        length: The latest so many events of a history are read.
        dropout: Of item vectors, attention and feed-forward layers.
        averages: Decays of moving averages of the weights; the best of them and of the weights themselves is kept.
        seed: Of everything drawn.
        progress: Called with a line about each epoch.
    """
    chosen = choose_device(None)
    device = torch.device("cuda" if chosen == AUTO else chosen)
    with same_random_states([device]):
        torch.manual_seed(seed)
        network = Network(log.catalogue.size, width=width, length=length, dropout=dropout).to(device)
        model = SelfAttentive(log, split, network, length)
        model.settings = {"width": width, "layers": LAYERS, "length": length, "dropout": dropout, "seed": seed}
        begun = time.perf_counter()
        found = validation_targets(log, split)

        def quality() -> float:
            return validation_ndcg(log, split, found, model.blocks(found), seen)

        training = _Training(network, _histories(log, split), length, averages, np.random.default_rng(seed))
        kept = training.run(quality if len(found) else None, progress)
    model.settings |= kept | {"seconds": round(time.perf_counter() - begun, 1)}
    return model


def _histories(log: Interactions, split: Split) -> list[npt.NDArray[np.int64]]:
    """Return the codes from 1 of each user's training events, of those with more than one."""
    train = np.asarray(split.part) == TRAIN
    codes, users = log.item_codes[train].astype(np.int64) + 1, log.user_codes[train]
    return [each for each in np.split(codes, np.flatnonzero(np.diff(users)) + 1) if len(each) > 1]


class _Training:
    """The steps of one training, and the best weights so far."""

    def __init__(
        self,
        network: Network,
        histories: Sequence[npt.NDArray[np.int64]],
        length: int,
        averages: Sequence[float],
        draw: np.random.Generator,
    ) -> None:
        self.network = network
        self.histories = histories
        self.length = length
        self.draw = draw
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.averages = [Average(dict(network.named_parameters()), decay) for decay in averages]
        self.step = 0
        self.best: dict[str, Any] = {"validation_ndcg@10": -1.0}
        self.weights: dict[str, Tensor] = {}

    def run(self, quality: Callable[[], float] | None, progress: Callable[[str], None]) -> dict[str, Any]:
        """Train, put the best weights into the network, and return what is to be said about them."""
        if quality is None or not self.histories:
            for epoch in range(1, EPOCHS_UNREAD + 1 if self.histories else 1):
                self._epoch()
                progress(f"epoch {epoch} of {EPOCHS_UNREAD}, without validation events")
            return {"epochs": EPOCHS_UNREAD if self.histories else 0}
        stale = read_at = 0
        for epoch in range(1, MOST_EPOCHS + 1):
            self._epoch()
            if epoch % EPOCHS_A_READING == 0 or self.step - read_at >= STEPS_A_READING or epoch == MOST_EPOCHS:
                read_at = self.step
                stale = 0 if self._read(quality, epoch) else stale + 1
            progress(f"epoch {epoch}" + (f", validation NDCG@10 {self.best['validation_ndcg@10']:.4f}" if read_at else ""))
            if stale == PATIENCE:
                break
        self.network.load_state_dict(self.weights)
        return self.best | {"validation_ndcg@10": round(self.best["validation_ndcg@10"], 5)}

    def _read(self, quality: Callable[[], float], epoch: int) -> bool:
        """Keep the present weights, or an average of them, if they are the best so far; return whether they are."""
        risen = False
        for average in (None, *self.averages):
            with average.applied() if average else nullcontext():
                value = quality()
                if value > self.best["validation_ndcg@10"]:
                    risen = True
                    self.best = {"epochs": epoch, "validation_ndcg@10": value}
                    self.best |= {"average": average.decay} if average else {}
                    self.weights = copy.deepcopy(self.network.state_dict())
        return risen

    def _epoch(self) -> None:
        self.network.train()
        windows = self._windows()
        order = self.draw.permutation(len(windows))
        order = order[np.argsort([len(windows[number]) for number in order], kind="stable")]  # like lengths need no padding
        batches = np.array_split(order, max(1, len(windows) // BATCH))
        for number in self.draw.permutation(len(batches)):
            chosen = [windows[each] for each in batches[number]]
            longest = max(map(len, chosen))
            codes = np.zeros((len(chosen), longest), dtype=np.int64)
            for row, window in enumerate(chosen):
                codes[row, longest - len(window) :] = window
            self._take_step(torch.from_numpy(codes))

    def _windows(self) -> list[npt.NDArray[np.int64]]:
        """Cut every history into windows of T + 1 events: one at its end, the others back from a place drawn near the end.

        So every position is the last of a window at times, as it is in a score.
        """
        windows = []
        for codes in self.histories:
            stop = len(codes) - int(self.draw.integers(0, min(self.length, len(codes) - 1)))
            while stop > 1:
                windows.append(codes[max(0, stop - self.length - 1) : stop])
                stop -= self.length
            windows.append(codes[-self.length - 1 :])
        return windows

    def _take_step(self, codes: Tensor) -> None:
        """Take a step on windows (B, T + 1); the logits are made a piece at a time, for the sake of large catalogues."""
        codes = codes.to(self.network.bias.device)
        known = (codes[:, 1:] > 0) & (codes[:, :-1] > 0)
        states, wanted = self.network(codes[:, :-1])[known], codes[:, 1:][known] - 1
        inner = states.detach().requires_grad_()
        self.optimizer.zero_grad(set_to_none=True)
        size = max(1, CELLS // len(self.network.bias))
        for piece, own in zip(inner.split(size), wanted.split(size), strict=True):
            (F.cross_entropy(self.network.logits(piece), own, reduction="sum") / len(wanted)).backward()
        states.backward(inner.grad)
        self.optimizer.step()
        self.step += 1
        for average in self.averages:
            average.update(self.step)
