"""Tasks: a slot, a label, a head, a loss, metrics.

Owns: the task's schema and how its labels are read off the log. Ignores: tokenizers, devices, LoRA.

A task that is read in the item slot ("will they like it?"), and one that is read in the feedback slot ("what comes next?"):

    >>> like = Task(name="like", kind="feedback", label="rating > 3", head="binary", loss="log_loss", metrics=("auc",))
    >>> like.labels({"rating": np.array([5.0, 3.0, np.nan])})
    array([ 1.,  0., nan])
    >>> Task(name="next_item", kind="next_item").head
    'catalogue'

and one that is read off a labelled text as a whole:

    >>> Task(name="stars", kind="text", label="rating", loss="cross_entropy", classes=(1, 2, 3, 4, 5)).head
    'pooled'
"""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from genre.errors import DataError, RecipeError

Kind = Literal["feedback", "next_item", "text"]
LossName = Literal["cross_entropy", "mse", "log_loss", "ips", "snips", "dr", "softmax_dpo", "group_relative"]
HeadName = Literal["verbalizer", "binary", "scalar", "categorical", "catalogue", "generate", "pooled"]
OFF_POLICY = ("ips", "snips", "dr")
"""Losses that learn a policy from what another one showed."""
RELATIVE = ("softmax_dpo", "group_relative")
"""Losses that are relative to a reference: the model as it was before the first step."""

_EXPRESSION = re.compile(r"^\s*([A-Za-z_]\w*)\s*(?:(>=|<=|==|!=|>|<)\s*(.+?))?\s*$")
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_LOSSES_OF_HEAD: dict[str, tuple[str, ...]] = {
    "binary": ("log_loss",),
    "scalar": ("mse",),
    "categorical": ("cross_entropy",),
    "catalogue": ("cross_entropy", *OFF_POLICY, *RELATIVE),
    "generate": ("cross_entropy", *RELATIVE),
    "pooled": ("log_loss", "cross_entropy", "mse"),
    "verbalizer": ("cross_entropy", "log_loss", "mse"),
}
_METRICS_OF_LOSS = {
    "log_loss": ("auc", "gauc", "log_loss"),
    "mse": ("rmse", "mae"),
    "cross_entropy": ("accuracy", "macro_f1"),
}
_METRICS_OF_TEXT = _METRICS_OF_LOSS | {"log_loss": ("auc", "f1", "log_loss")}
_OWN_HEADS = {"next_item": ("catalogue", "generate"), "text": ("pooled",)}
_WHERE_GENERATED = {"preference": {"negatives": 4}, "group": {"length": 1}}
"""Other defaults of sections with head `generate`: each item that is compared is a branch of tokens there."""
BEAM = 50
"""Prefixes of codes that a beam search keeps at each level, unless a task or a request says otherwise."""
MAX_CLASSES = 1000
MAX_BEAM = 1_000_000
_RANKING = tuple(f"{name}@{k}" for k in (10, 5, 20) for name in ("ndcg", "hr", "mrr")) + tuple(
    f"{name}@10" for name in ("coverage", "gini", "diversity", "novelty", "serendipity")
)


def _filled(section: Any, defaults: dict[str, Any]) -> Any:
    """A section with other defaults than its own for what is not set; as it is where that cannot be told."""
    given = section.model_dump(exclude_unset=True) if isinstance(section, BaseModel) else {} if section is None else section
    return {**defaults, **given} if isinstance(given, Mapping) else given


def parse_label(expression: str) -> tuple[str, str | None, float | str | None]:
    """Split a label expression into column, operator and literal, e.g. "rating > 3" or "click".

    Raises:
        RecipeError: The text is not `column` or `column OP literal`; nothing is ever evaluated as code.
    """
    match = _EXPRESSION.match(expression)
    if not match:
        raise RecipeError(
            "a label cannot be read",
            got=repr(expression),
            expected="a column, or a column, one of > >= < <= == != and a number or 'text'",
            todo="write for example: label: rating > 3",
        )
    column, op, literal = match.groups()
    if op is None:
        return column, None, None
    try:
        return column, op, float(literal)
    except ValueError:
        return column, op, literal.strip("'\"")


class Logged(BaseModel):
    """What a log says of the policy that showed its items.

    Attributes:
        reward: The column of rewards: 0 for a shown item that nothing came of.
        propensity: The column of the probabilities, in (0, 1], with which the items were shown.
        clip: The largest weight, the softmax's probability of an item over its propensity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reward: str = "click"
    propensity: str = "propensity"
    clip: float = Field(default=10.0, gt=0, allow_inf_nan=False)


class Preference(BaseModel):
    """Which items a target is preferred to, for loss `softmax_dpo`.

    Attributes:
        source: Where rejected items come from: drawn by `popularity` (smoothed) or `uniform`ly; other targets of the `batch`;
            the `policy`'s own softmax; what the same `impressions` showed and the label does not hold for; or explicit `pairs`,
            the ids in `column`. Drawn items are never the target or of its history.
        negatives: Rejected items of a target in each step; of impressions and pairs at most. Unset it means 4 with head
            `generate`, where each costs tokens.
        beta: How fast a preference saturates: the larger, the closer to the reference the policy stays.
        column: Of `pairs`: the ids of rejected items, separated by blanks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["popularity", "uniform", "batch", "policy", "impressions", "pairs"] = "popularity"
    negatives: int = Field(default=15, ge=1, le=10_000)
    beta: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    column: str = "rejected"


class Group(BaseModel):
    """What loss `group_relative` draws and rewards.

    Attributes:
        size: Lists drawn for each target, whose rewards are compared.
        length: Items of a list, drawn one after the other from the softmax over the catalogue, without replacement. With head
            `generate` a list is one item, which unset it means there.
        reward: Of the target's place in a list: `ndcg` 1 / log2(1 + place), `mrr` 1 / place, `hit` 1; 0 if it is not there.
        kl: Weight of the Kullback-Leibler divergence from the reference, which is computed over the whole catalogue; with head
            `generate` it is estimated from the drawn items.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=16, ge=2, le=1024)
    length: int = Field(default=10, ge=1, le=1000)
    reward: Literal["ndcg", "mrr", "hit"] = "ndcg"
    kl: float = Field(default=0.1, ge=0, allow_inf_nan=False)


class Task(BaseModel):
    """One task of a recipe.

    Attributes:
        name: Its name in metrics and requests.
        kind: `feedback` reads the item slot, `next_item` reads the feedback slot, `text` a labelled text as a whole.
        label: For feedback and text tasks, `column` or `column OP literal`. For next_item, which events are targets: those
            where it holds (`behaviour == 'purchase'`); all of them without one. What comes before a target is its history anyway.
        head: How the hidden state becomes a score.
        loss: `log_loss`, `mse` or `cross_entropy`; of next_item also `ips`, `snips` or `dr`, which raise the reward that
            the softmax over the catalogue would have earned in the place of the policy that showed the log's items;
            `softmax_dpo`, which prefers targets to other items; or `group_relative`, a policy gradient on a ranking reward.
        weight: Its share in the sum of losses of a joint adapter.
        metrics: Names from `genre.evaluation.metrics`; the first one decides early stopping.
        words: For the verbalizer, one label word per class, worst first.
        classes: For cross_entropy, the label column's values, one per class. Without them the labels are class numbers from 0
            (feedback), or the column's own values are taken (text).
        seen: For ranking, whether items of the history are `masked` or `kept` as candidates.
        keep_negatives: With log_loss, the share of the training events with label 0 that each epoch learns from, drawn anew.
            The loss corrects the logit, so that probabilities stay those of the whole log. None keeps all.
        logged: With loss `ips`, `snips` or `dr`, the columns of rewards and propensities. Training learns from every event that
            has both; `label`, by default a reward above 0, says which events are targets of validation and test.
        preference: With loss `softmax_dpo`, where rejected items come from.
        group: With loss `group_relative`, what is drawn and rewarded.
        beam: With head `generate`, prefixes of codes that a search keeps at each level, 50 if None; a request may ask for more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    kind: Kind
    label: str | None = None
    head: HeadName = "binary"
    loss: LossName = "log_loss"
    weight: float = Field(default=1.0, gt=0)
    metrics: tuple[str, ...] = ()
    words: tuple[str, ...] | None = None
    classes: tuple[float, ...] | tuple[str, ...] | None = Field(default=None, min_length=2, max_length=MAX_CLASSES)
    seen: Literal["masked", "kept"] = "masked"
    keep_negatives: float | None = Field(default=None, gt=0, le=1)
    logged: Logged | None = None
    preference: Preference | None = None
    group: Group | None = None
    beam: int | None = Field(default=None, ge=1, le=MAX_BEAM)

    @model_serializer(mode="wrap")
    def _without_unset(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave later keys out where they are not set: a recipe without them keeps its text, and its version its digest."""
        found: dict[str, Any] = dump(self)
        return {key: value for key, value in found.items() if value is not None or key not in ("preference", "group", "beam")}

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        if data.get("kind") == "next_item":
            data.setdefault("head", "catalogue")
            data.setdefault("loss", "cross_entropy")
            data.setdefault("metrics", _RANKING)
            if data["loss"] in OFF_POLICY:
                logged = data.setdefault("logged", {})
                reward = logged.get("reward", "click") if isinstance(logged, Mapping) else "click"
                data["label"] = data.get("label") or f"{reward} > 0"
            elif data["loss"] in RELATIVE:
                section = "preference" if data["loss"] == "softmax_dpo" else "group"
                data[section] = _filled(data.get(section), _WHERE_GENERATED[section] if data["head"] == "generate" else {})
        else:
            usual = _METRICS_OF_TEXT if data.get("kind") == "text" else _METRICS_OF_LOSS
            data.setdefault("head", "pooled" if data.get("kind") == "text" else "binary")
            data.setdefault("metrics", usual.get(data.get("loss", "log_loss"), ()))
        return data

    @model_validator(mode="after")
    def _check(self) -> "Task":
        own = _OWN_HEADS.get(self.kind, (self.head,))
        if self.head not in own or (self.kind == "feedback" and any(self.head in heads for heads in _OWN_HEADS.values())):
            what = f"kind {self.kind!r} does not go with head {self.head!r}"
            raise ValueError(f"{what}: next_item needs catalogue or generate, and text needs pooled")
        if self.beam is not None and self.head != "generate":
            raise ValueError(f"beam is for head 'generate': head {self.head!r} scores every item")
        if self.kind != "next_item" and not self.label:
            raise ValueError(f"a {self.kind} task needs a label, for example: label: rating > 3")
        if self.label:
            parse_label(self.label)
        if self.loss not in _LOSSES_OF_HEAD[self.head]:
            other = "; head 'catalogue' takes it" if self.head == "generate" and self.loss in OFF_POLICY else ""
            raise ValueError(f"head {self.head!r} takes loss {' or '.join(_LOSSES_OF_HEAD[self.head])}, not {self.loss!r}{other}")
        if self.head == "verbalizer" and (not self.words or len(self.words) < 2):
            raise ValueError("head 'verbalizer' needs at least two label words, for example: words: [' No', ' Yes']")
        if self.classes is not None:
            if self.loss != "cross_entropy" or (self.label and parse_label(self.label)[1]) or self.kind == "next_item":
                raise ValueError("classes are for loss cross_entropy and a label that is a bare column")
            if len(set(self.classes)) < len(self.classes):
                raise ValueError("two classes are the same")
        if self.keep_negatives is not None and not self.is_binary:
            raise ValueError("keep_negatives is for loss log_loss: other losses have no negatives")
        if self.logged is not None and self.loss not in OFF_POLICY:
            raise ValueError(f"logged is for loss {', '.join(OFF_POLICY)}: other losses know no propensities")
        if self.preference is not None and self.loss != "softmax_dpo":
            raise ValueError("preference is for loss softmax_dpo: other losses reject no items")
        if self.group is not None and self.loss != "group_relative":
            raise ValueError("group is for loss group_relative: other losses draw no lists")
        if self.group is not None and self.group.length > 1 and self.head == "generate":
            what = f"group.length {self.group.length} is for head 'catalogue': head 'generate' draws lists of one item"
            raise ValueError(f"{what}; set it to 1, or leave it out, and draw more with group.size")
        if self.preference is not None and self.preference.source == "impressions" and self.label is None:
            raise ValueError("preference.source impressions needs a label, such as label: click > 0, which says what was chosen")
        if not self.metrics:
            raise ValueError("a task needs at least one metric")
        return self

    @property
    def column(self) -> str | None:
        """The feedback column that the label is read from; None for next-item tasks."""
        return parse_label(self.label)[0] if self.label else None

    @property
    def is_binary(self) -> bool:
        """True if labels are 0 and 1."""
        return self.loss == "log_loss"

    def labels(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Labels of all events.

        Args:
            columns: The log's feedback columns, or the texts' label columns: each (n,), float with NaN or object with None where
                missing.

        Returns:
            (n,) float64, NaN where the event has no label.

        Raises:
            DataError: The column is missing, or a label cannot be what the loss needs.
        """
        if self.label is None:
            raise RecipeError(f"task {self.name!r} has no label of its own", got=self.kind, expected="a feedback task")
        column, op, literal = parse_label(self.label)
        what = "label" if self.kind == "text" else "feedback"
        if column not in columns:
            raise DataError(
                f"task {self.name!r} needs the {what} column {column!r}",
                got=", ".join(sorted(columns)) or f"no {what} column",
                todo="change the task's label, or import the log with --map " + f"{column}=THEIR_COLUMN",
            )
        values = columns[column]
        missing = np.array([v is None for v in values]) if values.dtype == object else np.isnan(values)
        if op is not None:
            if isinstance(literal, str) != (values.dtype == object):
                raise DataError(
                    f"label {self.label!r} compares {column!r} with a value of another type",
                    got="text" if values.dtype == object else "numbers",
                    expected=f"values like {literal!r}",
                )
            safe = np.where(missing, np.array(literal, dtype=values.dtype), values)
            labels = _OPERATORS[op](safe, literal).astype(np.float64)
        elif self.classes is not None:
            labels = self._codes(column, values, missing)
        elif values.dtype == object:
            raise DataError(f"label {self.label!r} is text", got=column, expected="a comparison, like behaviour == 'purchase'")
        else:
            labels = values.astype(np.float64)
        labels = np.where(missing, np.nan, labels)
        known = labels[~missing]
        if self.is_binary and known.size and not np.isin(known, (0.0, 1.0)).all():
            raise DataError(
                f"task {self.name!r} with loss log_loss needs labels 0 and 1",
                got=f"{column} from {known.min():g} to {known.max():g}",
                todo=f"compare it, for example: label: {column} > {np.median(known):g}",
            )
        strange = ~(np.isfinite(known) & (known >= 0) & (known == np.floor(known)))
        if self.loss == "cross_entropy" and strange.any():
            raise DataError(
                f"task {self.name!r} with loss cross_entropy needs classes as whole numbers from 0",
                got=f"{known[strange][0]:g} in {column}",
                todo="number the classes, or use head: scalar with loss: mse",
            )
        return labels

    def with_classes(self, columns: Mapping[str, np.ndarray]) -> "Task":
        """The task with the classes of its label column's values written out; itself where it needs none or has them.

        Raises:
            DataError: The column is missing, has one value only, or too many.
        """
        if self.kind != "text" or self.loss != "cross_entropy" or self.classes is not None:
            return self
        column = self.column
        values = columns.get(column or "", np.empty(0))
        texts = values.dtype == object
        found = sorted({v for v in values if v is not None}) if texts else np.unique(values[~np.isnan(values)]).tolist()
        if column in columns and not 2 <= len(found) <= MAX_CLASSES:
            raise DataError(
                f"the label of task {self.name!r} has no classes",
                got=f"{len(found)} different values of {column}",
                expected=f"2 to {MAX_CLASSES}",
                todo="choose another label, or loss: mse for a number",
            )
        return self.model_copy(update={"classes": tuple(found)}) if column in columns else self

    def _codes(self, column: str, values: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """Indices of the values among the classes."""
        assert self.classes is not None
        code = {value: float(index) for index, value in enumerate(self.classes)}
        unknown = next((value for value, gone in zip(values, missing, strict=True) if not gone and value not in code), None)
        if unknown is not None:
            shown = repr(unknown) if isinstance(unknown, str) else f"{unknown:g}"
            raise DataError(
                f"task {self.name!r} knows no class {shown}",
                got=f"a value of {column}",
                expected=", ".join(map(str, self.classes[:20])),
                todo="add it to the task's classes, or take the rows out",
            )
        return np.array([code.get(value, np.nan) for value in values], dtype=np.float64)
