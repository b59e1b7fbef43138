"""The recipe: one YAML file per run, checked against a schema, resolved once, stored with the run.

Owns: the schema, defaults, `--set` overrides. Ignores: torch, data, training.

    >>> recipe = Recipe.parse({"name": "like", "data": {"path": "data/ml-100k"},
    ...     "tasks": [{"name": "like", "kind": "feedback", "label": "rating > 3"}]})
    >>> recipe.adapter.rank, recipe.train.epochs
    (8, 5)
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from genre import display
from genre.data.dataset import DataKind
from genre.data.sequences.control import ControlTokens
from genre.data.sequences.windows import WindowRule
from genre.data.splits import SplitConfig
from genre.errors import RecipeError, fault_of_file, kind_of
from genre.overrides import override as put_override
from genre.overrides import put
from genre.privacy import PrivacyConfig, refuse
from genre.tasks import RELATIVE, Task
from genre.validation import explained


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Config):
    """The data set, its split, and the length of a row.

    Attributes:
        path: A data set folder, or the name of a packaged data set.
        split: The training, validation and test parts.
        hold_out: Further splits whose validation and test events are not trained on either, so that an encoder fitted
            here may serve tasks that are tested on those splits.
        max_events: Most events of a user in one row (a window of the history).
        min_events: Users with fewer training events give no training row (counted).
        limit: Train on the latest training events only, this many (None: all).
    """

    path: str
    split: SplitConfig = SplitConfig(kind="temporal", valid=0.1, test=0.1)
    hold_out: tuple[SplitConfig, ...] = ()
    max_events: int = Field(default=100, ge=2, le=4096)
    min_events: int = Field(default=2, ge=1)
    limit: int | None = Field(default=None, ge=1)


class BaseConfig(_Config):
    """The base, and how it is loaded for training.

    Attributes:
        name: A packaged base, a folder or a hub id.
        quantization: Of its linear layers.
        depth: Keep only this many of its first layers; all if None.
        precision: Of its weights and activations: bfloat16 on CUDA and float32 on a CPU if `auto`; if `measured`, whichever is
            faster on the machine that trains, and the run records which. Trained parameters are float32 in any case, except
            the weights of a full fine-tune and their optimizer moments.
    """

    name: str = "smollm2-135m"
    quantization: Literal["none", "int8", "nf4"] = "none"
    depth: int | None = Field(default=None, ge=1)
    precision: Literal["auto", "float32", "bfloat16", "measured"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> "BaseConfig":
        if self.quantization != "none" and self.precision != "auto":
            raise ValueError(f"base.precision {self.precision} goes with base.quantization none: a quantized base has its own")
        return self


NO_FEEDBACK = "none"
"""The value of `sequence.feedback` for events without a feedback slot."""


class SequenceConfig(_Config):
    """The token sequence of an event, or of a labelled text.

    Attributes:
        item: `text` (title and chosen columns, as tokens), `token` (one soft token) or `both`.
        text: The item columns that make the text.
        feedback: The column of the feedback slot, or `none` for events without such a slot, their item alone. By default rating,
            click or behaviour, the first that the log has, and `none` where it has none of them.
        instruction: Text before the first event; `{column}` is replaced by the user's column.
        max_item_tokens: Longer item texts are cut (counted).
        max_tokens: Labelled texts: most tokens in a row; longer texts are cut (counted).
        pool: Labelled texts: the state is the `mean` of all tokens' states, or that of the `first` or `last` token; `auto` is
            the mean on an encoder and the last token on a causal base.
        terms: Labelled texts: the number of TF-IDF n-grams (tokens and pairs of tokens) that heads read beside the text's state
            (0: none). Training starts at a linear model on them; see `genre.modules.heads.tfidf`.
        control_tokens: Control tokens of the base's vocabulary, such as `<|endoftext|>`, that stand in titles, user columns,
            texts or the instruction: plain `text`, or the `token` itself, as in versions that record no rule.
        window: A history beyond `data.max_events` loses its oldest events one by one (`sliding`), or half a window at once
            (`blocks`), so that an engine with a history cache goes on from what it has read.
    """

    item: Literal["text", "token", "both"] = "token"
    text: tuple[str, ...] = ("title",)
    feedback: str | None = None
    instruction: str = "Items and feedback of one user, in order:"
    max_item_tokens: int = Field(default=24, ge=1, le=512)
    max_tokens: int = Field(default=256, ge=8, le=8192)
    pool: Literal["auto", "mean", "first", "last"] = "auto"
    terms: int = Field(default=0, ge=0, le=1_000_000)
    control_tokens: ControlTokens = "text"
    window: WindowRule = "sliding"


MOST_OF_TWO_LEVELS = 20_000
"""Items up to which two levels of codes have about as many first codes as a beam is wide, which then loses hardly any."""


class CodesConfig(_Config):
    """Codes of items, from coarse to fine, that a task with head `generate` generates; see docs/recipes.md.

    Attributes:
        levels: Codes of an item but for the last one, which parts items that share the others (None: 2, or 3 above 20,000 items).
        size: Codes of a level; fewer where there are fewer different items (None: a power of two, about the items' root of
            degree `levels`).
        method: Residual k-means, or an autoencoder with residual quantization (`rqvae`).
        balanced: Every code of a level but the last gets the same number of items.
        features: Features of the encoder that codes are made of; by default all but learned vectors.
        dimensions: Principal components of each feature.
        places: Most items that may share all codes but the last.
    """

    levels: int | None = Field(default=None, ge=1, le=8)
    size: int | None = Field(default=None, ge=2, le=4096)
    method: Literal["kmeans", "rqvae"] = "kmeans"
    balanced: bool = True
    features: tuple[Literal["text", "collaborative", "factors", "dense"], ...] = ()
    dimensions: int = Field(default=64, ge=1, le=1024)
    places: int = Field(default=256, ge=1, le=4096)

    def shape(self, items: int) -> tuple[int, int]:
        """Levels, and codes of each, for a catalogue of so many items."""
        levels = self.levels or (2 if items <= MOST_OF_TWO_LEVELS else 3)
        return levels, self.size or min(2 ** max(1, round(math.log2(max(items, 1)) / levels)), 4096)


class EncoderConfig(_Config):
    """The behaviour encoder: a published one, or the features of a newly fitted one.

    Attributes:
        use: `auto` (the registry's for this base and data set, else fit one and publish it), `fit`, `none` (text items
            only) or a reference such as `encoder-ml-100k@latest`.
        text: Project the frozen base's own embedding of the item's text columns.
        learned: Dimensions of learned item vectors (0: none).
        collaborative: Dimensions of vectors computed from the training events: items seen near each other, items liked alike
            (0: none).
        factors: Dimensions of item factors computed from the training events: items of the same users, near each other or not
            (0: none).
        dense: List-of-float item columns to project.
        fuse: Heads read the user's earlier events through item vectors, beside the base's state.
        taste: Dimensions of the co-occurrence term (PureSVD) that next-item heads get after training, its interpolation weight
            chosen on validation (0: none; needs `fuse` and a validation part).
        neighbours: Strongest neighbours of each item that next-item heads add up over a fading history: full-rank co-occurrence
            (EASE), fitted after training, and with `whiten` neighbours by text; weights chosen on validation (0: none).
        whiten: Whiten the text's embedding over the catalogue, against vectors that are all alike.
        dropout: Probability that an item's learned, collaborative and factor vectors are masked in training (so that new items
            work).
        min_events: Items with fewer training events get no vector bound to their id, like new items. 0 gives one to every item,
            1 if the split holds items out; from 1 up an item without training events is not drawn as a negative either.
        codes: Codes of items, for tasks that generate them (None: none).
    """

    use: str = "auto"
    text: bool = True
    learned: int = Field(default=64, ge=0, le=4096)
    collaborative: int = Field(default=64, ge=0, le=1024)
    factors: int = Field(default=0, ge=0, le=1024)
    dense: tuple[str, ...] = ()
    dropout: float = Field(default=0.1, ge=0, lt=1)
    min_events: int = Field(default=0, ge=0)
    fuse: bool = True
    taste: int = Field(default=64, ge=0, le=1024)
    neighbours: int = Field(default=0, ge=0, le=4096)
    whiten: bool = False
    codes: CodesConfig | None = None

    @model_serializer(mode="wrap")
    def _without_codes(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the key out where there are no codes: a recipe that has none keeps its text, and its version its digest."""
        found: dict[str, Any] = dump(self)
        return found if self.codes is not None else {key: value for key, value in found.items() if key != "codes"}

    @model_validator(mode="after")
    def _check(self) -> "EncoderConfig":
        if self.codes is not None:
            there = {name for name in ("text", "collaborative", "factors", "dense") if getattr(self, name)}
            if lacking := [name for name in self.codes.features if name not in there]:
                raise ValueError(f"encoder.codes.features names {lacking[0]}, which the encoder does not have")
            if not there:
                raise ValueError("encoder.codes needs text, collaborative, factors or dense: codes are made of them")
        return self


class AdapterConfig(_Config):
    """The trained part of the base.

    Attributes:
        kind: `lora`, `rslora` (scale alpha / sqrt(rank)) or `head_only`. For comparison only, never published: `full` (the whole
            base trains) and `no_base` (heads read zeros instead of the base's states; encoder and histories stay).
        targets: `all-linear`, or the last parts of module names such as `[q_proj, v_proj]`.
        layers: `all`, or the indices of the adapted layers.
    """

    kind: Literal["lora", "rslora", "full", "head_only", "no_base"] = "lora"
    rank: int = Field(default=8, ge=1, le=256)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    layers: Literal["all"] | tuple[int, ...] = "all"

    @property
    def publishable(self) -> bool:
        """True if a run of this kind becomes a version; the other kinds are for comparison."""
        return self.kind not in ("full", "no_base")


class SampledConfig(_Config):
    """The sampled softmax with logQ correction of next-item tasks on large catalogues.

    Attributes:
        above: Sample for catalogues of more items than this. Evaluation is always exact.
        negatives: Items drawn by smoothed popularity in each step, shared by all its targets.
    """

    above: int = Field(default=50_000, ge=1)
    negatives: int = Field(default=4096, ge=1, le=1_000_000)


class TrainConfig(_Config):
    """Training: AdamW, linear decay to a tenth, clipping, early stop on the first task's first metric.

    Attributes:
        average: Decay of the moving average of the weights, which is validated and published in their place (0: none).
        batch_tokens: Padded tokens of one step, over all processes and micro-batches.
        tracker: Gets the curves beside `log.jsonl`: `tensorboard`, or what needs its package: `mlflow` (`MLFLOW_TRACKING_URI`),
            `wandb` (`WANDB_MODE=offline` keeps it local), `comet_ml`, `aim`; or `none`.
        accumulate: Micro-batches of a step: less memory, the same gradient.
        checkpoint_activations: Activation checkpointing: keep only the inputs of the base's layers.
        start: Reference of a published version whose weights the run starts from; its tasks, sequence, adapter and encoder are
            the recipe's. None starts anew.
        privacy: User-level differential privacy of all that is published (None: none).
    """

    epochs: int = Field(default=5, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.02, ge=0, lt=1)
    average: float = Field(default=0.0, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    batch_tokens: int = Field(default=4096, ge=16)
    seed: int = Field(default=0, ge=0, lt=2**63)
    early_stop: int | None = Field(default=2, ge=1)
    tracker: Literal["tensorboard", "mlflow", "wandb", "comet_ml", "aim", "none"] = "tensorboard"
    checkpoint_every: int = Field(default=200, ge=1)
    accumulate: int = Field(default=1, ge=1)
    checkpoint_activations: bool = False
    sampled: SampledConfig = SampledConfig()
    start: str | None = None
    privacy: PrivacyConfig | None = None

    @model_serializer(mode="wrap")
    def _without_start(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the key out where it is not set, as `EncoderConfig` does with codes."""
        found: dict[str, Any] = dump(self)
        return found if self.start is not None else {key: value for key, value in found.items() if key != "start"}


class Recipe(_Config):
    """One run: data, base, sequence, encoder, tasks, adapter, training."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    data: Data
    base: BaseConfig = BaseConfig()
    sequence: SequenceConfig = SequenceConfig()
    encoder: EncoderConfig = EncoderConfig()
    tasks: tuple[Task, ...] = Field(min_length=1)
    adapter: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        """Give labelled texts a group split and no instruction, unless the recipe has its own."""
        if not isinstance(data, Mapping) or not _of_texts(data.get("tasks")):
            return data
        filled = dict(data)
        for section, key, value in (("data", "split", {"kind": "group"}), ("sequence", "instruction", "")):
            given = filled.get(section, {})
            if isinstance(given, Mapping):
                filled[section] = {key: value, **given}
        return filled

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"two tasks have the same name: {', '.join(names)}")
        if self.reads == "texts" and any(task.kind != "text" for task in self.tasks):
            raise ValueError("tasks of kind text cannot be mixed with other kinds: they read labelled texts, the others a log")
        _refuse_foreign(self)
        if self.encoder.whiten and not self.encoder.text:
            raise ValueError("encoder.whiten needs encoder.text: it is the text's vectors that are whitened")
        if self.encoder.use == "none" and self.sequence.item != "text":
            raise ValueError("encoder.use none needs sequence.item text: soft tokens come from an encoder")
        if self.adapter.kind == "full" and (relative := [task for task in self.tasks if task.loss in RELATIVE]):
            raise ValueError(f"loss {relative[0].loss} has the base as it was for its reference, so adapter.kind cannot be full")
        if self.train.start is not None and not self.adapter.publishable:
            raise ValueError(f"train.start goes on from an adapter, and adapter.kind {self.adapter.kind} trains none")
        for task in self.tasks:
            if self.encoder.use == "none" and task.head in ("catalogue", "generate"):
                needed = "scores against its item vectors" if task.head == "catalogue" else "generates its codes"
                raise ValueError(f"head {task.head!r} needs an encoder: it {needed}")
        if self.encoder.codes is not None and not self.generates:
            what = "encoder.codes needs a task with head 'generate'"
            raise ValueError(f"{what}: the vectors of codes train with the adapter that fits them; leave it out to share theirs")
        if self.adapter.kind == "head_only" and all(task.head == "generate" for task in self.tasks):
            raise ValueError("adapter.kind head_only trains nothing here: head 'generate' has no weights of its own; use lora")
        if self.generates and self.encoder.use in ("auto", "fit") and self.encoder.codes is None:
            raise ValueError("head 'generate' needs encoder.codes: items are generated by their codes; for example codes: {}")
        if self.train.privacy is not None:
            refuse(self)
        return self

    def __repr__(self) -> str:
        return f"Recipe({self._headline()})"

    def _repr_html_(self) -> str:
        own = yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
        return display.text(self._headline(), own) + display.folded("Every key, with defaults", self.dump())

    def _headline(self) -> str:
        layers = f"the first {self.base.depth} layers" if self.base.depth else "all layers"
        tasks = ", ".join(f"{task.name} ({task.kind})" for task in self.tasks)
        return f"{self.name}: {tasks} on {self.data.path}; {self.adapter.kind} on {self.base.name}, {layers}"

    @property
    def generates(self) -> bool:
        """True if a task generates items by their codes."""
        return any(task.head == "generate" for task in self.tasks)

    @property
    def reads(self) -> DataKind:
        """The kind of data that the tasks read."""
        return "texts" if self.tasks[0].kind == "text" else "log"

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, where: str = "recipe") -> "Recipe":
        """Check a mapping against the schema.

        Raises:
            RecipeError: A key is unknown or a value is wrong; the message names the first one by its path.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise explained(error, where, cls) from None

    @classmethod
    def read(cls, path: str | Path, overrides: Iterable[str] = ()) -> "Recipe":
        """Read a YAML recipe and apply `a.b=c` overrides.

        Raises:
            RecipeError: The file is missing, is not a YAML mapping, or fails the schema.
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            near = Path(path).with_name(f"{Path(path).name}.yaml")
            todo = f"did you mean {near}?" if near.is_file() else "name a YAML file, or let genre recipe new write one"
            raise RecipeError(f"no recipe {path}", todo=todo) from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path} cannot be read", got=fault_of_file(error), todo="name a YAML file") from None
        except yaml.YAMLError as error:
            raise RecipeError(f"recipe {path} is not YAML", got=fault_of_file(error)) from None
        if not isinstance(data, dict):
            what, todo = f"recipe {path} is empty or not a mapping", "genre recipe new writes one"
            raise RecipeError(what, got=kind_of(data), expected="keys such as name: and data:", todo=todo)
        if not any(key in cls.model_fields for key in data):
            got, expected = f"keys {', '.join(map(str, data))[:80]}" if data else "no keys", ", ".join(sorted(cls.model_fields))
            raise RecipeError(f"{path} is no recipe of genre", got=got, expected=expected, todo="genre recipe new writes one")
        for override in overrides:
            put_override(data, override)
        return cls.parse(data, where=str(path))

    def with_values(self, values: Mapping[str, Any]) -> "Recipe":
        """The recipe with other values at some dotted keys, such as `{"tasks.0.weight": 2.0}`, checked again.

        Raises:
            RecipeError: The schema refuses a value, or the combination.
        """
        raw = self.model_dump(mode="json")
        for path, value in values.items():
            put(raw, path, value)
        return Recipe.parse(raw)

    def dump(self) -> str:
        """The resolved recipe as YAML, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


_FOR_LOGS = {
    "data": ("max_events", "min_events"),
    "sequence": ("item", "feedback", "max_item_tokens", "window"),
    "encoder": tuple(EncoderConfig.model_fields),
    "train": ("start",),
}
_FOR_TEXTS = {"sequence": ("max_tokens", "pool", "terms")}


def _of_texts(tasks: Any) -> bool:
    found = tasks if isinstance(tasks, list | tuple) else ()
    return "text" in [task.get("kind") if isinstance(task, Mapping) else getattr(task, "kind", None) for task in found]


def _refuse_foreign(recipe: Recipe) -> None:
    """Refuse keys of the other kind of data, unless they have their defaults, which a stored recipe writes out."""
    reads_texts = recipe.reads == "texts"
    if (recipe.data.split.kind == "group") != reads_texts:
        kinds = "group" if reads_texts else "temporal, last_n, user_ratio or given"
        raise ValueError(f"data.split.kind {recipe.data.split.kind!r} does not go with these tasks: they need {kinds}")
    what, foreign = ("labelled texts", _FOR_LOGS) if reads_texts else ("a log", _FOR_TEXTS)
    for section, keys in foreign.items():
        given = getattr(recipe, section)
        for key in keys:
            if getattr(given, key) != type(given).model_fields[key].default:
                raise ValueError(f"{section}.{key} does not apply to {what}")
