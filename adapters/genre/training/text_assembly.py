"""From a recipe about labelled texts to something that can train: split, layout, heads, low-rank layers.

Owns: the wiring of such a run, on an encoder or on a causal base. Ignores: the loop, files, the registry.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from genre.data.sequences.text_rows import TextLayout, TextRows
from genre.data.splits import Split
from genre.data.texts.dataset import Texts
from genre.errors import DataError
from genre.evaluation.labels import check_labels, known_labels, name_events
from genre.modules.base.base import Base
from genre.modules.heads.heads import Head, make_head
from genre.modules.heads.tfidf import Terms
from genre.modules.recommender import Recommender
from genre.recipe import Recipe
from genre.tasks import Task
from genre.training.assembly import Assembly, SharedEncoder, let_train, start_of


@dataclass
class TextAssembly:
    """The parts of one run over labelled texts, wired; the counterpart of `Assembly`.

    Attributes:
        recipe: Resolved: the classes of its tasks are written out.
        usable: (n,) bool, texts that train.
        supervised: None: all of them are targets.
        shared: None: texts need no behaviour encoder.
        skipped: Texts that do not train although the split gives them to training, by reason.
    """

    recipe: Recipe
    texts: Texts
    base: Base
    split: Split
    usable: np.ndarray
    builder: TextRows
    model: Recommender
    skipped: dict[str, int]
    supervised: np.ndarray | None = None
    shared: SharedEncoder | None = None
    fits_encoder: bool = False


AnyAssembly: TypeAlias = Assembly | TextAssembly


def usable_texts(texts: Texts, recipe: Recipe) -> tuple[Split, np.ndarray]:
    """The recipe's split, and the texts that train under it and under every held-out split; a seeded draw of `data.limit`.

    Raises:
        DataError: Nothing is left to train on.
    """
    chosen = texts.split(recipe.data.split)
    usable = chosen.part == 0
    for held in recipe.data.hold_out:
        usable &= texts.split(held).part == 0
    places = np.flatnonzero(usable)
    if recipe.data.limit is not None and len(places) > recipe.data.limit:
        usable[np.random.default_rng(recipe.train.seed).permutation(places)[recipe.data.limit :]] = False
    if not len(places):
        raise DataError(
            "the splits leave no training texts", got=f"{len(texts)} texts", expected="at least one",
            todo="use smaller shares in data.split and data.hold_out",
        )  # fmt: skip
    return chosen, usable


def assemble_texts(recipe: Recipe, texts: Texts, base: Base) -> TextAssembly:
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
    chosen, usable = usable_texts(texts, recipe)
    sequence = recipe.sequence
    layout = TextLayout.make(
        base, text=sequence.text, instruction=sequence.instruction, max_tokens=sequence.max_tokens, pool=sequence.pool
    )
    builder = TextRows(texts, layout)
    builder.check_columns()
    model = Recommender(base, recipe.tasks, _heads(recipe, base, builder, usable), None)
    model.name_events = partial(name_events, texts)
    let_train(model, recipe)
    return TextAssembly(recipe, texts, base, chosen, usable, builder, model, {})


def _heads(recipe: Recipe, base: Base, builder: TextRows, usable: np.ndarray) -> dict[str, Head]:
    heads = {}
    for task in recipe.tasks:
        _, labels = builder.supervise([task])[task.name]
        check_labels(task, labels, builder.texts, usable)
        known = labels[usable & known_labels(labels)]
        extra: dict[str, Any] = {"classes": len(task.classes or ()), "dropout": recipe.train.dropout, **start_of(task, known)}
        if recipe.sequence.terms:
            extra["terms"] = _terms(task, labels, builder, usable, recipe.sequence.terms)
        heads[task.name] = make_head(task.head, base, loss=task.loss, **extra)
    return heads


def _terms(task: Task, labels: np.ndarray, builder: TextRows, usable: np.ndarray, most: int) -> Terms:
    """What the terms of the texts that train say of their labels."""
    trains = np.where(usable, labels, np.nan if labels.dtype.kind == "f" else -1)
    rows = [row.tokens for row in builder.all_rows]
    groups = builder.texts.group_codes
    return Terms.fit(rows, trains, groups, loss=task.loss, classes=len(task.classes or ()), most=most)
