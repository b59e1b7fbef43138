"""The self-attentive model with a next-item adapter's additions: averaged weights, and a co-occurrence term after training.

It measures how much of the adapter's lead is due to them: a small model trained from scratch, the moving average of its weights,
plus PureSVD over a fading history with a weight chosen on validation, as in `genre.training.cooccurrence`. The factors are the
items' own, not a regression on their vectors.
"""

from collections.abc import Iterator

import numpy as np

from genre.data.interactions import Interactions
from genre.data.splits import TRAIN, Split
from genre.evaluation.history import Histories
from genre.evaluation.ranking import Block, block_rows
from genre.evaluation.targets import Targets
from genre.modules.collaborative import pure_svd
from genre.training.cooccurrence import WEIGHTS
from rivals.common import Ranker, quality, recent, validation_targets


class Fused:
    """score = network + β · linear / spread."""

    def __init__(
        self, network: Ranker, log: Interactions, split: Split, factors: np.ndarray, blend: float, spread: float
    ) -> None:
        self.network = network
        self.log = log
        self.histories = Histories(log, split)
        self.factors = factors
        self.scale = blend / spread
        self.settings = {**network.settings, "blend": blend}

    def linear(self, found: Targets, rows: slice) -> np.ndarray:
        """(n, N) float32."""
        history = recent(self.log, self.histories, found.event[rows], 100, 0.95)
        return np.asarray((history @ self.factors) @ self.factors.T, dtype=np.float32)

    def blocks(self, found: Targets) -> Iterator[Block]:
        """Scores of the whole catalogue for each target."""
        for rows, scores in self.network.blocks(found):
            assert isinstance(rows, slice)
            yield rows, scores + self.scale * self.linear(found, rows)


def fused(network: Ranker, log: Interactions, split: Split) -> Fused:
    """The network with the interpolation weight that is best on validation, 0 if none helps."""
    factors = pure_svd(log, np.asarray(split.part) == TRAIN, dimensions=64)
    found = validation_targets(log, split)
    plain = Fused(network, log, split, factors, 0.0, 1.0)
    spread = float(np.mean([plain.linear(found, rows).std(1).mean() for rows in block_rows(len(found))]))
    best, value = plain, -1.0
    for blend in WEIGHTS:
        made = Fused(network, log, split, factors, blend, spread)
        reached = quality(made, log, split, found)
        if reached > value:
            best, value = made, reached
    best.settings |= {"validation_ndcg@10": round(value, 5)}
    return best
