"""The report of an audit, as it is written to JSON.

Owns: its schema. Ignores: how figures come about, how they are shown. A further check adds a section of its own to `checks`.

    AuditReport.model_json_schema()
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampledTarget(_Section):
    """An item that is pushed, and its events in the log."""

    item_id: str
    title: str
    events: int = Field(ge=0)


class Standing(_Section):
    """An item in users' lists: the share of lists of ten that hold it, its mean score, and the number of users."""

    exposure: float = Field(ge=0, le=1)
    score: float
    users: int = Field(ge=0)


class Rewritten(_Section):
    """A title with words put behind it, and where the item stands under it."""

    added: str
    standing: Standing


class RewrittenTarget(SampledTarget):
    """One target under its own title, under each suffix, and under the words that a greedy choice found."""

    before: Standing
    suffixes: list[Rewritten]
    greedy: Rewritten


class TextSection(_Section):
    """The text attack: titles rewritten, nothing retrained.

    Attributes:
        item: Item slots of the version: token, text or both.
        column: The column that is rewritten; None where the version reads no text of items, and nothing was tried.
        lists: What is ranked.
        words: What each greedy step chose from.
        before, suffixes, greedy: Means over the targets; of suffixes each target's best one.
    """

    item: Literal["token", "text", "both"]
    column: str | None
    lists: str
    words: list[str]
    targets: list[RewrittenTarget]
    before: Standing | None
    suffixes: Standing | None
    greedy: Standing | None


class Named(_Section):
    """Users that the warnings of `genre data describe` name in a log: how many of the injected ones, and of the real ones."""

    fakes: int = Field(ge=0)
    real: int = Field(ge=0)


class InjectedProfiles(_Section):
    """A retraining on a log with injected users.

    Attributes:
        attack: The kind of profile.
        share: Injected users as a share of the real ones.
        users: How many that is.
        standing: Mean over the targets after retraining.
        named_burst: Named users where all profiles begin within a day, as in the retraining.
        named_spread: Named users where the same profiles begin at any time of the training span.
    """

    attack: str
    share: float
    users: int = Field(ge=1)
    standing: Standing
    named_burst: Named
    named_spread: Named


class ProfilesSection(_Section):
    """Fake profiles: users injected into the log, and the recipe trained again.

    Attributes:
        events: Events of a profile, the targets included.
        published: The version as it is.
        clean: The recipe trained again without injected users: what attacks are compared with.
        named_clean: Real users that the warnings name in the log as it is.
    """

    lists: str
    events: int
    overrides: list[str]
    published: Standing
    clean: Standing
    named_clean: int = Field(ge=0)
    attacks: list[InjectedProfiles]


class AuditedData(_Section):
    """The log of an audit."""

    name: str
    digest: str
    users: int
    items: int
    events: int


class Checks(_Section):
    """The sections of the checks that ran."""

    text: TextSection | None = None
    profiles: ProfilesSection | None = None


class AuditReport(_Section):
    """The report of an audit.

    Attributes:
        users: Measured users; `searched` others are those that an attacker tried words on.
        targets: The items that were pushed.
        sampling: How users and targets were drawn, in words.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    ref: str
    digest: str
    task: str
    data: AuditedData
    seed: int
    users: int
    searched: int
    targets: list[SampledTarget]
    sampling: str
    seconds: float
    command: str
    code_version: str
    checks: Checks
