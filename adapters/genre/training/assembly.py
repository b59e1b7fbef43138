"""From a resolved recipe to a run that can train: split, layout, encoder, heads, low-rank layers.

Owns: the wiring of a run's parts and their defaults. Ignores: the loop, files, the registry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from genre.data.code_trie import CodeTrie
from genre.data.dataset import Dataset
from genre.data.interactions import Interactions, need_log
from genre.data.schema import FEEDBACK
from genre.data.sequences.code_branches import CodeBranches
from genre.data.sequences.layout import FeedbackVocabulary, Layout
from genre.data.sequences.rows import RowBuilder
from genre.data.sequences.text_rows import Builder, TextLayout, TextRows
from genre.data.splits import TRAIN, Split
from genre.data.texts.dataset import Texts
from genre.errors import BaseModelError, DataError, ManifestError, RecipeError
from genre.modules.base.base import Base
from genre.modules.embedding import SoftTokens
from genre.modules.heads.heads import Head
from genre.modules.lora.layer import LoraLinear
from genre.modules.losses import Negatives
from genre.modules.recommender import Recommender
from genre.privacy import PrivacyConfig, public_only
from genre.recipe import NO_FEEDBACK, Recipe
from genre.training.code_start import start_codes
from genre.training.logged import logged_rewards
from genre.training.parts import (
    SharedEncoder,
    add_codes,
    least_events,
    make_encoder,
    make_heads,
    start_from_text,
    start_from_values,
    start_item_heads,
)
from genre.training.preferences import relative_losses


@dataclass(frozen=True)
class Start:
    """The parts of a published version from which a run goes on; they are trained in place.

    Attributes:
        shared: The encoder it was trained with; None for text-only adapters.
        layout: How events become rows.
        heads: One per task.
        layers: The low-rank layers by the name of the linear they hold, on no base yet.
        parents: The version's digest, where the run's own version is to name it.
    """

    shared: SharedEncoder | None
    layout: Layout
    heads: dict[str, Head]
    layers: dict[str, LoraLinear]
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agreed:
    """What runs on different logs have in common, so that their parts have the same shapes.

    Attributes:
        vocabulary: The feedback values; None takes those of the log's training events.
        classes: The number of classes of each categorical task; a task that is left out takes its labels'.
        blank: Heads start at nothing that was counted in the log.
    """

    vocabulary: FeedbackVocabulary | None = None
    classes: Mapping[str, int] = field(default_factory=dict)
    blank: bool = False


@dataclass
class Assembly:
    """The parts of one run, wired.

    Attributes:
        recipe: Resolved: the classes of tasks about texts are written out.
        train_mask: (n,) bool, rows that train.
        target_mask: (n,) bool, the training rows that are targets; None for all of them.
        shared: The behaviour encoder; None for texts and text-only adapters.
        skipped: Rows that do not train although the split gives them to training, by reason.
        parents: Digests of the version that the run starts from.
    """

    recipe: Recipe
    data: Dataset
    base: Base
    split: Split
    train_mask: np.ndarray
    builder: Builder
    model: Recommender
    shared: SharedEncoder | None
    skipped: dict[str, int]
    target_mask: np.ndarray | None = None
    parents: tuple[str, ...] = ()

    @property
    def log(self) -> Interactions:
        """The data of a run over a log."""
        return need_log(self.data)

    @property
    def fits_encoder(self) -> bool:
        """True if this run trains the encoder itself."""
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


def needs_encoder(recipe: Recipe) -> bool:
    """Return whether soft tokens or catalogue vectors are used at all."""
    used = recipe.sequence.item != "text" or any(task.kind == "next_item" for task in recipe.tasks)
    return recipe.reads == "log" and recipe.encoder.use != "none" and used


def assemble(
    recipe: Recipe,
    log: Interactions,
    base: Base,
    shared: SharedEncoder | None = None,
    *,
    soft: SoftTokens | None = None,
    bare: bool = False,
    agreed: Agreed | None = None,
) -> Assembly:
    """Wire a run. The base carries the run's low-rank layers until `model.release()`.

    Args:
        recipe: The resolved recipe.
        log: The log.
        base: The base, bare.
        shared: A fitted encoder to use as it is; None fits a new one where one is needed.
        soft: The shared encoder's item vectors of this log, where another run has them already.
        bare: Leave the base bare: the layers are made and held, for a base that carries several runs' in turn.
        agreed: What the run has in common with runs on other logs.

    Raises:
        RecipeError, DataError, ManifestError: The recipe, the log and the encoder do not go together.
    """
    base.need_causal(f"recipe {recipe.name!r}, whose rows are a user's events with many targets,")
    if recipe.train.start is not None:
        what, todo = f"recipe {recipe.name!r} starts from a version, which genre train alone does", "train it by itself"
        raise RecipeError(what, got=f"train.start {recipe.train.start}", expected="a recipe without it", todo=todo)
    privacy = recipe.train.privacy
    recipe = recipe if privacy is None else public_only(recipe)
    torch.manual_seed(recipe.train.seed)
    chosen, train_mask = training_split(recipe, log)
    agreed = agreed or Agreed()
    column = feedback_column(recipe, log)
    if privacy is not None:
        own = declared_vocabulary(column, log, privacy)
    else:
        own = agreed.vocabulary or (fit_vocabulary(column, log, train_mask) if shared is None else None)
    if needs_encoder(recipe):
        shared = shared or make_encoder(recipe, log, base, train_mask, own)
        check_feedback(column, shared.feedback_column)
    fitted = shared.vocabulary if shared else own
    vocabulary = None if column is None else fitted
    sequence = recipe.sequence
    layout = Layout.make(
        base.tokenizer,
        item=sequence.item,
        text=sequence.text,
        feedback=vocabulary,
        instruction=sequence.instruction,
        max_item_tokens=sequence.max_item_tokens,
        max_events=recipe.data.max_events,
        soft_feedback=shared is not None,
        control_tokens=sequence.control_tokens,
        window=sequence.window,
    )
    builder = RowBuilder(log, layout)
    builder.prefix(0)  # an instruction that names an unknown user column is refused before anything is written
    if recipe.sequence.item != "text" and shared is not None and shared.encoder.spec.text:
        log.catalogue.texts(list(recipe.sequence.text))  # a misspelt column is refused even where a given encoder has its own
    if shared is not None and soft is None:
        shared.encoder.to(base.device)
        soft = SoftTokens(shared.encoder, shared.encoder.table(log.catalogue, base, fit=shared.digest is None))
        if shared.digest is None and recipe.encoder.codes is not None:
            soft.table.codes = add_codes(shared.encoder, recipe, log.catalogue, base)
    fuse = soft is not None and recipe.encoder.fuse
    heads = make_heads(recipe, base, builder, train_mask, fuse=fuse, classes=agreed.classes, blank=agreed.blank)
    model = _make_model(recipe, log, base, heads, soft, train_mask)
    builder.branches = None if model.trie is None else CodeBranches(model.trie)
    if privacy is not None:
        start_from_values(model, builder)
        if privacy.item_map:
            start_from_text(model)
    elif soft is not None and not agreed.blank:
        start_item_heads(model, builder, train_mask)
        if model.trie is not None and shared is not None and shared.digest is None:
            start_codes(model, builder, train_mask, recipe.data)
    let_train(model, recipe, bare=bare)
    model.keep_reference()
    return Assembly(recipe, log, base, chosen, train_mask, builder, model, shared, {})


def assemble_from(start: Start, recipe: Recipe, log: Interactions, base: Base, target_mask: np.ndarray | None = None) -> Assembly:
    """Wire a run that goes on from trained parts; nothing is made anew, and the encoder stays as it is.

    Args:
        start: The parts; heads and layers are trained in place.
        recipe: The resolved recipe, of the same tasks, sequence and adapter as the parts.
        log: The log, whose catalogue may have grown.
        base: The base, bare; it carries the layers until `model.release()`.
        target_mask: (n,) bool, events that are targets, without those that the split does not give to training; None for all.

    Raises:
        DataError: The log lacks a column, or nothing is left to train on.
    """
    if recipe.train.privacy is not None:
        what, todo = f"recipe {recipe.name!r} is private: going on from its version would spend its budget again", "train it anew"
        raise RecipeError(what, got="train.privacy", expected="a recipe without it", todo=todo)
    torch.manual_seed(recipe.train.seed)
    chosen, train_mask = training_split(recipe, log)
    builder = RowBuilder(log, start.layout)
    builder.prefix(0)
    soft = None
    if start.shared is not None:
        soft = SoftTokens(start.shared.encoder, start.shared.encoder.table(log.catalogue, base))
    for head in start.heads.values():
        head.requires_grad_(True).dropout.p = recipe.train.dropout
    model = _make_model(recipe, log, base, start.heads, soft, train_mask)
    builder.branches = None if model.trie is None else CodeBranches(model.trie)
    model.put(start.layers)
    model.keep_reference()
    targets = None if target_mask is None else target_mask & train_mask
    return Assembly(recipe, log, base, chosen, train_mask, builder, model, start.shared, {}, targets, start.parents)


def assemble_any(recipe: Recipe, data: Dataset, base: Base, shared: SharedEncoder | None = None) -> Assembly:
    """Wire a run over the kind of data that it is given; see `assemble` and `assemble_texts`."""
    if isinstance(data, Texts):
        return assemble_texts(recipe, data, base)
    return assemble(recipe, need_log(data), base, shared)


def assemble_texts(recipe: Recipe, texts: Texts, base: Base) -> Assembly:
    """Wire a run over labelled texts, whose tasks are of kind `text`; arguments, effect and errors as of `assemble`."""
    torch.manual_seed(recipe.train.seed)
    recipe = recipe.model_copy(update={"tasks": tuple(task.with_classes(texts.labels) for task in recipe.tasks)})
    chosen, train_mask = training_split(recipe, texts)
    sequence = recipe.sequence
    layout = TextLayout.make(
        base,
        text=sequence.text,
        instruction=sequence.instruction,
        max_tokens=sequence.max_tokens,
        pool=sequence.pool,
        control_tokens=sequence.control_tokens,
    )
    builder = TextRows(texts, layout)
    builder.check_columns()
    heads = make_heads(recipe, base, builder, train_mask)
    checkpoint = recipe.train.checkpoint_activations
    model = Recommender(
        base,
        recipe.tasks,
        heads,
        None,
        name_events=texts.name_rows,
        checkpoint_activations=checkpoint,
        blind=recipe.adapter.kind == "no_base",
    )
    let_train(model, recipe)
    return Assembly(recipe, texts, base, chosen, train_mask, builder, model, None, {})


def let_train(model: Recommender, recipe: Recipe, *, bare: bool = False) -> None:
    """Attach what the recipe's kind of adapter trains of the base (mutates the base until `model.release()`).

    Raises:
        RecipeError: A quantized base cannot be trained in full.
        BaseModelError: Some of the base's layers are offloaded.
    """
    adapter, quantization = recipe.adapter, model.base.quantization
    if model.base.offloaded:
        what, got = (
            f"recipe {recipe.name!r} cannot train on this base",
            "layers that are offloaded to the CPU's memory or the disk",
        )
        todo = "load it in int8 or nf4, with fewer layers (base.depth), or on more devices"
        raise BaseModelError(what, got=got, expected="every layer on a device", todo=todo)
    if adapter.kind in ("lora", "rslora"):
        model.attach(
            targets=adapter.targets,
            layers=adapter.layers,
            rank=adapter.rank,
            alpha=adapter.alpha,
            dropout=adapter.dropout,
            rslora=adapter.kind == "rslora",
            bare=bare,
        )
    elif adapter.kind == "full":
        if quantization != "none":
            raise RecipeError("adapter.kind full", got=f"a base in {quantization}", expected="base.quantization none")
        model.unfreeze()


def _make_model(
    recipe: Recipe, log: Interactions, base: Base, heads: dict[str, Head], soft: SoftTokens | None, train_mask: np.ndarray
) -> Recommender:
    """A model of the log, with a sampled softmax where the catalogue is large."""
    counts = np.bincount(log.item_codes[train_mask], minlength=log.catalogue.size)
    if recipe.train.privacy is not None:
        counts = np.zeros_like(counts)  # negatives are then drawn evenly, since counts are private
    cold = counts == 0 if least_events(recipe) else None
    large = log.catalogue.size > recipe.train.sampled.above
    ranked = [task.name for task in recipe.tasks if task.head == "catalogue" and large]
    if drawn := [task for task in recipe.tasks if task.name in ranked and task.loss != "cross_entropy"]:
        got = f"{log.catalogue.size:,} items with train.sampled.above {recipe.train.sampled.above:,}"
        raise RecipeError(f"loss {drawn[0].loss} needs the whole catalogue", got=got, expected="train.sampled.above of as many")
    return Recommender(
        base,
        recipe.tasks,
        heads,
        soft,
        dropout=recipe.train.dropout,
        negatives={name: Negatives(counts, recipe.train.sampled.negatives, cold) for name in ranked},
        logged={task.name: logged_rewards(task, log, train_mask) for task in recipe.tasks if task.logged is not None},
        relative=relative_losses({task.name: task for task in recipe.tasks}, log, train_mask, cold),
        trie=_trie(soft, cold) if recipe.generates else None,
        cold=torch.from_numpy(cold).to(base.device) if cold is not None and cold.any() else None,
        name_events=log.name_rows,
        checkpoint_activations=recipe.train.checkpoint_activations,
        blind=recipe.adapter.kind == "no_base",
    )


def _trie(soft: SoftTokens | None, cold: np.ndarray | None) -> CodeTrie:
    """The items that training tells apart by their codes: all but cold ones, which are no negatives of anything.

    Raises:
        ManifestError: The encoder has no codes.
    """
    if soft is None or soft.codes is None:
        todo = "fit one with encoder.codes (encoder.use: fit)"
        raise ManifestError("head 'generate' needs codes of items", got="an encoder without codes", expected="codes", todo=todo)
    trie = soft.trie
    if cold is None or not cold.any():
        return trie
    warm = ~cold[trie.items]
    return CodeTrie(trie.rows[warm], trie.sizes, trie.items[warm])


def feedback_column(recipe: Recipe, log: Interactions) -> str | None:
    """The column that fills the feedback slots; None for events without such a slot.

    It is the recipe's, or rating, click or behaviour, the first that is there.

    Raises:
        DataError: The log has no such column.
        RecipeError: A feedback task would see what it must not.
    """
    column = recipe.sequence.feedback or next((name for name in FEEDBACK if name in log.event_columns), NO_FEEDBACK)
    if column == NO_FEEDBACK:
        _check_siblings(recipe, log)
        return None
    if column not in log.event_columns:
        got, todo = ", ".join(log.event_columns) or "none", f"set sequence.feedback to one of them, or to {NO_FEEDBACK}"
        raise DataError(f"sequence.feedback {column!r} is not a column of the log", got=got, todo=todo)
    return column


def _check_siblings(recipe: Recipe, log: Interactions) -> None:
    """Refuse feedback tasks over impressions without feedback slots: items shown together would see each other."""
    tasks = [task.name for task in recipe.tasks if task.kind == "feedback"]
    if tasks and log.impressions is not None:
        what = f"task {tasks[0]!r} asks about items of an impression, which see each other without feedback slots"
        got = f"sequence.feedback {recipe.sequence.feedback or NO_FEEDBACK}"
        todo = "name a feedback column, or leave impression_id out of the log"
        raise RecipeError(what, got=got, expected="a column of the log", todo=todo)


def fit_vocabulary(column: str | None, log: Interactions, train_mask: np.ndarray) -> FeedbackVocabulary | None:
    """The feedback values of the training events; None without a column. Raises as `FeedbackVocabulary.fit` does."""
    return None if column is None else FeedbackVocabulary.fit(column, log.column(column)[train_mask])


def declared_vocabulary(column: str | None, log: Interactions, privacy: PrivacyConfig) -> FeedbackVocabulary | None:
    """The feedback values that a private recipe declares; None without a column.

    Raises:
        RecipeError: They are numbers where the column holds texts, or the other way round.
    """
    if column is None:
        return None
    values, texts = privacy.feedback_values, log.column(column).dtype == object
    if not values or isinstance(values[0], str) != texts:
        expected = f"all {'texts' if texts else 'numbers'} that {column} can be"
        raise RecipeError("train.privacy.feedback_values", got=list(values), expected=expected)
    return FeedbackVocabulary(column, values)


def check_feedback(column: str | None, fitted: str | None) -> None:
    """Check that an encoder has vectors of a column's values; any encoder serves events without feedback slots.

    Args:
        column: The column that fills the feedback slots.
        fitted: The one that the encoder was fitted on; None for an encoder without feedback.

    Raises:
        ManifestError: The two differ.
    """
    if column is not None and fitted != column:
        raise ManifestError("sequence.feedback", got=column, expected=f"{fitted or NO_FEEDBACK}, which the encoder was fitted on")
