"""Vectors of items and of users whose dot product is the score of a next-item task.

Owns: which terms of a head become which dimensions. Ignores: files, indexes, which users there are.

Every term of a catalogue head is a product of something of the user and something of the item, so the dimensions of its terms
stand side by side:

    block              item                  user                                       dimensions
    query              K ē_i, F ē_i          (q, √d β Σ_j γ^age F ē_j) / √d             d + k
    bias               b·ē_i                 1                                          1
    text neighbours    t_i                   β₂ √r · the history's t, length one        r
    item neighbours    row i of V            β₁ (z V), z standardized (N,)              N, or the rank

V is the identity where item neighbours are exact: they are full-rank. With a rank r, V holds the r strongest right singular
vectors of the centred item-to-item matrix, and what is lost is `Space.lost`.

Binary and scalar heads have no such vectors: the base reads each candidate after the history, and their score is no product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor

from genre.data.catalogue import Catalogue
from genre.data.sequences.batches import Batch
from genre.data.sequences.layout import Sequence as Row
from genre.engine.core import Engine
from genre.engine.items import Inline, ItemSpace
from genre.engine.requests import Request
from genre.engine.scoring import queries
from genre.errors import InputError, JobError, RegistryError
from genre.modules.heads.gaussian_process import to_unit
from genre.modules.heads.heads import CatalogueHead
from genre.modules.heads.neighbours import ItemIndex, ItemNeighbours, histories_of
from genre.registry import Version
from genre.tasks import Task

MOST_EXACT = 4096
"""Items up to which exact item neighbours, a dimension per item, are no unreasonable vector."""
CALL = 256
"""Users of one call."""
QUERY, BIAS, TEXT, ITEMS = "query", "bias", "text neighbours", "item neighbours"


@dataclass(frozen=True)
class Space:
    """One version's items as vectors, and what makes a user's.

    Attributes:
        ref: The version, as `name:version`.
        digest: Its digest.
        task: The next-item task.
        blocks: Dimensions of each block, in order.
        lost: Share of the centred item-to-item matrix, by Frobenius norm, that a rank leaves out; None where all is exact.
    """

    ref: str
    digest: str
    task: Task
    blocks: dict[str, int]
    lost: float | None
    _head: CatalogueHead
    _space: ItemSpace
    _basis: Tensor | None

    @property
    def catalogue(self) -> Catalogue:
        """The items, in the order of their vectors."""
        return self._space.catalogue

    @cached_property
    @torch.no_grad()
    def items(self) -> np.ndarray:
        """(N, d) float32, in the order of `catalogue`.

        Raises:
            JobError: A number is not finite.
        """
        space, head = self._space, self._head
        assert space.vectors is not None and space.index is not None
        unit = to_unit(space.vectors)
        parts = [unit @ head.keyed.t(), (unit @ head.key.weight[-1])[:, None]]
        if TEXT in self.blocks:
            assert space.index.text is not None
            parts.append(space.index.text[: space.catalogue.size])
        if ITEMS in self.blocks:
            parts.append(torch.eye(space.catalogue.size) if self._basis is None else self._basis)
        return _finite(np.concatenate([part.float().cpu().numpy() for part in parts], axis=1), f"{self.ref} gives an item vector")

    def users(self, engine: Engine, requests: Sequence[Request]) -> np.ndarray:
        """The vectors of some requests' histories, (n, d) float32; candidates and filters are not looked at.

        Raises:
            GenreError: A history cannot be read, or the version cannot be loaded.
        """
        found = np.empty((len(requests), sum(self.blocks.values())), dtype=np.float32)
        make = self._vectors_of  # one object, by which rows of a batch are computed together
        for start in range(0, len(requests), CALL):
            asked = [self._history_alone(request) for request in requests[start : start + CALL]]
            with engine.planned_together(asked, self.ref) as jobs:
                for job in jobs:
                    job.user_vectors = make
                engine.passes.run(jobs)
                for number, job in enumerate(jobs, start):
                    (vector,) = job.scores
                    assert vector is not None
                    found[number] = vector
        return _finite(found, f"{self.ref} gives a user vector")

    def _history_alone(self, request: Request) -> Request:
        """A request for all of the catalogue, so that none is answered without its history being read."""
        return Request(
            self.ref,
            request.history,
            k=1,
            task=self.task.name,
            user_id=request.user_id,
            user=request.user,
            exclude_seen=False,
        )

    def _vectors_of(self, inline: Inline, rows: Sequence[Row], batch: Batch, hidden: Tensor) -> list[np.ndarray]:
        """(d,) of each row; arguments as of `genre.engine.scoring.score`."""
        query, reads = queries(self._head, inline, rows, batch, hidden)
        parts = [query / self._head.spec.size**0.5, query.new_ones(len(query), 1)]
        neighbours = self._head.neighbours
        if neighbours is not None:
            items = batch.history_items
            ones = torch.ones_like(items, dtype=torch.float32)
            history = histories_of(items, ones, reads.rows, reads.history_lengths)
            if TEXT in self.blocks:
                weight = neighbours.blend[1] * self.blocks[TEXT] ** 0.5
                parts.append(weight * neighbours.text_query(inline.index, *history))
            if ITEMS in self.blocks:
                together = neighbours.blend[0] * neighbours.together(inline.index, *history)[:, : inline.space.catalogue.size]
                parts.append(together if self._basis is None else together @ self._basis)
        return list(torch.cat(parts, 1).cpu().numpy())


def vector_space(
    engine: Engine, ref: str, *, task: str | None = None, rank: int | None = None, basis: np.ndarray | None = None
) -> Space:
    """The vectors of a version's items, over the catalogue that it answers for in this engine.

    Args:
        engine: Holds the base and the registry.
        ref: The version.
        task: The next-item task of a joint adapter.
        rank: Dimensions of item neighbours; None keeps them exact, a dimension per item.
        basis: (N, r) float32, the vectors of item neighbours of an earlier space of this version, instead of a rank.

    Raises:
        RegistryError: As of `product_task`, or item neighbours need a rank.
        InputError: The rank does not fit.
    """
    version = engine.registry.resolve(ref)
    exact, name = version.ref, product_task(version, task)
    with engine.planned(Request(exact, history=[], k=1, task=name, exclude_seen=False)) as job:
        chosen, head, space = job.task, job.head, job.inline.space
    assert isinstance(head, CatalogueHead)
    blocks, neighbours, own, lost = {QUERY: len(head.keyed), BIAS: 1}, head.neighbours, None, None
    if neighbours is not None and float(neighbours.blend[1]) and space.index is not None and space.index.text is not None:
        blocks[TEXT] = space.index.text.shape[1]
    if neighbours is not None and float(neighbours.blend[0]):
        own, lost = _item_block(exact, neighbours, space, rank, basis)
        blocks[ITEMS] = space.catalogue.size if own is None else own.shape[1]
    elif rank is not None:
        todo = "leave it out: all is exact"
        raise InputError(f"a rank is of item neighbours, and {exact} has none", got=f"rank {rank}", todo=todo)
    return Space(exact, version.digest, chosen, blocks, lost, head, space, own)


def _finite(found: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(found).all():
        raise JobError(f"{what} that is not finite", expected="finite numbers")
    return found


def product_task(version: Version, task: str | None = None) -> str:
    """The task of a version whose scores are dot products: the one asked for, or its only next-item task.

    Raises:
        RegistryError: There is none, or the one asked for is of another kind.
    """
    rows = {str(row["name"]): row for row in version.manifest.tasks}
    ranking = [name for name, row in rows.items() if row.get("kind") == "next_item"]
    what = f"{version.ref} has no item vectors whose dot product is the score"
    generated = [name for name in ranking if rows[name].get("head") == "generate"]
    if task in generated or (task is None and generated == ranking and ranking):
        todo = "export --to lists writes what it recommends"
        raise RegistryError(what, got=f"task {generated[0]!r}, which generates items", expected="head catalogue", todo=todo)
    if task is None and len(ranking) == 1:
        return ranking[0]
    if task in ranking:
        return str(task)
    if task is not None and task not in rows:
        raise RegistryError(f"{version.ref} has no such task", got=task, expected=", ".join(rows) or "none")
    if task is None and ranking:
        raise RegistryError(f"{version.ref} has several next-item tasks", got="no task", expected=", ".join(ranking))
    if version.manifest.kind == "encoder" or not rows:
        raise RegistryError(what, got=f"kind {version.manifest.kind} without tasks", expected="an adapter with a next-item task")
    name = task or next(iter(rows))
    got = f"task {name!r} of kind {rows[name].get('kind')}, whose base reads each candidate together with the history"
    todo = "export --to lists writes its scores; or retrieve by the vectors of a next-item version, and rerank with this one"
    raise RegistryError(what, got=got, expected="a next-item task", todo=todo)


def _item_block(
    ref: str, neighbours: ItemNeighbours, space: ItemSpace, rank: int | None, basis: np.ndarray | None
) -> tuple[Tensor | None, float | None]:
    """V, (N, r), or None for the identity; and what it loses."""
    size = space.catalogue.size
    assert space.index is not None
    if basis is not None:
        return torch.from_numpy(np.array(basis, dtype=np.float32)).to(space.index.rows.device), None
    if rank is None:
        if size > MOST_EXACT:
            got, expected = f"{size:,} items", f"at most {MOST_EXACT:,}, a dimension per item"
            todo = "--rank 256 keeps the strongest directions and says what it loses; --to lists keeps exact scores"
            raise RegistryError(f"item neighbours of {ref} make vectors too long", got=got, expected=expected, todo=todo)
        return None, None
    if not 1 <= rank < size:
        raise InputError("the rank does not fit", got=rank, expected=f"1 to {size - 1:,}, fewer than the items")
    own, lost = strongest(item_matrix(neighbours, space.index), rank)
    return torch.from_numpy(own).to(space.index.rows.device), lost


def item_matrix(neighbours: ItemNeighbours, index: ItemIndex) -> Any:
    """B over a catalogue, CSR float32 (N, N): row j has what each event of item j adds to every item."""
    rows, codes = index.rows.cpu().numpy(), index.codes.cpu().numpy()
    size, count = len(rows), neighbours.items.shape[1]
    known = np.flatnonzero(rows >= 0)
    columns = codes[neighbours.items.cpu().numpy()[rows[known]]].ravel()
    values = neighbours.values.float().cpu().numpy()[rows[known]].ravel()
    there = columns < size
    triple = values[there], (np.repeat(known, count)[there], columns[there])
    matrix = sp.csr_matrix(triple, shape=(size, size), dtype=np.float32)
    if neighbours.stand_ins and (stand_ins := index.stand_ins(neighbours.stand_ins)) is not None:
        there = stand_ins.items < size
        items, nearest, shares = (each[there].cpu().numpy() for each in (stand_ins.items, stand_ins.nearest, stand_ins.shares))
        stands = shares.ravel(), (nearest.ravel(), np.repeat(items, nearest.shape[1]))
        matrix = matrix + matrix @ sp.csr_matrix(stands, shape=(size, size))
    return matrix


def strongest(matrix: Any, rank: int) -> tuple[np.ndarray, float]:
    """The strongest right singular vectors of a sparse (N, N) matrix whose rows are centred, and what they lose.

    Returns:
        (N, r) float32 orthonormal columns, and the share of the Frobenius norm that their span leaves out.
    """
    size = matrix.shape[1]
    mean = np.asarray(matrix.mean(1)).ravel().astype(np.float64)
    total = float(matrix.multiply(matrix).sum() - size * (mean**2).sum())
    centred = LinearOperator(
        matrix.shape,
        matvec=lambda x: matrix @ x.ravel() - mean * x.sum(),
        rmatvec=lambda y: matrix.T @ y.ravel() - mean @ y.ravel(),
        dtype=np.float64,
    )
    _, values, vectors = svds(centred, k=rank, v0=np.random.default_rng(0).normal(size=size))
    kept = float((values**2).sum())
    return np.ascontiguousarray(vectors[::-1].T, dtype=np.float32), float(np.sqrt(max(total - kept, 0.0) / max(total, 1e-30)))
