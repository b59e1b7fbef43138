"""The configuration of a split, and which settings go together.

Owns: the keys, their defaults, the refusal of what contradicts. Ignores: logs, and how a split is made (`genre.data.splits`).

    SplitConfig(kind="last_n", n=1, cold_items=0.2)
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FIELDS: dict[str, dict[str, Any]] = {
    "last_n": {"n": 1},
    "temporal": {"valid": 0.1, "test": 0.1},
    "user_ratio": {"valid": 0.1, "test": 0.1},
    "given": {"test_rows": None, "valid": 0.1, "seed": 0},
    "group": {"valid": 0.1, "test": 0.1, "seed": 0},
}


class SplitConfig(BaseModel):
    """The configuration of a split. Frozen; an unknown key, or one that the kind does not use, is an error.

    Attributes:
        kind: `last_n`, `temporal`, `user_ratio` or `given`; for labelled texts `group` (see `Texts.split`).
        n: last_n: events per user that are test targets; as many before them validate. 1 is leave-one-out.
        valid: temporal and user_ratio: share (0 to 1) of the events that validate, just before the test ones; given:
            share of the training rows; group: share of the groups.
        test: temporal and user_ratio: share of the events that are test targets; group: share of the groups.
        test_rows: given: the test events' positions in the source file, first and last included, such as "0-19999,30000".
        seed: given: draws the validation rows; group: draws the groups.
        min_events: Users with fewer events than this in the whole log are unused, and counted.
        cold_items: Items of which nothing is learnt, since their training events are unused (see `hold_out_items`): below 1
            a share of the items, drawn by `cold_seed`; a whole number n means those with fewer than n training events.
        cold_seed: Draws them; 0 by default.
        users: Nothing is learnt from more users than these, so many of those with training events (see `keep_users`).
        users_seed: Draws them; 0 by default.
        folds: Cross-validation by user: into so many folds the users are drawn.
        fold: The fold that tests, from 1: its users' test events are the targets and none of their events is learnt from; all
            other users' test events are unused.
        fold_seed: Draws the folds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["last_n", "temporal", "user_ratio", "given", "group"]
    n: int | None = Field(default=None, ge=1)
    valid: float | None = Field(default=None, ge=0, lt=1)
    test: float | None = Field(default=None, gt=0, lt=1)
    test_rows: str | None = Field(default=None, pattern=r"^\s*\d+(-\d+)?(\s*,\s*\d+(-\d+)?)*\s*$")
    seed: int | None = Field(default=None, ge=0)
    min_events: int = Field(default=0, ge=0)
    cold_items: float | None = Field(default=None, gt=0)
    cold_seed: int | None = Field(default=None, ge=0)
    users: int | None = Field(default=None, ge=1)
    users_seed: int | None = Field(default=None, ge=0)
    folds: int | None = Field(default=None, ge=2)
    fold: int | None = Field(default=None, ge=1)
    fold_seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("kind") not in _FIELDS:
            return data
        defaults = _FIELDS[data["kind"]]
        given = {key: value for key, value in data.items() if value is not None}
        foreign = {key for fields in _FIELDS.values() for key in fields} - set(defaults)
        if foreign & set(given):
            raise ValueError(f"{', '.join(sorted(foreign & set(given)))} does not apply to {data['kind']}")
        if data["kind"] == "group" and given.get("min_events"):
            raise ValueError("min_events does not apply to group")
        if data["kind"] == "given" and "test_rows" not in given:
            raise ValueError("kind 'given' needs test_rows, such as 0-19999")
        resolved = defaults | given
        if float(resolved.get("valid") or 0) + float(resolved.get("test") or 0) >= 1:
            raise ValueError("valid and test leave nothing to train on: their shares must add up to less than 1")
        return resolved

    @model_validator(mode="after")
    def _check_cold(self) -> "SplitConfig":
        if self.cold_items is None and self.cold_seed is not None:
            raise ValueError("cold_seed goes with cold_items")
        if self.cold_items is not None and self.kind == "group":
            raise ValueError("kind 'group' has no cold_items: labelled texts have no items")
        if self.cold_items is not None and self.cold_items >= 1 and (self.cold_items % 1 or self.cold_seed is not None):
            raise ValueError("cold_items is a share below 1 (with a cold_seed), or a whole number of training events")
        return self

    @model_validator(mode="after")
    def _check_users(self) -> "SplitConfig":
        if self.users is None and self.users_seed is not None:
            raise ValueError("users_seed goes with users")
        if self.users is not None and self.kind == "group":
            raise ValueError("kind 'group' has no users: labelled texts have none")
        if self.users is not None and self.kind == "given":
            raise ValueError("kind 'given' has no users to draw: its histories are training events, so its users must train")
        return self

    @model_validator(mode="after")
    def _check_folds(self) -> "SplitConfig":
        if len({value is None for value in (self.folds, self.fold, self.fold_seed)}) > 1:
            raise ValueError("folds, fold and fold_seed go together")
        if self.folds is None or self.fold is None:
            return self
        if self.fold > self.folds:
            raise ValueError(f"there is no fold {self.fold} of {self.folds}")
        if self.kind == "given":
            raise ValueError("kind 'given' has no folds by user: its histories are training events, so its users must train")
        if self.kind == "group":
            raise ValueError("kind 'group' has no folds by user: labelled texts have no users")
        return self
