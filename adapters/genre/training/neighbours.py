"""The item neighbours of next-item heads, fitted after training: full-rank co-occurrence and whitened text.

Owns: B from EASE, the choice of its fading and of both weights. Ignores: the loop, the terms' arithmetic.

B knows the training events, so in training the term would leave the base little to learn; it comes after. EASE's ridge and each
term's fading are chosen for the term alone, then the weights of both are chosen among `BLENDS`, none among them, by the task's
first ranking metric.
"""

import itertools
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch

from genre.data.splits import TRAIN, UNUSED, VALID
from genre.distributed import Processes
from genre.evaluation.ease import ease
from genre.evaluation.item_models import text_neighbours
from genre.evaluation.ranking import Ranker, Seen
from genre.modules.heads.heads import CatalogueHead
from genre.modules.heads.neighbours import ItemIndex, ItemNeighbours, histories_of
from genre.training.assembly import Assembly
from genre.training.prediction import pieces, states
from genre.training.private.ngrams import ngram_neighbours
from genre.training.validation import ranking_metric

BLENDS = (0.0, 0.05, 0.15, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Logits per standard deviation of a term over the catalogue: from a touch to where the trained scores only break ties."""
PUBLIC = 0.7, 2.0
"""The fading and weight of neighbours by text in a private run, chosen on a public log (docs/decisions/privacy-budget.md)."""
NGRAMS = 0.7, 2.0
"""Those of neighbours by n-grams, likewise."""
BESIDE_MAP = 0.12
"""The weight of neighbours by n-grams beside an item map, whose scores spread less, likewise."""
STAND_INS = 4
"""Nearest items by text that stand in for an item that the encoder does not know."""
MOST_SCORES = 2**26
"""Of validation targets times items; where there are more, the weights are chosen on a sample of the targets."""


def add_neighbours(assembly: Assembly, processes: Processes) -> Iterator[str]:
    """Give every next-item head of a trained model its item neighbours (mutates the model); yields a report of each."""
    model, count, privacy = assembly.model, assembly.recipe.encoder.neighbours, assembly.recipe.train.privacy
    heads = {name: head for name, head in model.heads.items() if isinstance(head, CatalogueHead)}
    if model.soft is None or not heads or not (count or (privacy is not None and privacy.ngrams)):
        return
    if privacy is not None:
        texts = assembly.log.catalogue.texts(list(assembly.recipe.sequence.text)) if privacy.ngrams else []
        made = public_neighbours(model.soft.index, privacy.ngrams, texts)
        if privacy.item_map:  # which starts at neighbours by text
            made.blend.copy_(torch.tensor([BESIDE_MAP, 0.0]))
        weights = "n-grams {:.3g}, text {:.3g}".format(*made.blend.tolist())
        for name, head in heads.items():
            model.heads[name] = head.with_neighbours(deepcopy(made).to(assembly.base.device))
            yield f"{name}: item neighbours by text alone ({weights}), with weights that no event chose"
        return
    for seen in dict.fromkeys(model.tasks[name].seen for name in heads):
        own = {name: head for name, head in heads.items() if model.tasks[name].seen == seen}
        made = fit_neighbours(assembly, model.soft.index, count, seen)
        for value in made.buffers():
            value.copy_(processes.broadcast(value))
        yield from _add(assembly, made.to(assembly.base.device), own, processes)


def _add(assembly: Assembly, made: ItemNeighbours, heads: dict[str, CatalogueHead], processes: Processes) -> Iterator[str]:
    """Give some heads the neighbours, each with its own weights, or none where validation likes none; yields reports."""
    model = assembly.model
    for name, (blend, values) in _weights(assembly, made, heads, processes).items():
        if not any(blend):
            model.heads[name] = heads[name].with_neighbours(None)
            continue
        rows, count = made.items.shape
        own = ItemNeighbours(rows, count, made.stand_ins).to(made.items.device)
        own.load_state_dict(made.state_dict() | {"blend": made.blend.new_tensor(blend)})
        model.heads[name] = heads[name].with_neighbours(own)
        chosen, weights = ranking_metric(model.tasks[name]), f"co-occurrence {blend[0]:.3g}, text {blend[1]:.3g}"
        yield f"{name}: item neighbours ({weights}): validation {name}.{chosen.name} {values[0]:.4f} to {values[1]:.4f}"


def public_neighbours(index: ItemIndex, ngrams: int = 0, texts: Sequence[str] = ()) -> ItemNeighbours:
    """Neighbours by text alone, with constants of this module; nothing of them is of any event.

    Args:
        index: N items.
        ngrams: Neighbours of each item by its text's n-grams; 0 for whitened text alone.
        texts: N texts, where n-grams are asked for.
    """
    size = len(index.codes)
    made = ItemNeighbours(size, max(min(ngrams, size - 1), 1), STAND_INS if ngrams else 0)
    made.fade[1], made.blend[1] = PUBLIC
    if ngrams:
        made.fade[0], made.blend[0] = NGRAMS
        known = [*texts, ""]  # a row of an item that the catalogue lacks has the code N
        items, values = ngram_neighbours([known[code] for code in index.codes.tolist()], made.items.shape[1])
        made.items.copy_(items)
        made.values.copy_(values)
    return made


def fit_neighbours(assembly: Assembly, index: ItemIndex, count: int, seen: Seen = "masked") -> ItemNeighbours:
    """Fit the `count` strongest neighbours of every item that the encoder knows, and how both terms fade; weights stay zero.

    EASE's ridge and both fadings are those that rank validation targets best, seen items masked or kept.
    """
    log, split = assembly.log, assembly.split
    part = np.where((split.part == TRAIN) & ~assembly.train_mask, UNUSED, split.part)
    split = replace(split, part=part)
    model = ease(log, split, seen=seen)
    rows = index.rows.cpu().numpy()[model.items]  # the encoder's row of each item that EASE knows
    known = np.flatnonzero(rows >= 0)
    rows = rows[known]
    made = ItemNeighbours(len(index.codes), min(count, max(len(known) - 1, 1)), 0 if index.text is None else STAND_INS)
    for item, row in zip(known.tolist(), rows.tolist(), strict=True):
        own = model.weights[item, known]
        best = np.argsort(-np.abs(own), kind="stable")[: made.items.shape[1]]
        made.items[row, : len(best)] = torch.from_numpy(rows[best].astype(np.int32))
        made.values[row, : len(best)] = torch.from_numpy(own[best].astype(np.float16))
    made.fade[0] = model.fade
    if index.text is not None:
        made.fade[1] = text_neighbours(log, split, index.text[: log.catalogue.size].cpu().numpy(), seen=seen).fade
    return made


@torch.no_grad()
def _weights(
    assembly: Assembly, made: ItemNeighbours, heads: dict[str, CatalogueHead], processes: Processes
) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    """For each head the weights that validation likes best, and the metric without and with them."""
    model, log, recipe = assembly.model, assembly.log, assembly.recipe
    assert model.soft is not None
    training, index = model.training, model.soft.index
    model.eval()
    tables = model.catalogue_tables()
    text = BLENDS if index.text is not None else BLENDS[:1]
    grid = list(itertools.product(BLENDS, text))
    found: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in grid] for name in heads}
    rankers = {name: Ranker(log, assembly.split, seen=model.tasks[name].seen) for name in heads}
    stride = max(1, round(np.count_nonzero(assembly.split.part == VALID) * log.catalogue.size / MOST_SCORES))
    most, tokens = recipe.data.max_events, 4 * recipe.train.batch_tokens
    number = 0
    for batch, hidden in states(
        model, assembly.builder, assembly.split, VALID, max_events=most, batch_tokens=tokens, processes=processes
    ):
        for name in heads.keys() & batch.reads.keys():
            for piece in pieces(batch.reads[name], log.catalogue.size):
                number += 1
                if (number - 1) % stride:
                    continue
                plain = model.output(name, hidden, batch, reads=piece, tables=tables[name]).float()
                items = batch.history_items
                ones = torch.ones_like(items, dtype=torch.float32)
                history = histories_of(items, ones, piece.rows, piece.history_lengths)
                together, by_text = made.together(index, *history), made.text(index, *history)
                events = piece.events.numpy()
                for cell, (first, second) in enumerate(grid):
                    scores = (plain + first * together + second * by_text).cpu().numpy()
                    found[name][cell].append(rankers[name].ranks(events, log.item_codes[events], scores))
    model.train(training)
    gathered = processes.all_gather(found)
    best = {}
    for name in heads:
        decides = ranking_metric(model.tasks[name])
        ranks = [[part for own in gathered for part in own[name][cell]] for cell in range(len(grid))]
        values = [decides.function(np.concatenate(some)) if some else np.nan for some in ranks]
        cell = 0
        for other, value in enumerate(values):
            cell = other if decides.better(value, values[cell]) else cell
        best[name] = grid[cell], (float(values[0]), float(values[cell]))
    return best
