"""From a resolved recipe to something that can train: split, layout, encoder, heads, low-rank layers.

Owns: the wiring of a run's parts and their defaults. Ignores: the loop, files, the registry.
"""

from dataclasses import dataclass

import numpy as np
import torch

from genre.data.catalogue import Catalogue
from genre.data.dataset import Dataset
from genre.data.interactions import Interactions, need_log
from genre.data.sequences.layout import FeedbackVocabulary, Layout
from genre.data.sequences.rows import RowBuilder
from genre.data.sequences.text_rows import Builder
from genre.data.splits import TRAIN, Split
from genre.errors import BaseModelError, DataError, ManifestError, RecipeError
from genre.evaluation.labels import check_labels, check_spread, known_labels, smoothing
from genre.modules.base.base import Base
from genre.modules.collaborative import collaborative_vectors, factor_vectors
from genre.modules.embedding import SoftTokens
from genre.modules.encoder import COMPUTED, BehaviourEncoder, EncoderSpec
from genre.modules.heads.heads import BinaryHead, CatalogueHead, FeedbackHead, Head, make_head
from genre.modules.heads.spec import HeadSpec
from genre.modules.lora.layer import LoraLinear
from genre.modules.losses import Negatives
from genre.modules.recommender import Recommender
from genre.recipe import Recipe
from genre.tasks import Task


@dataclass(frozen=True)
class SharedEncoder:
    """A behaviour encoder with what is needed to use it again.

    Attributes:
        encoder: The module, frozen unless it is being fitted.
        vocabulary: The feedback values that its codes stand for.
        digest: Of its published version; None while it is being fitted.
        catalogue: The items that its version carries; None while it is being fitted.
    """

    encoder: BehaviourEncoder
    vocabulary: FeedbackVocabulary
    digest: str | None
    catalogue: Catalogue | None = None


@dataclass(frozen=True)
class Start:
    """What a run goes on from instead of fresh parts: those of a published version, which are trained in place.

    Attributes:
        shared: The encoder it was trained with; None for text-only adapters.
        layout: How events become rows.
        heads: One per task.
        layers: The low-rank layers by the name of the linear they hold, on no base yet.
    """

    shared: SharedEncoder | None
    layout: Layout
    heads: dict[str, Head]
    layers: dict[str, LoraLinear]


@dataclass
class Assembly:
    """The parts of one run, wired.

    Attributes:
        recipe: Resolved: the classes of tasks about texts are written out.
        usable: (n,) bool, rows that train.
        supervised: (n,) bool, the usable rows that are targets; None for all of them.
        shared: The behaviour encoder; None for texts and text-only adapters.
        skipped: Rows that do not train although the split gives them to training, by reason.
    """

    recipe: Recipe
    data: Dataset
    base: Base
    split: Split
    usable: np.ndarray
    builder: Builder
    model: Recommender
    shared: SharedEncoder | None
    skipped: dict[str, int]
    supervised: np.ndarray | None = None

    @property
    def log(self) -> Interactions:
        """The data of a run over a log."""
        return need_log(self.data)

    @property
    def fits_encoder(self) -> bool:
        """Whether this run trains the encoder itself."""
        return self.shared is not None and self.shared.digest is None


def training_split(recipe: Recipe, data: Dataset) -> tuple[Split, np.ndarray]:
    """Return the recipe's split and the train mask, (n,) bool: rows that train under it and under every held-out split.

    Raises:
        DataError: Nothing is left to train on.
    """
    chosen = data.split(recipe.data.split)
    train = chosen.part == TRAIN
    for held in recipe.data.hold_out:
        train &= data.split(held).part == TRAIN
    rows = np.flatnonzero(train)
    if not len(rows):
        todo = "use smaller shares, or a smaller n, in data.split and data.hold_out"
        got = f"{len(data)} {data.unit}"
        raise DataError(f"the splits leave no training {data.unit}", got=got, expected="at least one", todo=todo)
    if recipe.data.limit is not None and len(rows) > recipe.data.limit:
        train[:] = False
        train[data.limit(rows, recipe.data.limit, recipe.train.seed)] = True
    return chosen, train


def known_items(recipe: Recipe, log: Interactions, usable: np.ndarray) -> np.ndarray:
    """(N,) bool: items with training events enough for vectors that are bound to their ids; see `encoder.min_events`."""
    return np.bincount(log.item_codes[usable], minlength=log.catalogue.size) >= _least(recipe)


def _least(recipe: Recipe) -> int:
    return max(recipe.encoder.min_events, int(recipe.data.split.cold_items is not None))


def needs_encoder(recipe: Recipe) -> bool:
    """Return whether soft tokens or catalogue vectors are used at all."""
    used = recipe.sequence.item != "text" or any(task.head == "catalogue" for task in recipe.tasks)
    return recipe.reads == "log" and recipe.encoder.use != "none" and used


def assemble(
    recipe: Recipe,
    log: Interactions,
    base: Base,
    shared: SharedEncoder | None = None,
    *,
    soft: SoftTokens | None = None,
    bare: bool = False,
) -> Assembly:
    """Wire a run. The base carries the run's low-rank layers until `model.release()`.

    Args:
        recipe: The resolved recipe.
        log: The log.
        base: The base, bare.
        shared: A fitted encoder to use as it is; None fits a new one where one is needed.
        soft: The shared encoder's item vectors of this log, where another run has them already.
        bare: Leave the base bare: the layers are made and held, for a base that carries several runs' in turn.

    Raises:
        RecipeError, DataError, ManifestError: The recipe, the log and the encoder do not go together.
    """
    base.need_causal(f"recipe {recipe.name!r}, whose rows are a user's events with many targets,")
    torch.manual_seed(recipe.train.seed)
    chosen, usable = training_split(recipe, log)
    column = feedback_column(recipe, log)
    observed = log.column(column)
    if needs_encoder(recipe):
        shared = shared or fresh_encoder(recipe, log, base, usable, FeedbackVocabulary.fit(column, observed[usable]))
        if shared.vocabulary.column != column:
            raise ManifestError(
                "sequence.feedback", got=column, expected=f"{shared.vocabulary.column}, which the encoder was fitted on"
            )
    vocabulary = shared.vocabulary if shared else FeedbackVocabulary.fit(column, observed[usable])
    layout = Layout.make(
        base.tokenizer, item=recipe.sequence.item, text=recipe.sequence.text, feedback=vocabulary,
        instruction=recipe.sequence.instruction, max_item_tokens=recipe.sequence.max_item_tokens,
        max_events=recipe.data.max_events, soft_feedback=shared is not None,
    )  # fmt: skip
    builder = RowBuilder(log, layout)
    builder.prefix(0)  # an instruction that names an unknown user column is refused before anything is written
    if recipe.sequence.item != "text" and shared is not None and shared.encoder.spec.text:
        log.catalogue.texts(list(recipe.sequence.text))  # a misspelt column is refused even where a given encoder has its own
    if shared is not None and soft is None:
        shared.encoder.to(base.device)
        soft = SoftTokens(shared.encoder, shared.encoder.table(log.catalogue, base, fit=shared.digest is None))
    heads = make_heads(recipe, base, builder, usable, soft is not None)
    model = _make_model(recipe, log, base, heads, soft, usable)
    if soft is not None:
        _start_heads(model, builder, usable)
    let_train(model, recipe, bare=bare)
    return Assembly(recipe, log, base, chosen, usable, builder, model, shared, {})


def let_train(model: Recommender, recipe: Recipe, *, bare: bool = False) -> None:
    """Put on the base what the recipe's kind of adapter trains of it (mutates it until `model.release()`).

    Raises:
        RecipeError: A quantized base cannot be trained in full.
        BaseModelError: Some of the base's layers are offloaded.
    """
    adapter = recipe.adapter
    if model.base.offloaded:
        raise BaseModelError(
            f"recipe {recipe.name!r} cannot train on this base", got="layers that are offloaded to the CPU's memory or the disk",
            expected="every layer on a device", todo="load it in int8 or nf4, with fewer layers (base.depth), or on more devices",
        )  # fmt: skip
    if adapter.kind in ("lora", "rslora"):
        model.attach(
            targets=adapter.targets, layers=adapter.layers, rank=adapter.rank, alpha=adapter.alpha,
            dropout=adapter.dropout, rslora=adapter.kind == "rslora", bare=bare,
        )  # fmt: skip
    elif adapter.kind == "full":
        quantization = model.base.quantization
        if quantization != "none":
            raise RecipeError("adapter.kind full", got=f"a base in {quantization}", expected="base.quantization none")
        model.unfreeze()


def assemble_from(start: Start, recipe: Recipe, log: Interactions, base: Base, supervised: np.ndarray) -> Assembly:
    """Wire a run that goes on from trained parts; nothing is made anew, and the encoder stays as it is.

    Args:
        start: The parts; heads and layers are trained in place.
        recipe: The resolved recipe, of the same tasks, sequence and adapter as the parts.
        log: The log, whose catalogue may have grown.
        base: The base, bare; it carries the layers until `model.release()`.
        supervised: (n,) bool, events that are targets; those that the split does not give to training are left out.

    Raises:
        DataError: The log lacks a column, or nothing is left to train on.
    """
    torch.manual_seed(recipe.train.seed)
    chosen, usable = training_split(recipe, log)
    builder = RowBuilder(log, start.layout)
    builder.prefix(0)
    soft = None
    if start.shared is not None:
        soft = SoftTokens(start.shared.encoder, start.shared.encoder.table(log.catalogue, base))
    for head in start.heads.values():
        head.requires_grad_(True).dropout.p = recipe.train.dropout
    model = _make_model(recipe, log, base, start.heads, soft, usable)
    model.put(start.layers)
    return Assembly(recipe, log, base, chosen, usable, builder, model, start.shared, {}, supervised & usable)


def fresh_encoder(
    recipe: Recipe, log: Interactions, base: Base, usable: np.ndarray, vocabulary: FeedbackVocabulary
) -> SharedEncoder:
    """A new encoder over the log's catalogue, what it computes of the items taken from the usable events."""
    config, seed = recipe.encoder, recipe.train.seed
    computed: dict[str, np.ndarray] = {}
    if config.collaborative:
        feedback = log.column(vocabulary.column)
        numeric = feedback if feedback.dtype != object else None
        if numeric is not None:
            check_spread(f"feedback column {vocabulary.column!r} has a value", numeric, log, usable)
        made = collaborative_vectors(log, usable, dimensions=config.collaborative, feedback=numeric, seed=seed)
        computed["collaborative"] = made
    if config.factors:
        computed["factors"] = factor_vectors(log, usable, dimensions=config.factors, seed=seed)
    spec = EncoderSpec(
        width=base.hidden_size, text=recipe.sequence.text if config.text else (), learned=config.learned,
        dense=tuple((name, log.catalogue.dense(name).shape[1]) for name in config.dense),
        feedback=vocabulary.size, dropout=config.dropout,
        **{name: computed[name].shape[1] if name in computed else 0 for name in COMPUTED},
    )  # fmt: skip
    if not spec.sources:
        expected = "encoder.text, learned, collaborative, factors or dense columns"
        raise RecipeError("the encoder projects nothing", expected=expected)
    bound = known_items(recipe, log, usable)
    ids = [item for item, kept in zip(log.catalogue.item_ids, bound.tolist(), strict=True) if kept]
    tables = {name: torch.from_numpy(values[bound]) for name, values in computed.items()}
    encoder = BehaviourEncoder(spec, ids, scale=base.embedding_rms, computed=tables)
    return SharedEncoder(encoder, vocabulary, None)


def make_heads(recipe: Recipe, base: Base, builder: RowBuilder, usable: np.ndarray, soft: bool) -> dict[str, Head]:
    """One head per task, started at the training labels' share, mean and deviation.

    Raises:
        DataError: A task's labels cannot train it.
        RecipeError: A verbalizer has fewer words than its labels have classes.
    """
    heads = {}
    for task in recipe.tasks:
        labels = builder.data.labels_of(task)
        check_labels(task, labels, builder.data, usable)
        known = labels[usable & known_labels(labels)]
        if task.head == "verbalizer" and task.loss == "cross_entropy" and labels.max() >= len(task.words or ()):
            raise RecipeError(
                f"task {task.name!r} has more classes than label words", got=f"classes 0 to {labels.max()}",
                expected=f"classes below {len(task.words or ())}", todo="name one word per class in the task's words",
            )  # fmt: skip
        classes = int(labels.max()) + 1 if task.head == "categorical" else 0
        codes, fuse = builder.layout.feedback.size, soft and recipe.encoder.fuse
        spec = HeadSpec.of(task, base.hidden_size, classes=classes, feedback_codes=codes, fuse=fuse)
        heads[task.name] = make_head(spec, base, dropout=recipe.train.dropout, ngrams=None, **start_of(task, known))
    return heads


def start_of(task: Task, known: np.ndarray) -> dict[str, float]:
    """What a task's training labels, (n,) without missing ones, say of where its head starts."""
    if task.loss == "log_loss":
        return {"prior": float((known.sum() + 1) / (len(known) + 2))}
    return {"mean": float(known.mean()), "deviation": float(known.std()) or 1.0} if task.loss == "mse" else {}


def _make_model(
    recipe: Recipe, log: Interactions, base: Base, heads: dict[str, Head], soft: SoftTokens | None, usable: np.ndarray
) -> Recommender:
    """A model of the log, with a sampled softmax where the catalogue is large."""
    counts = np.bincount(log.item_codes[usable], minlength=log.catalogue.size)
    cold = counts == 0 if _least(recipe) else None
    large = log.catalogue.size > recipe.train.sampled.above
    ranked = [task.name for task in recipe.tasks if task.head == "catalogue" and large]
    return Recommender(
        base,
        recipe.tasks,
        heads,
        soft,
        dropout=recipe.train.dropout,
        negatives={name: Negatives(counts, recipe.train.sampled.negatives, cold) for name in ranked},
        cold=torch.from_numpy(cold).to(base.device) if cold is not None and cold.any() else None,
        name_events=log.name_rows,
        checkpoint_activations=recipe.train.checkpoint_activations,
    )


@torch.no_grad()
def _start_heads(model: Recommender, builder: RowBuilder, usable: np.ndarray) -> None:
    """Start heads that see item vectors at what the training events' counts and means say."""
    assert model.soft is not None
    log, vectors = builder.data, model.soft.every()
    count = log.catalogue.size
    for name, head in model.heads.items():
        if isinstance(head, CatalogueHead):
            events = np.bincount(log.item_codes[usable], minlength=count) + 0.5
            share = torch.from_numpy(np.log(events / events.sum())).float()
            if model.cold is None:
                head.start_at(vectors, share)
            else:  # as much from what is known of a new item as training shows items like one
                hidden, there = model.soft.encoder.spec.dropout, (~model.cold).to("cpu", torch.float32)
                weight = torch.cat([there * (1 - hidden), there * hidden])
                head.start_at(torch.cat([vectors, model.soft.every(known=False)]), share.repeat(2), weight)
        elif isinstance(head, FeedbackHead) and head.affinity is not None:
            labels = log.labels_of(model.tasks[name])
            chosen = usable & known_labels(labels)
            mean, spread = labels[chosen].mean(), labels[chosen].std() or 1.0
            unit = spread**2 if isinstance(head, BinaryHead) else spread  # logits move by 1 / (p (1 - p)) per unit of p
            prior = smoothing(mean) if isinstance(head, BinaryHead) else 5.0
            item, weight = _worth(log.item_codes[chosen], (labels[chosen] - mean) / unit, count, prior)
            feedback, _ = _worth(builder.feedback[chosen], (labels[chosen] - mean) / unit, builder.layout.feedback.size, prior)
            head.affinity.start_at(vectors, item, weight, feedback)


def _worth(codes: np.ndarray, values: np.ndarray, count: int, prior: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Smoothed mean of the values of each code, and how many there are."""
    weight = np.bincount(codes, minlength=count)
    means = np.bincount(codes, values, count) / (weight + prior)
    return torch.from_numpy(means).float(), torch.from_numpy(weight).float()


def feedback_column(recipe: Recipe, log: Interactions) -> str:
    """The column that fills the feedback slots: the recipe's, or rating, click or behaviour, the first that is there.

    Raises:
        DataError: There is no such column.
    """
    column = recipe.sequence.feedback or next(
        (name for name in ("rating", "click", "behaviour") if name in log.event_columns), None
    )
    if column is None:
        raise DataError(
            "the log has no feedback column", expected="rating, click or behaviour", todo="import it with --map rating=THEIRS"
        )
    if column not in log.event_columns:
        raise DataError(
            f"sequence.feedback {column!r} is no column of the log", got=", ".join(log.event_columns) or "none",
            todo="set sequence.feedback to one of them",
        )  # fmt: skip
    return column
