"""Items that requests name: catalogue items by id, and inline items by their columns.

Owns: the codes of one `score` call, texts and item vectors behind them. Ignores: requests, adapters.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from genre.data.catalogue import Catalogue
from genre.data.code_trie import CodeTrie
from genre.engine.filters import Condition
from genre.engine.turn import ForwardTurn
from genre.errors import DataError, GenreError, RequestError, first_line
from genre.modules.base.base import Base
from genre.modules.base.words import TEXT_TOKENS
from genre.modules.codes.item_codes import ItemCodes
from genre.modules.encoder import ItemTable
from genre.modules.heads.neighbours import ItemIndex
from genre.training.parts import SharedEncoder

LEAST_TEXT_TOKENS = 256
"""Padded tokens of a pass over items' texts that is limited by time."""
TEXT_PASS_S = 0.1
"""Seconds of such a pass at most, about, once anything was scored: who scores waits for it."""
CONDITIONS = 16
"""Conditions whose items are kept, a byte per item each."""


class ItemSpace:
    """A catalogue as one encoder (or a text-only adapter) sees it; its tables are computed once, whoever uses them.

    Attributes:
        catalogue: N items.
        text: Columns of an item's text slot.
        texts: (N,) text of each item, for text slots.
        vectors: (N, D) item vectors of the encoder; None without one.
        scales: (N,) what brings each of them to a mean square of one.
        index: The items as heads' item neighbours look them up; None without an encoder.
        codes: (N, levels) the items' codes; None without an encoder that has them.
    """

    def __init__(
        self, catalogue: Catalogue, text: tuple[str, ...], shared: SharedEncoder | None, base: Base, forward: ForwardTurn
    ) -> None:
        self.catalogue = catalogue
        self.text = text
        self.shared = shared
        self.base = base
        self.forward = forward
        self.texts = catalogue.texts(list(text))
        self._met: dict[str, np.ndarray] = {}
        self.vectors: Tensor | None = None
        self.scales: Tensor | None = None
        self.index: ItemIndex | None = None
        self.codes: Tensor | None = None
        self._uncoded: DataError | None = None
        if shared is not None:
            try:
                table = table_of(shared, catalogue, base, forward)
            except DataError as error:  # a new item finds no free code, which only those that generate need
                self._uncoded = error
                table = table_of(shared, catalogue, base, forward, codes="none")
            with torch.no_grad():
                self.vectors = shared.encoder.item_vectors(table)
                self.index = shared.encoder.index(table)
            self.codes = table.codes
            self.scales = scales_of(self.vectors)

    @cached_property
    def identity(self) -> str:
        """Digest of all that its texts and vectors come from, the same in every engine on one base."""
        encoder = None if self.shared is None else self.shared.digest
        return hashlib.sha256(json.dumps([encoder, self.catalogue.digest, *self.text]).encode()).hexdigest()

    @cached_property
    def trie(self) -> CodeTrie:
        """The items by their codes, which the encoder must have.

        Raises:
            DataError: A new item finds no free code.
        """
        if self._uncoded is not None:
            raise self._uncoded
        assert self.shared is not None and self.shared.encoder.codes is not None and self.codes is not None
        return CodeTrie(self.codes.cpu().numpy(), self.shared.encoder.codes.sizes)

    def met(self, condition: str) -> np.ndarray:
        """(N,) bool: the items that meet a condition; those of the last few conditions are kept.

        Raises:
            RequestError: It does not fit the catalogue's columns.
        """
        found = self._met.get(condition)
        if found is None:
            found = Condition.read(condition).met(self.catalogue.frame)
            while len(self._met) >= CONDITIONS:
                self._met.pop(next(iter(self._met), ""), None)
            self._met[condition] = found
        return found


class Inline:
    """The items of one call that only have columns; their codes follow the catalogue's, and their tables grow with them.

    Items are named (`code`), become rows of a catalogue for one request at a time (`take_in`, or `forget` if that fails), and
    are embedded for many requests together (`catch_up`).

    Attributes:
        rows: The columns of each.
    """

    def __init__(self, space: ItemSpace) -> None:
        self.space = space
        self.rows: list[dict[str, Any]] = []
        self._number: dict[str, int] = {}
        self._texts: list[str] = []
        self._frames: list[pl.DataFrame] = []  # taken in, not embedded yet
        self._vectors: Tensor | None = None
        self._index = space.index
        self._embedded: list[pl.DataFrame] = []

    def code(self, item: str | Mapping[str, Any]) -> int:
        """The code of an item id or of an item given by its columns.

        Raises:
            RequestError: The id is unknown, or the columns are not usable.
        """
        if isinstance(item, str):
            if item not in self.space.catalogue:
                todo = 'give its columns instead: {"item": {"title": …}}'
                raise RequestError("unknown item", got=item, expected="an item of the catalogue", todo=todo)
            return self.space.catalogue.code(item)
        if not isinstance(item, Mapping) or not item:
            expected = "an item id, or an object with its columns"
            raise RequestError("an item cannot be read", got=repr(item)[:80], expected=expected)
        columns = {str(key): value for key, value in item.items()}
        known = set(self.space.catalogue.frame.columns)
        if stray := sorted(set(columns) - known):
            raise RequestError("an item has an unknown column", got=stray[0], expected=", ".join(sorted(known)))
        dense = () if self.space.shared is None else self.space.shared.encoder.spec.dense
        if lacking := [name for name, _ in dense if columns.get(name) is None]:
            raise RequestError("an inline item cannot be used", got=f"no {lacking[0]}", expected="every dense column")
        key = json.dumps(columns, sort_keys=True, default=str)
        if key not in self._number:
            self._number[key] = len(self.rows)
            self.rows.append(columns)
        return self.space.catalogue.size + self._number[key]

    def digest(self, code: int) -> bytes:
        """16 bytes that say which columns an inline item has."""
        columns = json.dumps(self.rows[code - self.space.catalogue.size], sort_keys=True, default=str)
        return hashlib.blake2b(columns.encode(), digest_size=16).digest()

    def item_id(self, code: int) -> str:
        """The id that a result carries: the catalogue's, or the one given inline, or the title."""
        number = code - self.space.catalogue.size
        if number < 0:
            return self.space.catalogue.item_ids[code]
        row = self.rows[number]
        return str(row.get("item_id") or row.get("title") or f"inline-{number}")

    def met(self, condition: str, codes: np.ndarray) -> np.ndarray:
        """(n,) bool: which codes meet a condition.

        Raises:
            RequestError: It does not fit the items' columns.
        """
        known, size = self.space.met(condition), self.space.catalogue.size
        inline = codes >= size
        found = np.zeros(len(codes), dtype=bool)
        found[~inline] = known[codes[~inline]]
        if inline.any():
            self.take_in()
            rows = [self.rows[code - size] for code in codes[inline].tolist()]
            schema = self.space.catalogue.frame.schema
            found[inline] = Condition.read(condition).met(
                pl.DataFrame([{n: r.get(n) for n in schema} for r in rows], schema=schema)
            )
        return found

    @property
    def texts(self) -> "Texts":
        """The text of every code."""
        self.take_in()
        return Texts(self.space.texts, self._texts)

    @property
    def soft(self) -> "Inline | None":
        """Itself as the lookup of soft tokens' vectors; None where the space has no encoder."""
        return self if self.space.shared is not None else None

    def feedback(self, codes: Tensor) -> Tensor:
        """(n, D) feedback vectors."""
        assert self.space.shared is not None
        return self.space.shared.encoder.feedback_vectors(codes)

    def items(self, codes: Tensor) -> Tensor:
        """(n, D) item vectors of some codes, which `catch_up` has embedded."""
        known, size = self.space.vectors, self.space.catalogue.size
        assert known is not None
        if self._vectors is None:
            return known[codes]
        own = self._vectors[(codes - size).clamp(0, len(self._vectors) - 1)]
        return torch.where((codes >= size).unsqueeze(-1), own, known[codes.clamp_max(size - 1)])

    @property
    def index(self) -> ItemIndex:
        """The catalogue's items and those that `catch_up` has embedded, as heads' item neighbours look them up."""
        assert self._index is not None
        return self._index

    @property
    def codes(self) -> ItemCodes | None:
        """The vectors of codes; None where the space's encoder has none."""
        return None if self.space.shared is None else self.space.shared.encoder.codes

    def trie_of(self, codes: np.ndarray) -> CodeTrie:
        """The catalogue's items by their codes, with those of (C,) codes that are inline, which `catch_up` has embedded.

        No inline item is looked at for another's codes, so that an answer does not depend on what else is asked for.

        Raises:
            DataError: An inline or new item finds no free code.
        """
        space, trie, size = self.space, self.space.trie, self.space.catalogue.size
        own = np.unique(codes[codes >= size])
        if not len(own):
            return trie
        assert space.shared is not None
        items = Catalogue(pl.concat(self._embedded)[(own - size).tolist()])
        table = table_of(space.shared, items, space.base, space.forward, keep=False, codes="apart", taken=space.codes)
        assert table.codes is not None
        return trie.with_items(table.codes.cpu().numpy(), own)

    def take_in(self) -> None:
        """Make rows of a catalogue of the items that were named since the last time.

        Raises:
            RequestError: One cannot become such a row; `forget` them all then.
        """
        first = len(self._texts)
        if first == len(self.rows):
            return
        space = self.space
        try:
            schema = {name: kind for name, kind in space.catalogue.frame.schema.items() if name != "item_id"}
            values = [{name: row.get(name) for name in schema} for row in self.rows[first:]]
            numbers = [f"\x00inline-{number}" for number in range(first, len(self.rows))]
            frame = pl.DataFrame(values, schema=schema).with_columns(pl.Series("item_id", numbers))
            extra = Catalogue(frame.select("item_id", *schema))
            if space.shared is not None:
                space.shared.encoder.dense_features(extra)
            texts = extra.texts(list(space.text))
        except (TypeError, ValueError, OverflowError, RuntimeError, pl.exceptions.PolarsError, GenreError) as error:
            raise RequestError("an inline item cannot be used", got=first_line(error, 160)) from None
        self._texts += texts
        if space.shared is not None:
            self._frames.append(extra.frame)

    def forget(self, count: int) -> None:
        """Drop the items after the first `count`: those of a request that is refused, none of them embedded yet."""
        if len(self.rows) > count:
            self._number = {key: number for key, number in self._number.items() if number < count}
            surplus = len(self._texts) - count
            while surplus > 0:
                surplus -= self._frames.pop().height if self._frames else surplus
            del self.rows[count:], self._texts[count:]

    def catch_up(self) -> None:
        """Embed the items that were taken in since the last time, all together; takes the forward lock, pass by pass."""
        if self._frames:
            frames, self._frames = self._frames, []
            space = self.space
            assert space.shared is not None
            self._embedded += frames
            table = table_of(space.shared, Catalogue(pl.concat(frames)), space.base, space.forward, keep=False, codes="none")
            with torch.no_grad():
                vectors, index = space.shared.encoder.item_vectors(table), space.shared.encoder.index(table)
            self._vectors = vectors if self._vectors is None else torch.cat([self._vectors, vectors])
            self._index = self.index.with_text(index.text)


class Texts(Sequence[str]):
    """The catalogue's texts and those of inline items after them, without a copy of the first."""

    def __init__(self, known: Sequence[str], inline: Sequence[str]) -> None:
        self.known = known
        self.inline = inline

    def __len__(self) -> int:
        return len(self.known) + len(self.inline)

    def __getitem__(self, code: Any) -> Any:
        if isinstance(code, slice):
            return [self[each] for each in range(*code.indices(len(self)))]
        return self.known[code] if code < len(self.known) else self.inline[code - len(self.known)]


@torch.no_grad()
def table_of(shared: SharedEncoder, catalogue: Catalogue, base: Base, forward: ForwardTurn, **options: Any) -> ItemTable:
    """The features of a catalogue, and its items' codes where the encoder has codes.

    Args:
        shared: The encoder.
        catalogue: N items.
        base: Embeds their texts, bare.
        forward: Held during each of its passes, in which no other batch may route rows; others have their turn in between.
        options: `keep`, `codes` and `taken` of `BehaviourEncoder.table`.
    """
    tokens = forward.tokens_in(TEXT_PASS_S, least=LEAST_TEXT_TOKENS, most=TEXT_TOKENS)
    return shared.encoder.eval().table(catalogue, base, forward=forward, pass_tokens=tokens, **options).to(base.device)


def scales_of(vectors: Tensor) -> Tensor:
    """(N,) float32: what brings each of (N, D) vectors to a mean square of one."""
    return torch.rsqrt(vectors.float().square().mean(-1) + 1e-6)
