"""Heads: from a hidden state to a score, one small module per task.

Owns: verbalizer, binary, scalar, categorical, catalogue. Ignores: where labels come from.

Every head maps (n, D) hidden states to logits or values in float32, and `score` maps those to what a user reads: a
probability, a value, or one score per candidate.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from genre.errors import RecipeError


class Head(nn.Module):
    """What all heads share.

    Attributes:
        per_item: Whether the output has one column per catalogue item instead of one score per read.
    """

    per_item = False

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def score(self, output: Tensor) -> Tensor:
        """What a user reads of the raw output."""
        return output


class BinaryHead(Head):
    """Logit of "yes": w·h + b, with b starting at the training share's logit; the score is its probability."""

    def __init__(self, width: int, *, prior: float = 0.5, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.linear = nn.Linear(width, 1)
        nn.init.normal_(self.linear.weight, std=0.1 / math.sqrt(width))
        nn.init.constant_(self.linear.bias, math.log(prior / (1 - prior)))

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, D) → (n,)."""
        return self.linear(self.dropout(hidden.float())).squeeze(-1)

    def score(self, output: Tensor) -> Tensor:
        """Probability of "yes"."""
        return torch.sigmoid(output)


class ScalarHead(Head):
    """A value: mean + deviation · (w·h + b), where mean and deviation are the training labels'."""

    def __init__(self, width: int, *, mean: float = 0.0, deviation: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.linear = nn.Linear(width, 1)
        nn.init.normal_(self.linear.weight, std=0.1 / math.sqrt(width))
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("moments", torch.tensor([mean, deviation]))

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, D) → (n,)."""
        moments = self.get_buffer("moments")
        return moments[0] + moments[1] * self.linear(self.dropout(hidden.float())).squeeze(-1)


class CategoricalHead(Head):
    """Logits over C classes; the score is the probability of each."""

    def __init__(self, width: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, D) → (n, C)."""
        return self.linear(self.dropout(hidden.float()))

    def score(self, output: Tensor) -> Tensor:
        """(n, C) probabilities."""
        return torch.softmax(output, -1)


class CatalogueHead(Head):
    """Logits over the whole catalogue from the base's state, fused with a decaying memory of the items seen.

        z_i = (Q h + Σ_g Σ_j w_gj M_g ē_j)·K ē_i / √d + b·ē_i,    w_gj ∝ γ_g^(events since j),  Σ_j w_gj = 1

    ē are the encoder's item vectors scaled to unit mean square; M starts as a share of K, so that the first logits are
    similarity to the history, and b at the items' shares of the training events (`start_at`). The memory is causal: a
    target sees the events before its own impression only.
    """

    per_item = True
    decays = (0.5, 0.9, 1.0)

    def __init__(self, width: int, *, size: int = 128, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.size = size
        self.query = nn.Linear(width, size)
        self.key = nn.Linear(width, size + 1)
        self.memory = nn.Linear(width, len(self.decays) * size, bias=False)
        nn.init.normal_(self.query.weight, std=0.3 / math.sqrt(width))
        nn.init.normal_(self.key.weight, std=1 / math.sqrt(width))
        with torch.no_grad():
            self.memory.weight.copy_(0.1 * self.key.weight[:size].repeat(len(self.decays), 1))

    def tables(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) item vectors → (N, d + 1) keys, whose last column is the item's own bias, and (N, G · d) memories."""
        unit = vectors.float() * torch.rsqrt(vectors.float().square().mean(-1, keepdim=True) + 1e-6)
        return self.key(unit), self.memory(unit)

    def recall(self, history: Tensor, memories: Tensor) -> Tensor:
        """What is remembered before each event.

        Args:
            history: (B, E) int64 item codes, -1 for padding (at the end).
            memories: (N, G · d).

        Returns:
            (B, E + 1, d): entry e is the memory of the first e events; entry 0 is zero.
        """
        count = history.shape[1]
        known = (history >= 0).float().unsqueeze(-1)
        values = memories[history.clamp_min(0)] * known
        age = torch.arange(count, device=history.device)
        age = (age[:, None] - age[None, :]).float()
        total = values.new_zeros(len(history), count, self.size)
        for decay, part in zip(self.decays, values.split(self.size, -1), strict=True):
            weights = torch.where(age >= 0, decay ** age.clamp_min(0), 0.0)
            total = total + (weights / weights.sum(-1, keepdim=True)) @ part
        return torch.cat([total.new_zeros(len(history), 1, self.size), total], 1)

    @torch.no_grad()
    def start_at(self, vectors: Tensor, log_share: Tensor, *, ridge: float = 1e-2) -> None:
        """Start the items' bias at their share of the training events, by ridge regression on their vectors (mutates).

        Args:
            vectors: (N, D) item vectors.
            log_share: (N,) log of each item's smoothed share.
            ridge: Strength of the penalty per item.
        """
        unit = (vectors.float() * torch.rsqrt(vectors.float().square().mean(-1, keepdim=True) + 1e-6)).double()
        wanted = (log_share - log_share.mean()).double().to(unit.device)
        gram = unit.t() @ unit + ridge * len(unit) * torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device)
        self.key.weight[-1] = torch.linalg.solve(gram, unit.t() @ wanted).float()
        self.key.bias[-1] = 0.0

    def forward(self, hidden: Tensor, recalled: Tensor, keys: Tensor) -> Tensor:
        """(n, D), (n, d), (N, d + 1) → (n, N)."""
        query = self.query(self.dropout(hidden.float())) + self.dropout(recalled)
        return query @ keys[:, :-1].t() / math.sqrt(self.size) + keys[:, -1]


class VerbalizerHead(Head):
    """Reads the base's own logits of label words; holds no weight, so the adapter exports to any LoRA server.

    Binary tasks give the logit of the last word against the first; scalar tasks give the expectation over the words'
    numbers; categorical tasks give the words' logits.
    """

    def __init__(self, base: Any, words: tuple[str, ...], *, loss: str, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        ids = [base.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        for word, tokens in zip(words, ids, strict=True):
            if not tokens:
                raise RecipeError(f"label word {word!r} has no token", expected="a word that the tokenizer knows")
        first = [tokens[0] for tokens in ids]
        if len(set(first)) < len(first):
            raise RecipeError("two label words begin with the same token", got=list(words), expected="words that differ at once")
        if loss == "mse":
            try:
                numbers = [float(word) for word in words]
            except ValueError:
                raise RecipeError("a verbalizer with loss mse needs numbers as words", got=list(words)) from None
        else:
            numbers = list(range(len(words)))
        self.loss, self._read = loss, base.word_logits
        self.register_buffer("word_ids", torch.tensor(first), persistent=False)
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.float32), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, D) → (n,) for log_loss and mse, (n, C) for cross_entropy."""
        logits = self._read(self.dropout(hidden), self.get_buffer("word_ids"))
        if self.loss == "log_loss":
            return logits[:, -1] - logits[:, 0]
        if self.loss == "mse":
            return torch.softmax(logits, -1) @ self.get_buffer("numbers")
        return logits

    def score(self, output: Tensor) -> Tensor:
        """Probability, value, or (n, C) probabilities."""
        if self.loss == "log_loss":
            return torch.sigmoid(output)
        return torch.softmax(output, -1) if self.loss == "cross_entropy" else output


def make_head(
    name: str, base: Any, *, loss: str, words: tuple[str, ...] | None = None, classes: int = 0, prior: float = 0.5,
    mean: float = 0.0, deviation: float = 1.0, dropout: float = 0.0,
) -> Head:  # fmt: skip
    """The head that a task names, on a base's width."""
    width = base.hidden_size
    if name == "verbalizer":
        return VerbalizerHead(base, words or (), loss=loss, dropout=dropout)
    if name == "binary":
        return BinaryHead(width, prior=prior, dropout=dropout)
    if name == "scalar":
        return ScalarHead(width, mean=mean, deviation=deviation, dropout=dropout)
    if name == "categorical":
        return CategoricalHead(width, classes, dropout=dropout)
    if name == "catalogue":
        return CatalogueHead(width, dropout=dropout)
    raise RecipeError("unknown head", got=name, expected="verbalizer, binary, scalar, categorical or catalogue")
