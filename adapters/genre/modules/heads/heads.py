"""Heads: from a hidden state to a score, one small module per task.

Owns: verbalizer, binary, scalar, categorical, catalogue and generate heads, built from their descriptions. Ignores: where labels
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
from genre.modules.heads.gaussian_process import GaussianProcess, View, ridge, to_unit
from genre.modules.heads.neighbours import ItemNeighbours
from genre.modules.heads.spec import HeadSpec
from genre.modules.heads.tfidf import TfidfNgrams


class Head(nn.Module):
    """Base of all heads.

    Attributes:
        spec: Its description.
        per_item: Whether the output has one column per catalogue item instead of one score per read.
        sees_items: Whether it looks at item vectors, through a `View`.
        generates: Whether it reads codes of items, a level at a time (`genre.modules.generation`).
        terms: The TF-IDF n-grams of a head over texts, which `count` adds.
    """

    per_item = False
    sees_items = False
    generates = False

    def __init__(self, spec: HeadSpec, *, dropout: float = 0.0, ngrams: TfidfNgrams | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.dropout = nn.Dropout(dropout)
        if ngrams is None and spec.ngrams is not None:
            ngrams = TfidfNgrams(spec.ngrams, spec.outputs)
        self.terms = ngrams

    def tables(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """Precompute from (N, D) item vectors, one row per item; done once while nothing trains."""
        return ()

    def extend(self, tables: tuple[Tensor, ...], vectors: Tensor) -> tuple[Tensor, ...]:
        """The tables of (N + m, D) item vectors, given those of the first N."""
        if not tables:
            return tables
        more = self.tables(vectors[len(tables[0]) :])
        return tuple(torch.cat(pair) for pair in zip(tables, more, strict=True))

    def count(self, output: Tensor, tokens: Tensor, lengths: Tensor, numbers: Tensor | None = None) -> Tensor:
        """The raw output, (n,) or (n, C), plus the logits of the n-grams of (n, T) tokens; see `TfidfNgrams`."""
        return output if self.terms is None else output + self.terms(tokens, lengths, numbers).view_as(output)

    def score(self, output: Tensor) -> Tensor:
        """The raw output as a user reads it."""
        return output


class FeedbackHead(Head):
    """One number per target: w·h + b, plus a Gaussian process over the user's earlier feedback where the spec has codes."""

    def __init__(self, spec: HeadSpec, *, bias: float = 0.0, **more: Any) -> None:
        super().__init__(spec, **more)
        self.linear = nn.Linear(spec.width, 1)
        nn.init.normal_(self.linear.weight, std=0.1 / math.sqrt(spec.width))
        nn.init.constant_(self.linear.bias, bias)
        self.affinity = GaussianProcess(spec.width, spec.feedback_codes) if spec.feedback_codes else None
        self.sees_items = self.affinity is not None

    def tables(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """The Gaussian process's tables."""
        return self.affinity.tables(vectors) if self.affinity is not None else ()

    def forward(self, hidden: Tensor, view: View | None = None) -> Tensor:
        """(n, D) → (n,)."""
        output = self.linear(self.dropout(hidden.float())).squeeze(-1)
        return output if self.affinity is None or view is None else output + self.affinity(view)


class BinaryHead(FeedbackHead):
    """Logit of "yes", starting at the training share's; the score is its probability."""

    def __init__(self, spec: HeadSpec, *, prior: float = 0.5, **more: Any) -> None:
        super().__init__(spec, bias=math.log(prior / (1 - prior)), **more)

    def score(self, output: Tensor) -> Tensor:
        """Probability of "yes"."""
        return torch.sigmoid(output)


class ScalarHead(FeedbackHead):
    """A value: mean + deviation · output, where mean and deviation are the training labels'."""

    def __init__(self, spec: HeadSpec, *, mean: float = 0.0, deviation: float = 1.0, **more: Any) -> None:
        super().__init__(spec, **more)
        self.register_buffer("moments", torch.tensor([mean, deviation]))

    def forward(self, hidden: Tensor, view: View | None = None) -> Tensor:
        """(n, D) → (n,)."""
        mean, deviation = self.get_buffer("moments")
        return mean + deviation * super().forward(hidden, view)


class CategoricalHead(Head):
    """Logits over C classes; the score is the probability of each."""

    def __init__(self, spec: HeadSpec, **more: Any) -> None:
        super().__init__(spec, **more)
        self.linear = nn.Linear(spec.width, spec.classes)

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

    The last is the co-occurrence term. It is in no training step: F is fitted in closed form once the others are
    (`genre.training.cooccurrence`), which is why it would know the training events too well, and β is what validation likes best.

    Attributes:
        taste: F (k, D), where the spec has a co-occurrence term; named as in the files.
        blend: β.
        neighbours: A term of item neighbours, which whoever reads a batch adds (`genre.modules.reading`), as it looks items up
            by their ids.
        by_direction: Score by `direction`: tables then hold unit vectors and no weight of the head, so that many heads share
            one. For heads without a co-occurrence term that counts.
    """

    taste: Tensor | None
    blend: Tensor | None
    per_item = sees_items = True
    by_direction = False
    decays = (0.5, 0.9, 1.0)
    fading = 0.95

    def __init__(self, spec: HeadSpec, *, dropout: float = 0.0) -> None:
        super().__init__(spec, dropout=dropout)
        width, size = spec.width, spec.size
        self.query = nn.Linear(width, size)
        self.key = nn.Linear(width, size + 1, bias=False)
        nn.init.normal_(self.query.weight, std=0.3 / math.sqrt(width))
        nn.init.normal_(self.key.weight, std=1 / math.sqrt(width))
        self.memory = nn.Linear(width, len(self.decays) * size, bias=False) if spec.fuse else None
        if self.memory is not None:
            with torch.no_grad():
                self.memory.weight.copy_(0.1 * self.key.weight[:size].repeat(len(self.decays), 1))
        self.register_buffer("taste", torch.zeros(spec.cooccurrence, width) if spec.cooccurrence else None)
        self.register_buffer("blend", torch.zeros(()) if spec.cooccurrence else None)
        self.neighbours = ItemNeighbours(*spec.neighbours, spec.stand_ins) if spec.neighbours else None

    def with_neighbours(self, neighbours: ItemNeighbours | None) -> "CatalogueHead":
        """The same head, sharing its weights, with other item neighbours."""
        described: dict[str, Any] = {"neighbours": None, "stand_ins": 0}
        if neighbours is not None:
            described = {"neighbours": tuple(neighbours.items.shape), "stand_ins": neighbours.stand_ins}
        with torch.device("meta"):
            made = CatalogueHead(self.spec.model_copy(update={"neighbours": None}), dropout=self.dropout.p)
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("neighbours.")}
        made.load_state_dict(state, assign=True)
        made.spec = self.spec.model_copy(update=described)
        made.neighbours = neighbours
        return made.train(self.training)

    def with_cooccurrence(self, factors: Tensor | None, weight: float = 0.0) -> "CatalogueHead":
        """The same head, sharing its weights, with F (k, D) and β in the co-occurrence term's place; without it if None."""
        state = {name: value for name, value in self.state_dict().items() if name not in ("taste", "blend")}
        if factors is not None:
            state |= {"taste": factors, "blend": factors.new_tensor(weight)}
        spec = self.spec.model_copy(update={"cooccurrence": 0 if factors is None else len(factors)})
        with torch.device("meta"):
            made = CatalogueHead(spec, dropout=self.dropout.p)
        made.load_state_dict(state, assign=True)
        return made.train(self.training)

    @property
    def cooccurs(self) -> bool:
        """True if the co-occurrence term counts: the head has one and is not in training."""
        return self.taste is not None and not self.training

    @property
    def keyed(self) -> Tensor:
        """(d + k, D): K, and F where it counts, so that a query of d + k asks for both at once."""
        weight = self.key.weight[:-1]
        return torch.cat([weight, self.get_buffer("taste")]) if self.cooccurs else weight

    def tables(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """(N, D) → (N, d + k + 1) keys, whose last column is the item's own bias, and the vectors as they are.

        What is remembered is computed for the items of a history only: a table of it would be thrice as large as the keys.
        """
        keys = to_unit(vectors) if self.by_direction else self._keys(vectors)
        return (keys,) if self.memory is None else (keys, vectors)

    def extend(self, tables: tuple[Tensor, ...], vectors: Tensor) -> tuple[Tensor, ...]:
        """As for any head, without a second copy of the vectors."""
        keys = torch.cat([tables[0], self._keys(vectors[len(tables[0]) :])])
        return (keys,) if self.memory is None else (keys, vectors)

    def _keys(self, vectors: Tensor) -> Tensor:
        unit = to_unit(vectors)
        return unit @ torch.cat([self.keyed, self.key.weight[-1:]]).t() if self.cooccurs else self.key(unit)

    def recall(self, view: View) -> Tensor:
        """(n, d) or (n, d + k): what is remembered of the events before each target; zero where there are none."""
        assert self.memory is not None
        vectors, count = view.tables[1], view.history.shape[1]
        present, unit = view.event_weights.unsqueeze(-1), to_unit(vectors[view.history.clamp_min(0)])
        values = self.memory(unit) * present
        step = torch.arange(count, device=values.device)
        age = (step[:, None] - step[None, :]).float()

        def fade(decay: float) -> Tensor:
            """(E, E) weight of each event for what comes after each."""
            return torch.where(age >= 0, decay ** age.clamp_min(0), 0.0)

        total = values.new_zeros(len(values), count, self.spec.size)
        for decay, part in zip(self.decays, values.split(self.spec.size, -1), strict=True):
            weights = fade(decay)
            total = total + (weights / weights.sum(-1, keepdim=True)) @ part
        if self.cooccurs:
            together = fade(self.fading) @ (unit @ self.get_buffer("taste").t() * present)
            total = torch.cat([total, self.get_buffer("blend") * math.sqrt(self.spec.size) * together], -1)
        return torch.cat([total.new_zeros(len(values), 1, total.shape[-1]), total], 1)[view.rows, view.history_lengths]

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

    @torch.no_grad()
    def take_map(self, found: Tensor) -> None:
        """Score by a linear map of histories alone: h_g M_g · t_i, with the items' vectors t of length one (mutates the head).

        The base's part starts at nothing; the items' bias stays.

        Args:
            found: (G · D, D) M of each memory, for a head of size D.
        """
        assert self.memory is not None
        width = self.spec.width
        self.query.weight.zero_()
        self.query.bias.zero_()
        self.key.weight[:-1] = torch.eye(width)
        self.memory.weight.copy_(torch.cat([part.t() for part in found.split(width)]) / math.sqrt(width))

    def ask(self, hidden: Tensor, view: View) -> Tensor:
        """(n, D) → (n, d) or (n, d + k): the query of each target."""
        query = self.query(self.dropout(hidden.float()))
        if self.memory is not None:
            recalled = self.dropout(self.recall(view))
            query = F.pad(query, (0, recalled.shape[-1] - self.spec.size)) + recalled
        return query

    def logits(self, query: Tensor, keys: Tensor) -> Tensor:
        """(n, d + k) against (m, d + k + 1) keys → (n, m)."""
        if self.by_direction:
            return self.direction(query) @ keys.t()
        return query @ keys[:, :-1].t() / math.sqrt(self.spec.size) + keys[:, -1]

    def direction(self, query: Tensor) -> Tensor:
        """(n, d + k) → (n, D): an item's logit is its product with the item's unit vector, (Kᵀ q)·ē_i for q·(K ē_i).

        For a catalogue that many heads look at: none of them needs a table of its own.
        """
        return query @ self.keyed / math.sqrt(self.spec.size) + self.key.weight[-1]

    def match(self, query: Tensor, keys: Tensor) -> Tensor:
        """(n, d + k) against one of (n, d + k + 1) keys each → (n,)."""
        if self.by_direction:
            return (self.direction(query) * keys).sum(-1)
        return (query * keys[:, :-1]).sum(-1) / math.sqrt(self.spec.size) + keys[:, -1]

    def forward(self, hidden: Tensor, view: View | None = None) -> Tensor:
        """(n, D) → (n, N)."""
        assert view is not None, "a catalogue head scores against item tables"
        return self.logits(self.ask(hidden, view), view.tables[0])


class VerbalizerHead(Head):
    """Reads the base's own logits of label words; holds no weight, so the adapter exports to any LoRA server.

    Binary tasks give the logit of the last word against the first; scalar tasks give the expectation over the words'
    numbers; categorical tasks give the words' logits.
    """

    def __init__(self, spec: HeadSpec, base: Any, *, dropout: float = 0.0) -> None:
        super().__init__(spec, dropout=dropout)
        words = spec.words
        ids = [base.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        for word, tokens in zip(words, ids, strict=True):
            if not tokens:
                raise RecipeError(f"label word {word!r} has no token", expected="a word that the tokenizer knows")
        first = [tokens[0] for tokens in ids]
        if len(set(first)) < len(first):
            raise RecipeError("two label words begin with the same token", got=list(words), expected="words that differ at once")
        numbers = [float(index) for index in range(len(words))]
        if spec.loss == "mse":
            try:
                numbers = [float(word) for word in words]
            except ValueError:
                raise RecipeError("a verbalizer with loss mse needs numbers as words", got=list(words)) from None
        self._read = base.word_logits
        self.register_buffer("word_ids", torch.tensor(first), persistent=False)
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.float32), persistent=False)

    def forward(self, hidden: Tensor, view: View | None = None) -> Tensor:
        """(n, D) → (n,) for log_loss and mse, (n, C) for cross_entropy."""
        logits = self._read(self.dropout(hidden), self.get_buffer("word_ids"))
        if self.spec.loss == "log_loss":
            return logits[:, -1] - logits[:, 0]
        if self.spec.loss == "mse":
            return torch.softmax(logits, -1) @ self.get_buffer("numbers")
        return logits

    def score(self, output: Tensor) -> Tensor:
        """Probability, value, or (n, C) probabilities."""
        if self.spec.loss == "log_loss":
            return torch.sigmoid(output)
        return torch.softmax(output, -1) if self.spec.loss == "cross_entropy" else output


class GenerateHead(Head):
    """Reads the logits of items' codes off the states, as a language model's head reads those of words: z_c = h · o_c.

    o_c are rows of the behaviour encoder (`ItemCodes.output_vectors`), shared by all adapters. The head itself holds no weight,
    so that codes are never one adapter's own, and any LoRA server can generate them.
    """

    generates = True

    def forward(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """(n, D) states against the (size, D) output vectors of a level's codes → (n, size) float32."""
        return (self.dropout(hidden) @ vectors.to(hidden.dtype).t()).float()


def make_head(spec: HeadSpec, base: Any, *, ngrams: TfidfNgrams | None = None, dropout: float = 0.0, **start: float) -> Head:
    """Build a head from its description.

    Args:
        spec: The description.
        base: Gives a verbalizer its tokenizer and logits.
        dropout: Of the states that it reads.
        ngrams: The fitted n-grams of a head over texts; zeros of the described shape if None.
        start: Where a head starts: `prior` of a binary one, `mean` and `deviation` of a scalar one.
    """
    if spec.kind == "verbalizer":
        return VerbalizerHead(spec, base, dropout=dropout)
    if spec.kind == "binary":
        return BinaryHead(spec, dropout=dropout, ngrams=ngrams, **start)
    if spec.kind == "scalar":
        return ScalarHead(spec, dropout=dropout, ngrams=ngrams, **start)
    if spec.kind == "categorical":
        return CategoricalHead(spec, dropout=dropout, ngrams=ngrams)
    if spec.kind == "generate":
        return GenerateHead(spec, dropout=dropout)
    return CatalogueHead(spec, dropout=dropout)
