"""The protocol that a log and labelled texts share.

Owns: what training, evaluation and jobs may ask of data of either kind, so that they need not tell them apart. Ignores files.

    data = open_data("data/ml-100k")           # an `Interactions`, or a `Texts`
    split = data.split(SplitConfig(kind="temporal"))
    labels = data.labels_of(task)              # (n,), one per row of the split
    data.name_rows([17])                       # "row 17 (user u3, item i5)"
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import polars as pl

from genre.data.catalogue import Catalogue
from genre.data.schema import DatasetInfo
from genre.data.splits import Split, SplitConfig
from genre.errors import DataError
from genre.tasks import Task

DataKind: TypeAlias = Literal["log", "texts"]
Slot: TypeAlias = Literal["item", "feedback"]
"""The slot of an event whose hidden state a task reads; a text is read as an item slot is."""

KIND_NAMES: dict[DataKind, str] = {"log": "a log", "texts": "labelled texts"}
"""Each kind, for messages."""


class Dataset(Protocol):
    """n rows (events, or texts) with labels, in a fixed order.

    Attributes:
        kind: `log` or `texts`.
        unit: The plural of a row, for messages.
        owner: The plural of what owns rows and is drawn by a bootstrap: users, or groups of texts.
        frame: A row each.
        info: The content of dataset.json.
        catalogue: The items that rows are about; None for texts.
    """

    kind: ClassVar[DataKind]
    unit: ClassVar[str]
    owner: ClassVar[str]
    frame: pl.DataFrame
    info: DatasetInfo
    catalogue: Catalogue | None

    def __len__(self) -> int:
        return self.frame.height

    @property
    def item_count(self) -> int:
        """N, the items that a ranking is over; 0 for texts."""
        return 0 if self.catalogue is None else self.catalogue.size

    @property
    def own_columns(self) -> list[str]:
        """The columns of `frame` that are not keys."""

    @property
    def digest(self) -> str:
        """sha256 of the content."""

    @property
    def labels(self) -> Mapping[str, np.ndarray]:
        """The columns that labels are computed from, (n,) each: float with NaN, or object with None."""

    @property
    def impressions(self) -> np.ndarray | None:
        """(n,) int64, equal for rows of one owner that were shown together; None if nothing was."""

    def column(self, name: str) -> np.ndarray:
        """Return a column in order: numbers as float64[n] (null: NaN), texts as object[n] (null: None). The caller's own.

        Raises:
            DataError: There is no such column.
        """
        self.need_column(name)
        series = self.frame[name]
        if not series.dtype.is_numeric():
            return series.to_numpy().astype(object)
        return series.cast(pl.Float64).to_numpy(writable=True)

    def need_column(self, name: str) -> None:
        """Raise a `DataError` if there is no such column."""
        if name not in self.frame.columns:
            what = f"the log has no column '{name}'" if self.kind == "log" else f"the texts have no column '{name}'"
            got = ", ".join(self.own_columns) or f"no {self.unit[:-1]} columns"
            todo = f"choose one of those, or import the {self.kind} with --map {name}=THEIRS"
            raise DataError(what, got=got, expected=f"a column '{name}'", todo=todo)

    def check_mask(self, mask: np.ndarray) -> None:
        """Raise a `DataError` if a mask does not fit, or leaves no row."""
        if mask.shape != (len(self),) or mask.dtype != bool:
            got, expected = f"{mask.dtype}{list(mask.shape)}", f"bool[{len(self)}]"
            raise DataError(f"a mask does not fit the {self.kind}", got=got, expected=expected)
        if not mask.any():
            unit = self.unit[:-1]
            raise DataError(f"no {unit} is left", got="a mask that is false everywhere", expected=f"at least one {unit}")

    def split(self, config: SplitConfig) -> Split:
        """Return the part of every row.

        Raises:
            DataError: The split is for the other kind of data, or leaves a part empty.
        """

    def limit(self, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Return the `count` of some rows that a limit keeps: the newest events, or texts drawn at random."""

    def owners(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the owner and the item (of texts, the text itself) of some rows, int32 each."""

    def time_span(self, mask: np.ndarray) -> tuple[int, int] | None:
        """Return the first and last second among the rows of a mask, (n,) bool; None where there are no times."""

    def describe(self) -> dict[str, Any]:
        """Return the data in figures, ready for JSON."""

    def name_row(self, row: int) -> str:
        """Return a row's name in a message."""

    def name_rows(self, rows: Iterable[int], *, most: int = 3) -> str:
        """Name rows in a message: "row 17 (user u3, item i5) and 2 more"."""
        numbers = [int(row) for row in rows]
        more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
        return ", ".join(self.name_row(row) for row in numbers[:most]) + more

    def labels_of(self, task: Task) -> np.ndarray:
        """Return a task's label of every row: float with NaN where there is none, or class (item) codes with -1.

        Raises:
            DataError: A column is missing or does not fit the task.
        """
        labels = task.labels(self.labels)
        return np.where(np.isnan(labels), -1, labels).astype(np.int64) if task.loss == "cross_entropy" else labels

    def supervise(self, tasks: Sequence[Task]) -> dict[str, tuple[Slot, np.ndarray]]:
        """Return for each task the slot that it reads and its labels."""
        return {task.name: ("feedback" if task.kind == "next_item" else "item", self.labels_of(task)) for task in tasks}
