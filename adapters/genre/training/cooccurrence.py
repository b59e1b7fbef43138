"""The co-occurrence term of a next-item head, fitted after training: a linear model of which items the same users had.

Owns: fitting it to the encoder's item vectors, choosing its weight on validation. Ignores: the loop, the head's formula.

    score of an item = trained head + β Σ_j γ^(events since j) (F ē_j)·(F ē_i)

F is a ridge regression of PureSVD's item factors (`genre.modules.collaborative.pure_svd`) on the items' vectors, rows weighted by
training events, so cold items have factors as well, from their text. It is scaled so that β is the term's standard deviation
over the catalogue, for a user of the training part. The factors know the training events, so in training the term would leave
the base little to learn; it comes after, with the β of `WEIGHTS` that validation likes best, 0 if none helps.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from genre.data.interactions import Interactions
from genre.data.splits import VALID
from genre.distributed import Processes
from genre.evaluation.ranking import Ranker
from genre.modules.collaborative import pure_svd
from genre.modules.heads.gaussian_process import ridge, to_unit
from genre.modules.heads.heads import CatalogueHead
from genre.training.assembly import Assembly
from genre.training.prediction import pieces, states
from genre.training.validation import ranking_metric

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
STRENGTH = 0.1
"""Of the penalty: so large that vectors unlike all that were fitted on get no larger factors than warm items."""
SAMPLE = 256, 16_384
"""At most so many users and items serve to measure the term's scale."""
MOST_SCORES = 2**31
"""Of validation targets times items; where there are more, the weight is chosen on a sample of the targets."""


def add_cooccurrence(assembly: Assembly, processes: Processes) -> Iterator[str]:
    """Give every next-item head of a trained model its term (mutates the model); yields a report of each."""
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
    factors = processes.broadcast(fit_factors(vectors, assembly.log, assembly.train_mask, assembly.recipe.encoder.taste))
    heads = {name: head.with_cooccurrence(factors.to(vectors.device)) for name, head in heads.items()}
    assembly.model.heads.update(heads)
    for name, found in _ranks_by_weight(assembly, heads, processes).items():
        chosen = ranking_metric(assembly.model.tasks[name])
        values = [chosen.function(np.concatenate(some)) if some else np.nan for some in found]
        best = 0
        for index, value in enumerate(values):
            best = index if chosen.better(value, values[best]) else best
        if best == 0:
            assembly.model.heads[name] = heads[name].with_cooccurrence(None)
            continue
        assembly.model.heads[name] = heads[name].with_cooccurrence(factors.to(vectors.device), WEIGHTS[best])
        gain = f"validation {name}.{chosen.name} {values[0]:.4f} to {values[best]:.4f}"
        yield f"{name}: co-occurrence term with weight {WEIGHTS[best]:g}: {gain}"


def fit_factors(vectors: Tensor, log: Interactions, train: np.ndarray, dimensions: int, *, fading: float = 0.95) -> Tensor:
    """F, (dimensions, D) float32, from (N, D) unit item vectors and the train mask (n,); zero where the events have no signal."""
    factors = torch.from_numpy(pure_svd(log, train, dimensions=dimensions))
    events = np.flatnonzero(train)
    weight = torch.from_numpy(np.bincount(log.item_codes[events], minlength=log.catalogue.size)).float()
    fitted = ridge(vectors, factors, weight, strength=STRENGTH).t()
    users, ends = np.unique(log.user_codes[events][::-1], return_index=True)
    some = np.linspace(0, len(users) - 1, min(len(users), SAMPLE[0])).astype(np.int64)
    items = np.linspace(0, len(vectors) - 1, min(len(vectors), SAMPLE[1])).astype(np.int64)
    histories = torch.stack([_history(vectors, log, events, len(events) - int(ends[user]), fading) for user in some])
    scores = (histories @ fitted.t()) @ (vectors[torch.from_numpy(items).to(vectors.device)] @ fitted.t()).t()
    scale = float(scores.std(1, correction=0).mean())
    has_signal = scale > 1e-4 * float(scores.abs().mean())
    return (fitted * scale**-0.5 if has_signal else torch.zeros_like(fitted)).cpu()


def _history(vectors: Tensor, log: Interactions, events: np.ndarray, end: int, fading: float) -> Tensor:
    """(D,): the fading sum of the vectors of a user's events, of which the last is the one before `end` among the events."""
    last = events[max(0, end - 100) : end]
    own = last[log.user_codes[last] == log.user_codes[last[-1]]]
    ages = torch.arange(len(own) - 1, -1, -1, device=vectors.device)
    return (fading**ages) @ vectors[torch.from_numpy(log.item_codes[own].astype(np.int64)).to(vectors.device)]


@torch.no_grad()
def _ranks_by_weight(
    assembly: Assembly, heads: dict[str, CatalogueHead], processes: Processes
) -> dict[str, list[list[np.ndarray]]]:
    """For each head and each of `WEIGHTS` the ranks of the validation targets, in parts."""
    model, log = assembly.model, assembly.log
    found: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in WEIGHTS] for name in heads}
    training = model.training
    model.eval()
    tables = model.catalogue_tables()
    rankers = {name: Ranker(log, assembly.split, seen=model.tasks[name].seen) for name in heads}
    recipe = assembly.recipe
    most, tokens = recipe.data.max_events, 4 * recipe.train.batch_tokens
    stride = max(1, round(np.count_nonzero(assembly.split.part == VALID) * log.catalogue.size / MOST_SCORES))
    number = 0
    for batch, hidden in states(
        model, assembly.builder, assembly.split, VALID, max_events=most, batch_tokens=tokens, processes=processes
    ):
        for name, head in heads.items():
            assert head.blend is not None
            for piece in pieces(batch.reads[name], log.catalogue.size) if name in batch.reads else ():
                number += 1
                if (number - 1) % stride:
                    continue
                events = piece.events.numpy()
                for index, weight in enumerate(WEIGHTS):
                    head.blend.fill_(weight)
                    scores = model.output(name, hidden, batch, reads=piece, tables=tables[name]).float().cpu().numpy()
                    found[name][index].append(rankers[name].ranks(events, log.item_codes[events], scores))
    model.train(training)
    gathered = processes.all_gather(found)
    return {name: [[part for own in gathered for part in own[name][index]] for index in range(len(WEIGHTS))] for name in heads}
