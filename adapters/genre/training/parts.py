"""New parts of a run: a behaviour encoder over its catalogue, and heads that start at the statistics of the training labels.

Owns: making them. Ignores: how they are wired and trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from genre.data.catalogue import Catalogue
from genre.data.interactions import Interactions
from genre.data.sequences.layout import FeedbackVocabulary
from genre.data.sequences.rows import RowBuilder
from genre.data.sequences.text_rows import TextRows
from genre.errors import RecipeError
from genre.evaluation.labels import check_labels, check_spread, known_labels, smoothing
from genre.modules.base.base import Base
from genre.modules.codes.fitting import fit_codes
from genre.modules.collaborative import collaborative_vectors, factor_vectors
from genre.modules.encoder import COMPUTED, BehaviourEncoder, EncoderSpec
from genre.modules.heads.heads import BinaryHead, CatalogueHead, FeedbackHead, Head, ScalarHead, make_head
from genre.modules.heads.spec import HeadSpec
from genre.modules.heads.tfidf import TfidfNgrams
from genre.modules.recommender import Recommender
from genre.privacy import public_start
from genre.recipe import Recipe
from genre.tasks import Task

TEXT_MAP = (10.0, 6.0, 4.0)
"""Logits per unit of cosine for each memory of a head that starts at neighbours by text; chosen on a public log."""
VALUE = 0.5
"""Share of a feedback value's own label that a head starts to take from it."""


@dataclass(frozen=True)
class SharedEncoder:
    """A behaviour encoder with what is needed to use it again.

    Attributes:
        encoder: The module, frozen unless it is being fitted.
        vocabulary: The feedback values of its codes; None if it was fitted without feedback.
        digest: Of its published version; None while it is being fitted.
        catalogue: The items that its version carries; None while it is being fitted.
    """

    encoder: BehaviourEncoder
    vocabulary: FeedbackVocabulary | None
    digest: str | None
    catalogue: Catalogue | None = None

    @property
    def feedback_column(self) -> str | None:
        """The column of the feedback values; None if it was fitted without feedback."""
        return None if self.vocabulary is None else self.vocabulary.column


def make_encoder(
    recipe: Recipe, log: Interactions, base: Base, train_mask: np.ndarray, vocabulary: FeedbackVocabulary | None
) -> SharedEncoder:
    """Make a new encoder over the log's catalogue; what it computes of the items comes from the training events."""
    config, seed = recipe.encoder, recipe.train.seed
    computed: dict[str, np.ndarray] = {}
    if config.collaborative:
        numeric = _numeric_feedback(vocabulary, log, train_mask)
        made = collaborative_vectors(log, train_mask, dimensions=config.collaborative, feedback=numeric, seed=seed)
        computed["collaborative"] = made
    if config.factors:
        computed["factors"] = factor_vectors(log, train_mask, dimensions=config.factors, seed=seed)
    text = recipe.sequence.text if config.text else ()
    dense = tuple((name, log.catalogue.dense(name).shape[1]) for name in config.dense)
    sizes = {name: computed[name].shape[1] if name in computed else 0 for name in COMPUTED}
    spec = EncoderSpec(
        width=base.hidden_size,
        text=text,
        learned=config.learned,
        dense=dense,
        feedback=vocabulary.size if vocabulary else 0,
        dropout=config.dropout,
        whiten=config.whiten and bool(text),
        control_tokens=recipe.sequence.control_tokens,
        collaborative=sizes["collaborative"],
        factors=sizes["factors"],
    )
    if not spec.sources:
        expected = "encoder.text, learned, collaborative, factors or dense columns"
        raise RecipeError("the encoder projects nothing", expected=expected)
    warm = warm_items(recipe, log, train_mask)
    if (spec.learned or computed) and not warm.any():
        most = int(np.bincount(log.item_codes[train_mask]).max())
        got, expected = str(recipe.encoder.min_events), f"at most {most}, the training events of the most frequent item"
        todo = "lower it, or set encoder.learned, collaborative and factors to 0"
        raise RecipeError("encoder.min_events: no item has so many training events", got=got, expected=expected, todo=todo)
    ids = [item for item, kept in zip(log.catalogue.item_ids, warm.tolist(), strict=True) if kept]
    tables = {name: torch.from_numpy(values[warm]) for name, values in computed.items()}
    encoder = BehaviourEncoder(spec, ids, scale=base.embedding_rms, computed=tables)
    if recipe.train.privacy is not None:  # it stays as chance made it, so its projections had better keep angles
        for projection in encoder.project.values():
            torch.nn.init.orthogonal_(projection.weight)  # type: ignore[arg-type]
        encoder.requires_grad_(False)
    return SharedEncoder(encoder, vocabulary, None)


def add_codes(encoder: BehaviourEncoder, recipe: Recipe, catalogue: Catalogue, base: Base) -> torch.Tensor:
    """Fit the codes that a recipe asks for to a catalogue, and give them to a new encoder; their vectors train with it.

    Args:
        encoder: The encoder, which has fitted its features to the catalogue.
        recipe: The recipe, with `encoder.codes`.
        catalogue: M items.
        base: Embeds their texts.

    Returns:
        (M, levels) int64.

    Raises:
        DataError: See `fit_codes`.
    """
    config = recipe.encoder.codes
    assert config is not None
    features = encoder.code_features(catalogue, encoder.standardized(catalogue, base), encoder.rows_of(catalogue))
    if config.features:
        features = {name: value for name, value in features.items() if name.partition("_")[0] in config.features}
    made = fit_codes(config, features, width=encoder.spec.width, scale=base.embedding_rms, seed=recipe.train.seed)
    codes = made.to(base.device)
    encoder.hold_codes(codes, catalogue.item_ids)
    return codes.codes


def _numeric_feedback(vocabulary: FeedbackVocabulary | None, log: Interactions, train_mask: np.ndarray) -> np.ndarray | None:
    """The values of the feedback column, (n,) float64 with NaN; None without a column, and for texts."""
    feedback = log.column(vocabulary.column) if vocabulary else None
    if feedback is None or vocabulary is None or feedback.dtype == object:
        return None
    check_spread(f"feedback column {vocabulary.column!r} has a value", feedback, log, train_mask)
    return feedback


def warm_items(recipe: Recipe, log: Interactions, train_mask: np.ndarray) -> np.ndarray:
    """(N,) bool: items with enough training events for vectors that are bound to their ids; see `encoder.min_events`."""
    return np.bincount(log.item_codes[train_mask], minlength=log.catalogue.size) >= least_events(recipe)


def least_events(recipe: Recipe) -> int:
    """The training events of an item without which it is cold."""
    return max(recipe.encoder.min_events, int(recipe.data.split.cold_items is not None))


def make_heads(
    recipe: Recipe,
    base: Base,
    builder: RowBuilder | TextRows,
    train_mask: np.ndarray,
    *,
    fuse: bool = False,
    classes: Mapping[str, int] | None = None,
    blank: bool = False,
) -> dict[str, Head]:
    """Make one head per task, started at the training labels' share, or mean and deviation, and fit its n-grams.

    Args:
        recipe: The recipe.
        base: The base.
        builder: The rows of the data.
        train_mask: (n,) bool, rows that train.
        fuse: Heads read the user's earlier events.
        classes: The number of classes of categorical tasks, where it is not that of the labels.
        blank: Start at no statistics of the labels.

    Raises:
        DataError: A task's labels cannot train it.
        RecipeError: A verbalizer has fewer words than its labels have classes.
    """
    heads = {}
    codes = 0
    if isinstance(builder, RowBuilder):  # without feedback slots every event's code is 0, and heads read an item's bias alone
        codes = builder.layout.feedback.size if builder.layout.feedback else 1
    for task in recipe.tasks:
        labels = builder.data.labels_of(task)
        check_labels(task, labels, builder.data, train_mask)
        words = len(task.words or ())
        if task.head == "verbalizer" and task.loss == "cross_entropy" and labels.max() >= words:
            what, got = f"task {task.name!r} has more classes than label words", f"classes 0 to {labels.max()}"
            raise RecipeError(
                what, got=got, expected=f"classes below {words}", todo="name one word per class in the task's words"
            )
        own = len(task.classes or ()) or (int(labels.max()) + 1 if task.head == "categorical" else 0)
        ngrams = _fit_ngrams(recipe, task, builder, train_mask) if isinstance(builder, TextRows) else None
        count = None if ngrams is None else len(ngrams.keys)
        count_of = (classes or {}).get(task.name, own)
        mapped = task.head == "catalogue" and recipe.train.privacy is not None and recipe.train.privacy.item_map
        size = {"size": base.hidden_size} if mapped else {}
        spec = HeadSpec.of(task, base.hidden_size, classes=count_of, feedback_codes=codes, fuse=fuse, ngrams=count, **size)
        if recipe.train.privacy is not None:
            start = public_start(task, recipe.train.privacy)
        else:
            start = {} if blank else label_statistics(task, labels[train_mask & known_labels(labels)])
        heads[task.name] = make_head(spec, base, dropout=recipe.train.dropout, ngrams=ngrams, **start)
    return heads


def label_statistics(task: Task, known: np.ndarray) -> dict[str, float]:
    """The start of a head from a task's training labels, (n,) without missing ones."""
    if task.loss == "log_loss":
        return {"prior": float((known.sum() + 1) / (len(known) + 2))}
    return {"mean": float(known.mean()), "deviation": float(known.std()) or 1.0} if task.loss == "mse" else {}


def _fit_ngrams(recipe: Recipe, task: Task, builder: TextRows, train_mask: np.ndarray) -> TfidfNgrams | None:
    """A linear model of the labels on the n-grams of the training texts; None where the recipe wants none."""
    most, labels = recipe.sequence.terms, builder.data.labels_of(task)
    if not most:
        return None
    known = np.where(train_mask, labels, np.nan if labels.dtype.kind == "f" else -1)
    rows = [row.tokens for row in builder.all_rows]
    classes = len(task.classes or ())
    return TfidfNgrams.fit(rows, known, builder.data.group_codes, loss=task.loss, classes=classes, most=most)


@torch.no_grad()
def start_item_heads(model: Recommender, builder: RowBuilder, train_mask: np.ndarray) -> None:
    """Start heads that read item vectors at the counts and mean labels of the training events (mutates them)."""
    assert model.soft is not None
    log, vectors = builder.data, model.soft.every()
    count = log.catalogue.size
    for name, head in model.heads.items():
        if isinstance(head, CatalogueHead):
            events = np.bincount(log.item_codes[train_mask], minlength=count) + 0.5
            share = torch.from_numpy(np.log(events / events.sum())).float()
            if model.cold is None:
                head.start_at(vectors, share)
            else:  # as much from what is known of a new item as training shows items like one
                dropout, warm = model.soft.encoder.spec.dropout, (~model.cold).to("cpu", torch.float32)
                weight = torch.cat([warm * (1 - dropout), warm * dropout])
                head.start_at(torch.cat([vectors, model.soft.every(cold=True)]), share.repeat(2), weight)
        elif isinstance(head, FeedbackHead) and head.affinity is not None:
            labels = log.labels_of(model.tasks[name])
            chosen = train_mask & known_labels(labels)
            mean, spread = labels[chosen].mean(), labels[chosen].std() or 1.0
            unit = spread**2 if isinstance(head, BinaryHead) else spread  # logits move by 1 / (p (1 - p)) per unit of p
            prior = smoothing(mean) if isinstance(head, BinaryHead) else 5.0
            item, weight = _item_bias(log.item_codes[chosen], (labels[chosen] - mean) / unit, count, prior)
            codes = len(head.affinity.worth)
            feedback, _ = _item_bias(builder.feedback[chosen], (labels[chosen] - mean) / unit, codes, prior)
            head.affinity.start_at(vectors, item, weight, feedback)


@torch.no_grad()
def start_from_values(model: Recommender, builder: RowBuilder) -> None:
    """Start what heads make of a feedback value at the label that it means, for labels read from that column (mutates them).

    Nothing of it is taken from events: `rating > 3` says what a rating of 4 means.
    """
    vocabulary = builder.layout.feedback
    for name, head in model.heads.items():
        task = model.tasks[name]
        if vocabulary is None or task.column != vocabulary.column or not isinstance(head, FeedbackHead) or head.affinity is None:
            continue
        numbers = isinstance(vocabulary.values[0], float)
        labels = task.labels({vocabulary.column: np.array(vocabulary.values, dtype=np.float64 if numbers else object)})
        unit = float(head.get_buffer("moments")[1]) if isinstance(head, ScalarHead) else 0.25
        middle = float(head.get_buffer("moments")[0]) if isinstance(head, ScalarHead) else 0.5
        head.affinity.worth[1:] = torch.from_numpy(VALUE * (labels - middle) / unit).to(head.affinity.worth)


def mapped_heads(model: Recommender) -> dict[str, CatalogueHead]:
    """The heads that an item map is for, by task."""
    heads = model.heads.items()
    return {name: head for name, head in heads if isinstance(head, CatalogueHead) and head.memory is not None}


def text_map(width: int) -> torch.Tensor:
    """(G · D, D) float32 the item map that is neighbours by text, see `CatalogueHead.take_map`."""
    return torch.cat([weight * torch.eye(width) for weight in TEXT_MAP])


def start_from_text(model: Recommender) -> None:
    """Start next-item heads at neighbours by text, and keep steps from training what an item map gives (mutates them).

    Raises:
        RecipeError: No head reads items' vectors.
    """
    if not (heads := mapped_heads(model)):
        expected = "a next_item task, sequence.item token and encoder.fuse"
        raise RecipeError("train.privacy.item_map", got="no head that reads items' vectors", expected=expected)
    for head in heads.values():
        torch.nn.init.zeros_(head.key.weight)
        head.take_map(text_map(head.spec.width))
        for part in (head.key, head.memory):
            assert part is not None
            part.requires_grad_(False)


def _item_bias(codes: np.ndarray, values: np.ndarray, count: int, prior: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The smoothed mean of the values of each code, and their number."""
    weight = np.bincount(codes, minlength=count)
    means = np.bincount(codes, values, count) / (weight + prior)
    return torch.from_numpy(means).float(), torch.from_numpy(weight).float()
