"""Labelled texts, which an encoder base learns from.

Owns: the texts as a table, a data set folder in and out, label columns, groups, the split by group. Ignores tokens and tensors.

    texts = Texts.read("data/womens-clothing")
    texts.join(["title", "review"])[2]   ->  "Some major design flaws; I had such high hopes for this dress …"
    texts.labels["recommended"][2]       ->  0.0
    texts.split(SplitConfig(kind="group", valid=0.1, test=0.1)).part    # no clothing_id on two sides

The folder holds texts.parquet (text_id, group_id, text columns, label columns, others) and dataset.json, whose roles
name the kind of each column.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl

from genre import display
from genre.data.catalogue import hash_frame
from genre.data.dataset import DataKind, Dataset
from genre.data.describe import coverage, distribution, quantiles
from genre.data.folder import read_info, read_parquet, write_folder
from genre.data.hazards import text_hazards
from genre.data.schema import MAX_BAD, DatasetInfo, Report
from genre.data.splits import PARTS, TEST, TRAIN, VALID, Split, SplitConfig
from genre.data.texts.build import TEXT_KEYS, build_texts
from genre.errors import DataError

TEXTS = "texts.parquet"
SHOWN_ROWS = 5


class Texts(Dataset):
    """Labelled texts, in the order of their source. Immutable; make one with `read` or `from_frame`.

    Attributes:
        frame: text_id (each once), group_id, text columns (str), label columns (numbers or texts, null: no label), others.
        text_columns: The columns that are read.
        label_columns: The columns that are learnt.
        info: The content of dataset.json.
    """

    kind: ClassVar[DataKind] = "texts"
    unit: ClassVar[str] = "texts"
    owner: ClassVar[str] = "groups"
    catalogue: None = None
    impressions: None = None

    def __init__(self, frame: pl.DataFrame, text_columns: Sequence[str], label_columns: Sequence[str], info: DatasetInfo) -> None:
        self.frame = frame
        self.info = info
        self.text_columns = tuple(text_columns)
        self.label_columns = tuple(label_columns)

    def __repr__(self) -> str:
        return f"Texts({self._headline()})"

    def _repr_html_(self) -> str:
        first = self.frame.head(SHOWN_ROWS)
        rows = [[f"{cell[:200]}…" if isinstance(cell, str) and len(cell) > 200 else cell for cell in row] for row in first.rows()]
        return display.table(self._headline(), first.columns, rows, note=f"The first {first.height} texts in order.")

    def _headline(self) -> str:
        return f"{self.info.name}: {len(self):,} texts in {self.frame['group_id'].n_unique():,} groups"

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        texts: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        mapping: Mapping[str, str] | None = None,
        name: str = "texts",
        info: DatasetInfo | None = None,
        max_bad: float = MAX_BAD,
        guess_numbers: bool = False,
        report: Report | None = None,
    ) -> "Texts":
        """Check a polars or pandas frame of labelled texts.

        A row without any text, with an empty id, or with a word in a label column of numbers is counted in `info.skipped` and
        left out, its first case named in `info.examples`; so is a text whose id came before and, in a table without
        `text_id`, a row that equals an earlier one. An empty label is not a label, and its row is kept.

        Args:
            frame: Text and label columns; `text_id` (the place in the table where there is none) and `group_id` (the
                text's own id where there is none: every text alone).
            texts: The text columns; None takes every column of texts but the ids.
            labels: The label columns; None takes every column of numbers.
            mapping: Our column to theirs.
            name: The data set's name.
            info: The rest of dataset.json; wins over `name`.
            max_bad: The share of bad rows above which the table is refused.
            guess_numbers: Take columns of texts that are all numbers for numbers, as tables from text files need.
            report: Rows that reading the source has left out already.

        Raises:
            DataError: If a column is missing, there is no text, or too many rows are bad.
        """
        report, info = report or Report(), info or DatasetInfo(name=name)
        built = build_texts(frame, texts, labels, report, mapping=mapping or {}, max_bad=max_bad, guess_numbers=guess_numbers)
        roles = {"texts": _roles(built.frame, built.text_columns, built.label_columns)}
        return cls(built.frame, built.text_columns, built.label_columns, info.after(report, roles))

    @classmethod
    def read(cls, path: str | Path, *, max_bad: float = MAX_BAD) -> "Texts":
        """Read a data set folder: texts.parquet, and dataset.json if there.

        Raises:
            DataError: If a file is missing or damaged, or the texts are not usable.
        """
        path = Path(path)
        if not cls.is_at(path):
            got = f"no {TEXTS}" if path.is_dir() else "no such folder"
            todo = "make one with `genre data prepare` or `genre data import --text COLUMN`"
            raise DataError(f"{path} holds no labelled texts", got=got, expected=f"a folder with {TEXTS}", todo=todo)
        info = read_info(path)
        roles = info.roles.get("texts", {})
        named = {role: [column for column, its in roles.items() if its == role] if roles else None for role in ("text", "label")}
        frame = read_parquet(path / TEXTS)
        return cls.from_frame(frame, texts=named["text"], labels=named["label"], info=info, max_bad=max_bad)

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Return whether a folder holds labelled texts."""
        return (Path(path) / TEXTS).is_file()

    def write(self, path: str | Path) -> Path:
        """Write the data set folder: see `write_folder`."""
        return write_folder(path, {"texts": self.frame}, self.info)

    @property
    def own_columns(self) -> list[str]:
        """Text columns, label columns, then any others."""
        return self.frame.columns[len(TEXT_KEYS) :]

    @property
    def text_ids(self) -> list[str]:
        """The texts' ids, in order."""
        return self.frame["text_id"].to_list()

    @cached_property
    def group_codes(self) -> np.ndarray:
        """The group of each text, int32[n], 0 to G - 1 as groups first appear."""
        order = self.frame["group_id"].unique(maintain_order=True)
        codes = self.frame["group_id"].cast(pl.Enum(order)).to_physical().cast(pl.Int32).to_numpy(writable=True)
        codes.setflags(write=False)
        return codes

    def join(self, columns: Sequence[str], separator: str = "; ") -> list[str]:
        """Return one text per row: the values of `columns`, those that are there, joined by `separator`.

        Numbers are written out. A row without any of the columns gives the empty text.

        Raises:
            DataError: If a column is missing.
        """
        for name in columns:
            self.need_column(name)
        if not columns:
            return [""] * len(self)
        parts = [pl.col(name).cast(pl.String).str.strip_chars() for name in columns]
        filled = [pl.when(part != "").then(part).alias(str(place)) for place, part in enumerate(parts)]
        return self.frame.select(pl.concat_str(filled, separator=separator, ignore_nulls=True)).to_series().to_list()

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """Every label column as `column` gives it, for `Task.labels`; not to be written to."""
        columns = {name: self.column(name) for name in self.label_columns}
        for values in columns.values():
            values.setflags(write=False)
        return columns

    def split(self, config: SplitConfig) -> Split:
        """Split by group: see `split_groups`. `Split.part` is int8[n] beside `frame`.

        Raises:
            DataError: If the kind is not `group`, or a part is left empty.
        """
        return split_groups(self.frame["group_id"].to_list(), config)

    def limit(self, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Draw `count` of some texts."""
        return np.random.default_rng(seed).permutation(rows)[:count]

    def owners(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the group of some texts, and the texts themselves."""
        return self.group_codes[rows], rows.astype(np.int32)

    def time_span(self, mask: np.ndarray) -> None:
        """Return None: texts have no time."""

    def name_row(self, row: int) -> str:
        """Name a text by its id and its group."""
        return f"text {self.frame['text_id'][row]} (group {self.frame['group_id'][row]})"

    def select(self, mask: np.ndarray) -> "Texts":
        """Return the texts where `mask` (bool[n]) holds, in order.

        Raises:
            DataError: If no text is left, or the mask has another length.
        """
        mask = np.asarray(mask)
        self.check_mask(mask)
        return Texts(self.frame.filter(pl.Series(mask)), self.text_columns, self.label_columns, self.info)

    @cached_property
    def digest(self) -> str:
        """sha256 of the content, in order, and of which columns are texts and labels. The rest of dataset.json does not count."""
        parts = [hash_frame(self.frame), *self.text_columns, "", *self.label_columns]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the texts in figures, ready for JSON; words are separated by spaces, over all text columns together."""
        joined = pl.Series(self.join(self.text_columns, " "))
        words = joined.str.count_matches(r"\S+").to_numpy()
        roles = self.info.roles["texts"]
        found = text_hazards(self.frame["group_id"], joined, self.frame.select(self.label_columns))
        return {
            "name": self.info.name,
            "source": self.info.source,
            "licence": self.info.licence,
            "texts": len(self),
            "groups": int(self.group_codes.max()) + 1,
            "texts_per_group": quantiles(np.bincount(self.group_codes)),
            "words_per_text": quantiles(words),
            "text_columns": {name: coverage(self.frame[name]) for name in self.text_columns},
            "labels": {name: distribution(self.frame[name]) for name in self.label_columns},
            "other_columns": {name: coverage(self.frame[name]) for name, role in roles.items() if role == "feature"},
            "skipped": self.info.skipped,
            "examples": list(self.info.examples),
            "notes": list(self.info.notes),
            "warnings": [each.to_json() for each in found],
        }


def _roles(frame: pl.DataFrame, texts: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    columns = frame.columns[len(TEXT_KEYS) :]
    return {name: "text" if name in texts else "label" if name in labels else "feature" for name in columns}


def split_groups(groups: Sequence[str], config: SplitConfig) -> Split:
    """Split texts so that no group is on two sides.

    A group's draw is u = (first 8 bytes of sha256(seed, the byte 0x1f, group)) / 2^64: it tests if u < test, validates if
    u < test + valid, and trains otherwise. So a group stays where it is when texts are added, taken away or reordered, and the
    shares hold over groups, and over texts only in expectation.

    Args:
        groups: The group of each text.
        config: Of kind `group`.

    Raises:
        DataError: If the kind is another, or a part that was asked for is left empty.
    """
    if config.kind != "group":
        todo = "set data.split to {kind: group, valid: 0.1, test: 0.1}"
        raise DataError(f"labelled texts cannot be split by {config.kind}", expected="kind: group", todo=todo)
    assert config.valid is not None and config.test is not None
    parts = {group: _part(group, config.seed or 0, config.valid, config.test) for group in dict.fromkeys(groups)}
    part = np.fromiter((parts[group] for group in groups), dtype=np.int8, count=len(groups))
    counts = {name: int((part == code).sum()) for name, code in PARTS.items()}
    words = {"train": TRAIN, "validate": VALID, "test": TEST}
    counts |= {f"groups that {word}": list(parts.values()).count(code) for word, code in words.items()}
    for name, wanted in (("train", 1.0), ("valid", config.valid), ("test", config.test)):
        if wanted and not counts[name]:
            got = f"{len(groups):,} texts of {len(parts):,} groups"
            todo = "choose other shares or another seed"
            raise DataError(f"the split leaves no {name} texts", got=got, expected="at least one", todo=todo)
    part.setflags(write=False)
    return Split(config, part, False, counts)


def _part(group: str, seed: int, valid: float, test: float) -> int:
    digest = hashlib.sha256(f"{seed}\x1f{group}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    return TEST if drawn < test else VALID if drawn < test + valid else TRAIN
