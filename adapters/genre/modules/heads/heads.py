"""Heads: from a hidden state to a score, one small module per task.

Owns: verbalizer, binary, scalar, categorical, catalogue, and pooled, which is one of them by its loss. Ignores: where labels
come from.

Every head maps (n, D) hidden states to logits or values in float32, and `score` maps those to what a user reads: a
probability, a value, or one score per candidate. Heads over soft tokens also see the user's events before each target
(`View`), so that what a few numbers say well (how popular an item is, how a user rates) need not be learnt by the base.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre.errors import RecipeError
from genre.modules.heads.gaussian_process import Affinity, View, ridge, to_unit
from genre.modules.heads.tfidf import Terms


class Head(nn.Module):
    """What all heads share.

    Attributes:
        per_item: Whether the output has one column per catalogue item instead of one score per read.
        sees_items: Whether it looks at item vectors, through a `View`.
        terms: Of a pooled head that counts words too: what they say, which `count` adds.
    """

    per_item = False
    sees_items = False

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.terms: Terms | None = None

    def tables(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """What the head needs of (N, D) item vectors, one row per item; computed once while nothing trains."""
        return ()

    def extend(self, tables: tuple[Tensor, ...], vectors: Tensor) -> tuple[Tensor, ...]:
        """The tables of (N + m, D) item vectors, given those of the first N."""
        if not tables:
            return tables
        more = self.tables(vectors[len(tables[0]) :])
        return tuple(torch.cat(pair) for pair in zip(tables, more, strict=True))

    def count(self, output: Tensor, tokens: Tensor, lengths: Tensor, numbers: Tensor | None = None) -> Tensor:
        """The raw output plus what the terms of the rows say: (n,) or (n, C), of (n, T) tokens; see `Terms`."""
        return output if self.terms is None else output + self.terms(tokens, lengths, numbers).view_as(output)

    def score(self, output: Tensor) -> Tensor:
        """What a user reads of the raw output."""
        return output


class BinaryHead(Head):
    """Logit of "yes": w·h + b + affinity, with b starting at the training share's logit; the score is its probability."""

    def __init__(self, width: int, *, prior: float = 0.5, feedback_codes: int = 0, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.linear = nn.Linear(width, 1)
        nn.init.normal_(self.linear.weight, std=0.1 / math.sqrt(width))
        nn.init.constant_(self.linear.bias, math.log(prior / (1 - prior)))
        self.affinity = Affinity(width, feedback_codes) if feedback_codes else None
        self.sees_items = self.affinity is not None

    def tables(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """What the affinity needs."""
        return self.affinity.tables(vectors) if self.affinity is not None else ()

    def forward(self, hidden: Tensor, view: View | None = None) -> Tensor:
        """(n, D) → (n,)."""
        output = self.linear(self.dropout(hidden.float())).squeeze(-1)
        return output if self.affinity is None or view is None else output + self.affinity(view)

    def score(self, output: Tensor) -> Tensor:
        """Probability of "yes"."""
        return torch.sigmoid(output)


class ScalarHead(Head):
    """A value: mean + deviation · (w·h + b + affinity), where mean and deviation are the training labels'."""

    def __init__(
        self, width: int, *, mean: float = 0.0, deviation: float = 1.0, feedback_codes: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__(dropout)
        self.linear = nn.Linear(width, 1)
        nn.init.normal_(self.linear.weight, std=0.1 / math.sqrt(width))
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("moments", torch.tensor([mean, deviation]))
        self.affinity = Affinity(width, feedback_codes) if feedback_codes else None
        self.sees_items = self.affinity is not None

    def tables(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """What the affinity needs."""
        return self.affinity.tables(vectors) if self.affinity is not None else ()

    def forward(self, hidden: Tensor, view: View | None = None) -> Tensor:
        """(n, D) → (n,)."""
        output = self.linear(self.dropout(hidden.float())).squeeze(-1)
        if self.affinity is not None and view is not None:
            output = output + self.affinity(view)
        moments = self.get_buffer("moments")
        return moments[0] + moments[1] * output


class CategoricalHead(Head):
    """Logits over C classes; the score is the probability of each."""

    def __init__(self, width: int, classes: int, *, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, hidden: Tensor, view: View | None = None) -> Tensor:
        """(n, D) → (n, C)."""
        return self.linear(self.dropout(hidden.float()))

    def score(self, output: Tensor) -> Tensor:
        """(n, C) probabilities."""
        return torch.softmax(output, -1)


class CatalogueHead(Head):
    """Logits over the whole catalogue from the base's state, fused with a decaying memory of the items seen.

        z_i = (Q h + Σ_g Σ_j w_gj M_g ē_j)·K ē_i / √d + b·ē_i + β Σ_j γ^(events since j) (F ē_j)·(F ē_i)

    with w_gj ∝ γ_g^(events since j) and Σ_j w_gj = 1. ē are the encoder's item vectors scaled to unit mean square; M starts as a
    share of K, so that the first logits are similarity to the history, and b at the items' shares of the training events
    (`start_at`). The memory is causal: a target sees the events before its own impression only.

    The last term is in no training step. F is fitted in closed form once the others are (`genre.training.cooccurrence`), which
    is why it would know the training events too well, and β is what validation likes best; until then there is no such term.
    """

    taste: Tensor | None
    blend: Tensor | None
    per_item = sees_items = True
    decays = (0.5, 0.9, 1.0)
    fading = 0.95

    def __init__(self, width: int, *, size: int = 128, fuse: bool = True, dropout: float = 0.0, tastes: int = 0) -> None:
        super().__init__(dropout)
        self.size = size
        self.query = nn.Linear(width, size)
        self.key = nn.Linear(width, size + 1, bias=False)
        nn.init.normal_(self.query.weight, std=0.3 / math.sqrt(width))
        nn.init.normal_(self.key.weight, std=1 / math.sqrt(width))
        self.memory = nn.Linear(width, len(self.decays) * size, bias=False) if fuse else None
        if self.memory is not None:
            with torch.no_grad():
                self.memory.weight.copy_(0.1 * self.key.weight[:size].repeat(len(self.decays), 1))
        self.register_buffer("taste", torch.zeros(tastes, width) if tastes else None)
        self.register_buffer("blend", torch.zeros(()) if tastes else None)

    def add_taste(self, factors: Tensor, blend: float) -> None:
        """Set the last term's F (k, D) and β (mutates)."""
        self.taste, self.blend = factors, factors.new_tensor(blend)

    @property
    def keyed(self) -> Tensor:
        """(d + k, D): K, and F where the last term counts, so that a query of d + k asks for both at once."""
        weight = self.key.weight[:-1]
        return weight if self.taste is None or self.training else torch.cat([weight, self.taste])

    def tables(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """(N, D) → (N, d + k + 1) keys, whose last column is the item's own bias, and the vectors as they are.

        What is remembered is computed for the items of a history only: a table of it would be thrice as large as the keys.
        """
        keys = self._keys(vectors)
        return (keys,) if self.memory is None else (keys, vectors)

    def extend(self, tables: tuple[Tensor, ...], vectors: Tensor) -> tuple[Tensor, ...]:
        """As for any head, without a second copy of the vectors."""
        keys = torch.cat([tables[0], self._keys(vectors[len(tables[0]) :])])
        return (keys,) if self.memory is None else (keys, vectors)

    def _keys(self, vectors: Tensor) -> Tensor:
        unit = to_unit(vectors)
        if self.taste is None or self.training:
            return self.key(unit)
        return unit @ torch.cat([self.keyed, self.key.weight[-1:]]).t()

    def recall(self, view: View) -> Tensor:
        """(n, d) or (n, d + k): what is remembered of the events before each target; zero where there are none."""
        assert self.memory is not None
        vectors, count = view.tables[1], view.history.shape[1]
        known, unit = view.known.unsqueeze(-1), to_unit(vectors[view.history.clamp_min(0)])
        values = self.memory(unit) * known
        step = torch.arange(count, device=values.device)
        age = (step[:, None] - step[None, :]).float()

        def fade(decay: float) -> Tensor:
            """(E, E) weight of each event for what comes after each."""
            return torch.where(age >= 0, decay ** age.clamp_min(0), 0.0)

        total = values.new_zeros(len(values), count, self.size)
        for decay, part in zip(self.decays, values.split(self.size, -1), strict=True):
            weights = fade(decay)
            total = total + (weights / weights.sum(-1, keepdim=True)) @ part
        if self.taste is not None and not self.training:
            assert self.blend is not None
            liked = fade(self.fading) @ (unit @ self.taste.t() * known)
            total = torch.cat([total, self.blend * math.sqrt(self.size) * liked], -1)
        return torch.cat([total.new_zeros(len(values), 1, total.shape[-1]), total], 1)[view.rows, view.seen]

    @torch.no_grad()
    def start_at(self, vectors: Tensor, log_share: Tensor, weight: Tensor | None = None) -> None:
        """Start the items' bias at their share of the training events, by ridge regression on their vectors (mutates).

        Args:
            vectors: (N, D) item vectors.
            log_share: (N,) log of each item's smoothed share.
            weight: (N,) how much each item counts, 1 if None.
        """
        there = torch.ones_like(log_share) if weight is None else weight
        self.key.weight[-1] = ridge(to_unit(vectors), log_share - (log_share * there).sum() / there.sum(), there)

    def ask(self, hidden: Tensor, view: View) -> Tensor:
        """(n, D) → (n, d) or (n, d + k): what each target looks for."""
        query = self.query(self.dropout(hidden.float()))
        if self.memory is not None:
            recalled = self.dropout(self.recall(view))
            query = F.pad(query, (0, recalled.shape[-1] - self.size)) + recalled
        return query

    def logits(self, query: Tensor, keys: Tensor) -> Tensor:
        """(n, d + k) against (m, d + k + 1) keys → (n, m)."""
        return query @ keys[:, :-1].t() / math.sqrt(self.size) + keys[:, -1]

    def direction(self, query: Tensor) -> Tensor:
        """(n, d + k) → (n, D): an item's logit is its product with the item's unit vector, (Kᵀ q)·ē_i for q·(K ē_i).

        For a catalogue that many heads look at: none of them needs a table of its own.
        """
        return query @ self.keyed / math.sqrt(self.size) + self.key.weight[-1]

    def match(self, query: Tensor, keys: Tensor) -> Tensor:
        """(n, d + k) against one of (n, d + k + 1) keys each → (n,)."""
        return (query * keys[:, :-1]).sum(-1) / math.sqrt(self.size) + keys[:, -1]

    def forward(self, hidden: Tensor, view: View | None = None) -> Tensor:
        """(n, D) → (n, N)."""
        assert view is not None, "a catalogue head scores against item tables"
        return self.logits(self.ask(hidden, view), view.tables[0])


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

    def forward(self, hidden: Tensor, view: View | None = None) -> Tensor:
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
    mean: float = 0.0, deviation: float = 1.0, feedback_codes: int = 0, fuse: bool = True, dropout: float = 0.0,
    terms: Terms | None = None, tastes: int = 0,
) -> Head:  # fmt: skip
    """The head that a task names, on a base's width; `fuse` lets it see the user's earlier events.

    `pooled` reads the state of a whole text and is binary, categorical or scalar, as its loss asks; with `terms` it counts words.
    `tastes` is the size of the term that a catalogue head was given after its training.
    """
    width, codes = base.hidden_size, feedback_codes if fuse else 0
    if name == "pooled":
        name = {"log_loss": "binary", "cross_entropy": "categorical", "mse": "scalar"}[loss]
        head = make_head(name, base, loss=loss, classes=classes, prior=prior, mean=mean, deviation=deviation, dropout=dropout)
        head.terms = terms
        return head
    if name == "verbalizer":
        return VerbalizerHead(base, words or (), loss=loss, dropout=dropout)
    if name == "binary":
        return BinaryHead(width, prior=prior, feedback_codes=codes, dropout=dropout)
    if name == "scalar":
        return ScalarHead(width, mean=mean, deviation=deviation, feedback_codes=codes, dropout=dropout)
    if name == "categorical":
        return CategoricalHead(width, classes, dropout=dropout)
    if name == "catalogue":
        return CatalogueHead(width, fuse=fuse, dropout=dropout, tastes=tastes)
    raise RecipeError("unknown head", got=name, expected="verbalizer, binary, scalar, categorical, catalogue or pooled")
