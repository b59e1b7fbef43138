"""First-order effect of each event of a history on one score: one forward and one backward pass.

Owns: the pass with a weight per event. Ignores: what the effects are used for.

Every event j gets a weight m_j = 1 that scales its input: the embeddings of its tokens, and what heads see of it beside
hidden states (`View.weights`). With x_j everything that event j contributes,

    ∂s/∂m_j = Σ (∂s/∂x_j) · x_j

is gradient × input, summed over the event. Source: Shrikumar et al., "Not just a black box" (2016).
"""

import numpy as np
import torch
from torch import Tensor

from genre.data.sequences.batches import Batch, collate
from genre.data.sequences.layout import Sequence as Row
from genre.data.sequences.transfer import upload
from genre.engine.core import Engine
from genre.engine.planning import Job
from genre.engine.requests import Request, Response
from genre.engine.scoring import directions, logits_of, neighbours_of, on_host, score
from genre.errors import RequestError
from genre.modules.embedding import embed
from genre.modules.heads.heads import CatalogueHead


def event_gradients(engine: Engine, request: Request, ref: str | None = None) -> tuple[Response, np.ndarray]:
    """The score of a request's one candidate, and gradient × input of each event that is read for it.

    Args:
        engine: Where it is scored.
        request: A request with one candidate.
        ref: An exact reference that is looked up instead of `request.adapter`.

    Returns:
        The response, and (E,) float32 in the score's unit, in the history's order.

    Raises:
        GenreError: The request cannot be scored.
    """
    with engine.planned(request, ref) as job:
        if len(job.codes) != 1:
            raise RequestError("a gradient is of one score", got=f"{len(job.codes)} candidates", expected="one")
        if job.generation is not None:
            todo = "ask for the method leave_one_out"
            raise RequestError("an item that is generated has no gradient", got=f"task {job.task.name!r}", todo=todo)
        job.scores[0], effects = _pass(engine, job, job.rows[0])
        return job.respond(), effects


def _pass(engine: Engine, job: Job, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(1,) score and (E,) derivatives by the events' weights."""
    device = engine.base.device
    job.inline.catch_up()
    batch = collate([row], {}).to(device)
    weights = torch.ones(1, len(row.item_codes), device=device, requires_grad=True)
    with engine.forward, torch.enable_grad():  # backward too: the base is one
        engine.slots.route([job.resident.slot])
        try:
            with torch.no_grad():
                embeds = embed(engine.base, batch, job.inline.soft)
            embeds = embeds * _per_token(weights, row).to(embeds.dtype)
            hidden = engine.base.hidden(embeds, batch.positions, batch.mask).to(device)
            found = _score(job, row, batch, hidden, weights)
            (gradient,) = torch.autograd.grad(found.sum(), weights)
        finally:
            engine.slots.clear()
    score, effects = on_host([found.detach(), gradient[0].float()])
    return score, effects


def _score(job: Job, row: Row, batch: Batch, hidden: Tensor, weights: Tensor) -> Tensor:
    if isinstance(job.head, CatalogueHead):
        found = logits_of(job.inline, job.codes, directions(job.head, job.inline, [row], batch, hidden, weights)[0])
        if job.head.neighbours is None:
            return found
        return found + neighbours_of(job.head, job.inline, batch, 0, len(row.item_codes), job.codes, weights)
    return score(job.head, job.inline, [row], batch, hidden, weights=weights)


def _per_token(weights: Tensor, row: Row) -> Tensor:
    """(1, T, 1): the weight of the event that each token belongs to, 1 for instruction and candidates."""
    owner = np.searchsorted(row.event_starts, np.arange(len(row)), side="right")  # 0 before the first event
    owner[row.prefix_length :] = 0
    padded = torch.cat([weights.new_ones(1, 1), weights], 1)
    return padded[:, upload(torch.from_numpy(owner), weights.device)].unsqueeze(-1)
