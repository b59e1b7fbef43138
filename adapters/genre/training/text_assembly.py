"""From a recipe about labelled texts to something that can train: split, layout, heads, low-rank layers.

Owns: the wiring of such a run, on an encoder or on a causal base. Ignores: the loop, files, the registry.
"""

import numpy as np
import torch

from genre.data.dataset import Dataset
from genre.data.interactions import need_log
from genre.data.sequences.text_rows import TextLayout, TextRows
from genre.data.texts.dataset import Texts
from genre.evaluation.labels import check_labels, known_labels
from genre.modules.base.base import Base
from genre.modules.heads.heads import Head, make_head
from genre.modules.heads.spec import HeadSpec
from genre.modules.heads.tfidf import TfidfNgrams
from genre.modules.recommender import Recommender
from genre.recipe import Recipe
from genre.tasks import Task
from genre.training.assembly import Assembly, SharedEncoder, assemble, let_train, start_of, training_split


def assemble_any(recipe: Recipe, data: Dataset, base: Base, shared: SharedEncoder | None = None) -> Assembly:
    """Wire a run over the kind of data that it is given; see `assemble` and `assemble_texts`."""
    if isinstance(data, Texts):
        return assemble_texts(recipe, data, base)
    return assemble(recipe, need_log(data), base, shared)


def assemble_texts(recipe: Recipe, texts: Texts, base: Base) -> Assembly:
    """Wire a run. The base carries the run's low-rank layers until `model.release()`.

    Args:
        recipe: The recipe; its tasks are of kind `text`.
        texts: The labelled texts.
        base: The base, bare.

    Raises:
        RecipeError, DataError: The recipe, the texts and the base do not go together.
    """
    torch.manual_seed(recipe.train.seed)
    recipe = recipe.model_copy(update={"tasks": tuple(task.with_classes(texts.labels) for task in recipe.tasks)})
    chosen, usable = training_split(recipe, texts)
    sequence = recipe.sequence
    layout = TextLayout.make(
        base, text=sequence.text, instruction=sequence.instruction, max_tokens=sequence.max_tokens, pool=sequence.pool
    )
    builder = TextRows(texts, layout)
    builder.check_columns()
    heads = _heads(recipe, base, builder, usable)
    checkpoint = recipe.train.checkpoint_activations
    model = Recommender(base, recipe.tasks, heads, None, name_events=texts.name_rows, checkpoint_activations=checkpoint)
    let_train(model, recipe)
    return Assembly(recipe, texts, base, chosen, usable, builder, model, None, {})


def _heads(recipe: Recipe, base: Base, builder: TextRows, usable: np.ndarray) -> dict[str, Head]:
    heads = {}
    for task in recipe.tasks:
        labels = builder.data.labels_of(task)
        check_labels(task, labels, builder.data, usable)
        known = labels[usable & known_labels(labels)]
        most = recipe.sequence.terms
        ngrams = _fit_ngrams(task, labels, builder, usable, most) if most else None
        count = None if ngrams is None else len(ngrams.keys)
        spec = HeadSpec.of(task, base.hidden_size, classes=len(task.classes or ()), ngrams=count)
        heads[task.name] = make_head(spec, base, dropout=recipe.train.dropout, ngrams=ngrams, **start_of(task, known))
    return heads


def _fit_ngrams(task: Task, labels: np.ndarray, builder: TextRows, usable: np.ndarray, most: int) -> TfidfNgrams:
    """A linear model of the labels on the n-grams of the texts that train."""
    trains = np.where(usable, labels, np.nan if labels.dtype.kind == "f" else -1)
    rows = [row.tokens for row in builder.all_rows]
    groups = builder.data.group_codes
    return TfidfNgrams.fit(rows, trains, groups, loss=task.loss, classes=len(task.classes or ()), most=most)
