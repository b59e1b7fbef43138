"""The part of a next-item head that is fitted after training: a linear model of which items the same users had.

Owns: fitting it to the encoder's item vectors, choosing on validation how much it counts. Ignores: the loop, the formula.

    score of an item = trained head + β Σ_j γ^(events since j) (F ē_j)·(F ē_i)

F is a ridge regression of PureSVD's item factors (`genre.modules.collaborative.pure_svd`) on the items' vectors, rows weighted by
training events, so items that nobody had yet have a taste as well, from their text. It is scaled so that β is the term's
standard deviation over the catalogue, for a user of the training part. The factors know the training events, so in training the
term would leave the base little to learn; it comes after, with the β of `BLENDS` that validation likes best, 0 if none helps.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from genre.data.interactions import Interactions
from genre.data.splits import VALID
from genre.distributed import Processes
from genre.evaluation.metrics.by_name import Metric, metric
from genre.evaluation.ranking import Ranker
from genre.modules.collaborative import pure_svd
from genre.modules.heads.gaussian_process import ridge, to_unit
from genre.modules.heads.heads import CatalogueHead
from genre.tasks import Task
from genre.training.assembly import Assembly
from genre.training.prediction import pieces, states

BLENDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
STRENGTH = 0.1
"""Of the penalty: so large that vectors unlike all that were fitted on get no larger tastes than known items."""
SAMPLE = 256, 16_384
"""Users and items that the term's scale is measured on, at most."""
MOST_SCORES = 2**31
"""Of validation targets times items; where there are more, some targets alone choose how much the term counts."""


def add_tastes(assembly: Assembly, processes: Processes) -> Iterator[str]:
    """Give every next-item head of a trained model its term (mutates the model); yields what was chosen, in words."""
    if assembly.model.soft is None or not assembly.recipe.encoder.taste:
        return
    heads = {
        task.name: head
        for task in assembly.recipe.tasks
        if isinstance(head := assembly.model.heads[task.name], CatalogueHead) and head.memory is not None
    }
    if not heads:
        return
    vectors = to_unit(assembly.model.soft.every())
    factors = processes.broadcast(fit_taste(vectors, assembly.log, assembly.usable, assembly.recipe.encoder.taste))
    heads = {name: head.with_cooccurrence(factors.to(vectors.device)) for name, head in heads.items()}
    assembly.model.heads.update(heads)
    for name, found in _by_blend(assembly, heads, processes).items():
        chosen = _deciding(assembly.model.tasks[name])
        values = [chosen.function(np.concatenate(some)) if some else np.nan for some in found]
        best = 0
        for place, value in enumerate(values):
            best = place if chosen.better(value, values[best]) else best
        if best == 0:
            assembly.model.heads[name] = heads[name].with_cooccurrence(None)
            continue
        assembly.model.heads[name] = heads[name].with_cooccurrence(factors.to(vectors.device), BLENDS[best])
        moved = f"validation {name}.{chosen.name} {values[0]:.4f} to {values[best]:.4f}"
        yield f"{name}: a linear model of which items the same users had counts {BLENDS[best]:g}: {moved}"


def fit_taste(vectors: Tensor, log: Interactions, usable: np.ndarray, dimensions: int, *, fading: float = 0.95) -> Tensor:
    """F, (dimensions, D) float32, from (N, D) unit item vectors and the usable events; zero where these say nothing."""
    factors = torch.from_numpy(pure_svd(log, usable, dimensions=dimensions))
    events = np.flatnonzero(usable)
    weight = torch.from_numpy(np.bincount(log.item_codes[events], minlength=log.catalogue.size)).float()
    fitted = ridge(vectors, factors, weight, strength=STRENGTH).t()
    users, ends = np.unique(log.user_codes[events][::-1], return_index=True)
    some = np.linspace(0, len(users) - 1, min(len(users), SAMPLE[0])).astype(np.int64)
    items = np.linspace(0, len(vectors) - 1, min(len(vectors), SAMPLE[1])).astype(np.int64)
    tastes = torch.stack([_history(vectors, log, events, len(events) - int(ends[place]), fading) for place in some])
    said = (tastes @ fitted.t()) @ (vectors[torch.from_numpy(items).to(vectors.device)] @ fitted.t()).t()
    spread = float(said.std(1, correction=0).mean())
    says_something = spread > 1e-4 * float(said.abs().mean())
    return (fitted * spread**-0.5 if says_something else torch.zeros_like(fitted)).cpu()


def _history(vectors: Tensor, log: Interactions, events: np.ndarray, end: int, fading: float) -> Tensor:
    """(D,): the fading sum of the vectors of a user's events, of which the last is the one before `end` among the events."""
    last = events[max(0, end - 100) : end]
    own = last[log.user_codes[last] == log.user_codes[last[-1]]]
    ages = torch.arange(len(own) - 1, -1, -1, device=vectors.device)
    return (fading**ages) @ vectors[torch.from_numpy(log.item_codes[own].astype(np.int64)).to(vectors.device)]


def _deciding(task: Task) -> Metric:
    """The first of a task's metrics that is of ranks alone."""
    return next((found for each in task.metrics if (found := metric(each)).kind == "ranking"), metric("ndcg@10"))


@torch.no_grad()
def _by_blend(assembly: Assembly, heads: dict[str, CatalogueHead], processes: Processes) -> dict[str, list[list[np.ndarray]]]:
    """For each head and each of `BLENDS` the ranks of the validation targets, in parts."""
    model, log = assembly.model, assembly.log
    found: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in BLENDS] for name in heads}
    training = model.training
    model.eval()
    tables = model.catalogue_tables()
    rankers = {name: Ranker(log, assembly.split, seen=model.tasks[name].seen) for name in heads}
    recipe = assembly.recipe
    longest, tokens = recipe.data.max_events, 4 * recipe.train.batch_tokens
    stride = max(1, round(np.count_nonzero(assembly.split.part == VALID) * log.catalogue.size / MOST_SCORES))
    number = 0
    for batch, hidden in states(
        model, assembly.builder, assembly.split, VALID, max_events=longest, batch_tokens=tokens, processes=processes
    ):
        for name, head in heads.items():
            assert head.blend is not None
            for piece in pieces(batch.reads[name], log.catalogue.size) if name in batch.reads else ():
                number += 1
                if (number - 1) % stride:
                    continue
                events = piece.events.numpy()
                for place, blend in enumerate(BLENDS):
                    head.blend.fill_(blend)
                    scores = model.output(name, hidden, batch, reads=piece, tables=tables[name]).float().cpu().numpy()
                    found[name][place].append(rankers[name].ranks(events, log.item_codes[events], scores))
    model.train(training)
    shared = processes.all_gather(found)
    return {name: [[part for own in shared for part in own[name][place]] for place in range(len(BLENDS))] for name in heads}
