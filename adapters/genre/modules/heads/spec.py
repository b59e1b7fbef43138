"""The description of a head: what `heads.json` holds beside the weights of a version, and what a head is built from.

    {"like": {"kind": "binary", "width": 576, "loss": "log_loss", "feedback_codes": 6, …}, "next_item": {…}}

Owns: the description, reading it back, deriving it for versions that earlier releases published without it. Ignores: modules.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genre.errors import ManifestError
from genre.tasks import Task
from genre.validation import expected

POOLED = {"log_loss": "binary", "cross_entropy": "categorical", "mse": "scalar"}
"""The kind of head that a pooled task gets, by its loss."""

Count = Annotated[int, Field(ge=0, le=2**24)]


class HeadSpec(BaseModel):
    """Everything that decides a head's modules and the shapes of their weights.

    Attributes:
        kind: What the head computes.
        width: Hidden size of the base.
        loss: The task's loss.
        words: A verbalizer's label words.
        classes: Classes of a categorical head.
        feedback_codes: Codes of the feedback that a binary or scalar head reads in the history; 0 if it reads no history.
        fuse: Whether a catalogue head remembers the items of the history.
        size: Dimensions of a catalogue head's queries and keys.
        ngrams: TF-IDF n-grams that a head over texts counts; None if it counts none.
        cooccurrence: Rank of a catalogue head's co-occurrence term; 0 for no such term.
        neighbours: Items, and neighbours of each, of a catalogue head's item neighbours; None without them.
        stand_ins: Nearest items by text that stand in for one that the encoder does not know, in item neighbours; 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["verbalizer", "binary", "scalar", "categorical", "catalogue", "generate"]
    width: Count
    loss: str = "log_loss"
    words: tuple[str, ...] = ()
    classes: Count = 0
    feedback_codes: Count = 0
    fuse: bool = False
    size: Count = 128
    ngrams: Count | None = None
    cooccurrence: Count = 0
    neighbours: tuple[Count, Count] | None = None
    stand_ins: Annotated[int, Field(ge=0, le=64)] = 0

    @classmethod
    def of(
        cls,
        task: Task,
        width: int,
        *,
        classes: int = 0,
        feedback_codes: int = 0,
        fuse: bool = False,
        **more: Any,
    ) -> "HeadSpec":
        """Describe the head that a task names; with `fuse` it reads the user's earlier events, where its kind can."""
        kind: Any = POOLED[task.loss] if task.head == "pooled" else task.head
        fuse = fuse and task.head != "pooled"
        return cls(
            kind=kind,
            width=width,
            loss=task.loss,
            words=(task.words or ()) if kind == "verbalizer" else (),
            classes=classes if kind == "categorical" else 0,
            feedback_codes=feedback_codes if fuse and kind in ("binary", "scalar") else 0,
            fuse=fuse and kind == "catalogue",
            **more,
        )

    @property
    def outputs(self) -> int:
        """Values per target: the classes of a categorical head, else one."""
        return self.classes if self.kind == "categorical" else 1

    @classmethod
    def read(cls, task: Task, described: object, width: int) -> "HeadSpec":
        """Read back a stored description, which must be of this task and this width.

        Raises:
            ManifestError: It is not; the message names the field and both values.
        """
        try:
            spec = cls.model_validate(described)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, (task.name, *first["loc"])))
            raise ManifestError(f"heads.json: {field}", got=first["input"], expected=expected(first)) from None
        wanted = cls.of(task, width)
        for name in ("kind", "width", "loss", "words"):
            if (got := getattr(spec, name)) != (ours := getattr(wanted, name)):
                raise ManifestError(f"heads.json: {task.name}.{name}", got=got, expected=ours)
        return spec

    def check_sizes(self, task: Task, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the described sizes against those of the stored tensors, before anything of that size is made.

        Raises:
            ManifestError: They differ; the message names the field and both values.
        """
        stored = self.from_tensors(task, shapes, self.width)
        for name in ("classes", "feedback_codes", "fuse", "size", "ngrams", "cooccurrence", "neighbours"):
            if (got := getattr(self, name)) != (expected := getattr(stored, name)):
                raise ManifestError(f"heads.json: {task.name}.{name}", got=got, expected=f"{expected}, as in heads.safetensors")

    @classmethod
    def from_tensors(cls, task: Task, shapes: Mapping[str, tuple[int, ...]], width: int) -> "HeadSpec":
        """Describe a head that an earlier release published without `heads.json`, by its tensors' names and shapes."""

        def rows(name: str, default: int = 0) -> int:
            return next(iter(shapes.get(name, ())), default)

        return cls.of(
            task,
            width,
            classes=rows("linear.bias"),
            feedback_codes=rows("affinity.worth"),
            fuse=bool({"affinity.worth", "memory.weight"} & shapes.keys()),
            size=rows("query.weight", 128),
            ngrams=rows("terms.keys") if "terms.keys" in shapes else None,
            cooccurrence=rows("taste"),
            neighbours=shapes.get("neighbours.items"),
        )
