"""Where an item stands in users' lists, under titles that it does not have.

Owns: the lists of sampled users, computed once, and a target's score under rewritten titles. Ignores: which titles, why.

    lineup = lineup_of(model, builder, task, users, seed=0)
    lineup.place(target, "title", ["Heat", "Heat (bestseller)"])      # two standings: exposure, mean score, users

A next-item head ranks the catalogue, so a title moves one vector and no list has to be made again. Other heads score the target
among `OTHERS` items that are drawn for each user, for which the base reads the item behind the user's history.

A rewritten item keeps what the encoder knows by its id: it is the same item under another title, not a new one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from genre.data.catalogue import Catalogue
from genre.data.sequences.batches import Reads, collate, plan_batches
from genre.data.sequences.layout import Sequence as Row
from genre.data.sequences.rows import RowBuilder
from genre.data.sequences.text_rows import Builder
from genre.errors import DataError
from genre.jobs.audit.options import K
from genre.jobs.audit.report import Standing
from genre.modules.embedding import SoftTokens
from genre.modules.encoder import ItemTable
from genre.modules.heads.heads import CatalogueHead
from genre.modules.heads.neighbours import histories_of
from genre.modules.lora.layer import attach, detach
from genre.modules.reading import read, view_of
from genre.modules.recommender import Recommender
from genre.tasks import Task
from genre.training.prediction import BATCH_TOKENS

OTHERS = 99
"""Items, drawn for each user, among which a feedback task ranks a target."""


@dataclass(frozen=True)
class Variants:
    """One item under V titles.

    Attributes:
        count: V.
        texts: Their texts for item slots; None where slots hold no text.
        table: Their features; None without an encoder.
        vectors: (V, D) their item vectors; None without an encoder.
    """

    count: int
    texts: list[str] | None
    table: ItemTable | None
    vectors: Tensor | None


def read_column(model: Recommender, builder: RowBuilder) -> str | None:
    """The text column of items that a model reads, the title before others; None if it reads none."""
    layout, catalogue = builder.layout, builder.data.catalogue
    encoder = () if model.soft is None else model.soft.encoder.spec.text
    read = dict.fromkeys((*(layout.text if layout.item != "token" else ()), *encoder))
    texts = [name for name in read if catalogue.frame[name].dtype == pl.String]
    return "title" if "title" in texts else next(iter(texts), None)


class Lineup(ABC):
    """The lists of some users, without any target in them; see `CatalogueLineup` and `CandidateLineup`.

    Attributes:
        lists: What is ranked, in words.
        best: (U, most) codes of each user's best items, best first.
        best_scores: (U, most) their scores.
    """

    lists: str
    best: np.ndarray
    best_scores: np.ndarray

    def __init__(self, model: Recommender, builder: RowBuilder, task: Task, users: Sequence[str]) -> None:
        self.model, self.builder, self.task = model.eval(), builder, task
        self.log = builder.data
        self.users = np.array([self.log.user_code(user) for user in users])
        self.head = model.head(task.name)

    @torch.no_grad()
    def place(self, target: int, column: str | None, titles: Sequence[str | None]) -> list[Standing]:
        """Return where an item stands under each of some titles, over the users who have not had it.

        Args:
            target: Its code.
            column: The column that is rewritten; None for the item as it is.
            titles: The texts in that column.

        Raises:
            DataError: All of the users have had it.
        """
        scores = self._scores(target, self._variants(target, column, titles))
        free = np.array([target not in self._items(user) for user in self.users])
        if not free.any():
            what, todo = "all of the sampled users have had a target", "name another item with --target"
            raise DataError(what, got=self.log.catalogue.item_ids[target], expected="an item that is new to some", todo=todo)
        rivals = np.where(self.best == target, -np.inf, self.best_scores)
        bar = -np.sort(-rivals, axis=1)[:, K - 1]
        shown, scores = scores[free] > bar[free, None], scores[free]
        return [
            Standing(exposure=float(each.mean()), score=float(own.mean()), users=int(free.sum()))
            for each, own in zip(shown.T, scores.T, strict=True)
        ]

    @abstractmethod
    def _scores(self, target: int, variants: Variants) -> np.ndarray:
        """(U, V) float64 scores of the variants for each user."""

    def _items(self, user: int) -> np.ndarray:
        return self.log.item_codes[self.log.user_offsets[user] : self.log.user_offsets[user + 1]]

    def _row(self, user: int, texts: list[str] | None, candidates: np.ndarray | None = None) -> Row:
        """One user's latest events, and candidates after them."""
        log, layout = self.log, self.builder.layout
        own = np.arange(*log.user_offsets[user : user + 2])
        events = own[layout.latest(len(own))]
        shown = log.impressions
        return layout.build(
            self.builder.prefix(user),
            log.item_codes[events],
            self.builder.feedback[events],
            texts=texts,
            groups=None if shown is None else shown[events],
            candidates=candidates,
            candidate_events=None if candidates is None else np.arange(len(candidates)),
        )

    def _variants(self, target: int, column: str | None, titles: Sequence[str | None]) -> Variants:
        catalogue, layout, soft = self.log.catalogue, self.builder.layout, self.model.soft
        frame = catalogue.frame[[target] * len(titles)]
        frame = frame.with_columns(item_id=pl.Series([str(number) for number in range(len(titles))]))
        if column is not None:
            frame = frame.with_columns(pl.Series(column, titles, dtype=pl.String))
        some = Catalogue(frame)
        texts = None if layout.item == "token" else some.texts(list(layout.text))
        if soft is None:
            return Variants(len(titles), texts, None, None)
        encoder = soft.encoder
        with _bare(self.model):  # text vectors are the base's own
            features = encoder.table(some, self.model.base, keep=False).features
        row = encoder.row_of.get(catalogue.item_ids[target], -1)
        device = self.model.base.device
        table = ItemTable(features, torch.full((len(titles),), row)).to(device)
        return Variants(len(titles), texts, table, encoder.item_vectors(table))

    def _batches(self, rows: list[Row]) -> Iterator[tuple[np.ndarray, list[Row]]]:
        for chosen in plan_batches(np.array([len(row) for row in rows]), BATCH_TOKENS):
            yield chosen, [rows[number] for number in chosen]


@contextmanager
def _bare(model: Recommender) -> Iterator[None]:
    """A block in which a model's low-rank layers are off its base."""
    detach(model.base.model, model.layers)
    try:
        yield
    finally:
        attach(model.base.model, model.layers)


class CatalogueLineup(Lineup):
    """Lists of a next-item head over the whole catalogue."""

    @torch.no_grad()
    def __init__(self, model: Recommender, builder: RowBuilder, task: Task, users: Sequence[str]) -> None:
        super().__init__(model, builder, task, users)
        assert isinstance(self.head, CatalogueHead) and model.soft is not None
        seen = "without those that the user had" if task.seen == "masked" else "those that the user had included"
        self.lists = f"all {self.log.catalogue.size:,} items, {seen}"
        tables, most = self.head.tables(model.soft.every()), min(K + 1, self.log.catalogue.size)
        self.best, self.best_scores = np.full((len(users), K + 1), -1), np.full((len(users), K + 1), -np.inf)
        self._queries: list[tuple[np.ndarray, Tensor, tuple[Tensor, Tensor]]] = []
        rows = [self._row(user, builder.texts) for user in self.users.tolist()]
        for chosen, some in self._batches(rows):
            batch = collate(some, {}).to(model.base.device)
            hidden = model.hidden(batch)
            reads = _ends(some).to(hidden.device)
            scores = read(self.head, hidden, batch, reads, model.soft, tables=tables).float().cpu()
            for score, number in zip(scores, chosen, strict=True):
                if task.seen == "masked":
                    score[torch.from_numpy(self._items(self.users[number]).astype(np.int64))] = -torch.inf
                values, codes = score.topk(most)
                self.best[number, :most], self.best_scores[number, :most] = codes.numpy(), values.numpy()
            view, _ = view_of(self.head, batch, reads, model.soft)
            items = batch.history_items
            history = histories_of(items, torch.ones_like(items, dtype=torch.float32), reads.rows, reads.history_lengths)
            self._queries.append((chosen, self.head.ask(reads.of(hidden), view), history))

    def _scores(self, target: int, variants: Variants) -> np.ndarray:
        head, soft = self.head, self.model.soft
        assert (
            isinstance(head, CatalogueHead) and soft is not None and variants.vectors is not None and variants.table is not None
        )
        keys, found = head.tables(variants.vectors)[0], np.empty((len(self.users), len(variants.vectors)))
        for chosen, query, history in self._queries:
            scores = head.logits(query, keys)
            if head.neighbours is not None:
                text = variants.table.features["text"] if soft.index.text is not None else None
                index = soft.index.with_text(None if text is None else F.normalize(text, dim=-1))
                codes = len(soft.index.rows) + torch.arange(len(keys), device=keys.device)
                own = head.neighbours.together(soft.index, *history)[:, [target]]  # by its id, whatever its title
                weights = head.neighbours.blend
                scores = scores + weights[0] * own + weights[1] * head.neighbours.text(index, *history, codes)
            found[chosen] = scores.float().cpu().numpy()
        return found


class CandidateLineup(Lineup):
    """Lists of a feedback head over items that are drawn for each user."""

    @torch.no_grad()
    def __init__(
        self, model: Recommender, builder: RowBuilder, task: Task, users: Sequence[str], targets: Sequence[int], seed: int
    ) -> None:
        super().__init__(model, builder, task, users)
        draw, size = np.random.default_rng((seed, 3)), self.log.catalogue.size
        pools = []
        for user in self.users.tolist():
            order = draw.permutation(size)
            pools.append(order[~np.isin(order, [*self._items(user).tolist(), *targets])][:OTHERS])
        if min(map(len, pools)) < K:
            expected = f"at least {K}, beside the targets"
            raise DataError("there are too few items to rank a target among", got=min(map(len, pools)), expected=expected)
        self.lists = f"{OTHERS} items drawn for each user among those that the user has not had, and the target"
        rows = [self._row(user, builder.texts, pool) for user, pool in zip(self.users.tolist(), pools, strict=True)]
        self.best, self.best_scores = np.full((len(users), K), -1), np.full((len(users), K), -np.inf)
        for number, scores in enumerate(self._read(rows, model.soft)):
            order = np.argsort(-scores, kind="stable")[:K]
            self.best[number], self.best_scores[number] = pools[number][order], scores[order]

    def _scores(self, target: int, variants: Variants) -> np.ndarray:
        model, codes = self.model, self.log.catalogue.size + np.arange(variants.count)
        texts = None if variants.texts is None else [*(self.builder.texts or ()), *variants.texts]
        rows = [self._row(user, texts, codes) for user in self.users.tolist()]
        return np.stack(self._read(rows, None if model.soft is None else _with_variants(model.soft, variants)))

    def _read(self, rows: list[Row], soft: SoftTokens | None) -> list[np.ndarray]:
        """The scores of each row's candidates."""
        name, found = self.task.name, [np.empty(0)] * len(rows)
        most = max(len(row.candidates) for row in rows)
        for chosen, some in self._batches(rows):
            batch = collate(some, {name: ("item", np.zeros(most))}).to(self.model.base.device)
            output = read(self.head, self.model.hidden(batch, soft), batch, batch.reads[name], soft)
            scores = self.head.score(output).float().cpu().numpy().astype(np.float64)
            if scores.ndim == 2:  # classes: the expected one
                scores = scores @ np.arange(scores.shape[1])
            ends = np.cumsum([len(row.candidates) for row in some])[:-1]
            for number, own in zip(chosen, np.split(scores, ends), strict=True):
                found[number] = own
        return found


def _with_variants(soft: SoftTokens, variants: Variants) -> SoftTokens:
    """Soft tokens of a catalogue with the variants behind it."""
    assert variants.table is not None and variants.vectors is not None
    features = {name: torch.cat([value, variants.table.features[name]]) for name, value in soft.table.features.items()}
    table = ItemTable(features, torch.cat([soft.table.rows, variants.table.rows]))
    return SoftTokens(soft.encoder, table, cached=torch.cat([soft.every(), variants.vectors]))


def _ends(rows: Sequence[Row]) -> Reads:
    """A read of each row's last token, which has seen all events."""
    length = torch.tensor([len(row.item_codes) for row in rows])
    numbers, ends = torch.arange(len(rows)), torch.tensor([row.prefix_length - 1 for row in rows])
    return Reads(numbers, ends, length, length, torch.full_like(numbers, -1), None)


def lineup_of(
    model: Recommender, builder: Builder, task: Task, users: Sequence[str], targets: Sequence[int], *, seed: int
) -> Lineup:
    """Make the lists of some users under a task.

    Args:
        model: The model, on its base.
        builder: Of rows of the log.
        task: Whose scores rank.
        users: Ids.
        targets: Codes of the items that will be placed; they are no rivals of each other among drawn items.
        seed: Draws the items that a feedback task ranks.

    Raises:
        DataError: There are too few items to rank a target among.
    """
    assert isinstance(builder, RowBuilder)  # `subject.task_of` refuses adapters that read labelled texts
    if isinstance(model.head(task.name), CatalogueHead):
        return CatalogueLineup(model, builder, task, users)
    return CandidateLineup(model, builder, task, users, targets, seed)
