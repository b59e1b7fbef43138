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


class Attack(_Section):
    """How well an attack tells members, users who trained a model, from others.

    Attributes:
        auc, auc_interval: .5 is chance; users drawn again, 95 %.
        tpr, tpr_interval: Members found above a threshold that at most 1 % of the others pass; exact, 95 %.
        members, others: Users; `trials` are scores, one for each user and attacked model.
        curve: (false positives, true positives) by falling threshold.
    """

    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    members: int = Field(ge=0)
    others: int = Field(ge=0)
    trials: int = Field(ge=0)
    curve: list[tuple[float, float]]


class MembershipSection(_Section):
    """Membership: who trained? Shadow adapters of the same recipe, each trained on a random half of the users.

    Attributes:
        shadows: How many; each is attacked with the help of the others.
        loss: Attack by the threshold of a user's mean loss.
        ratio: By likelihood ratio, with shadows that the user trained and shadows that they did not (LiRA, online).
        offline: By how far a user's confidence lies above that of shadows without them (LiRA, offline).
        published: The attacks `loss` and `offline` on the version itself; None where too few users did not train it.
        why_not: The reason then.
    """

    shadows: int
    users: int
    overrides: list[str]
    loss: Attack
    ratio: Attack
    offline: Attack
    published: dict[str, Attack] | None
    why_not: str


class CanariesSection(_Section):
    """Canary users, each inserted with probability 1/2, and a lower bound on epsilon from one training.

    Attributes:
        canaries, included: How many there are, and how many of them were inserted.
        events: Events of a canary: items at random, each with the feedback of any event.
        epsilon: The epsilon of (epsilon, delta) is at least that, with `confidence`.
        guesses, right: Of the guesses that give the bound.
        claimed: The epsilon of the recipe's `train.privacy`; None for a recipe without.
        scores: By how much each canary's mean loss is lower than under the version; `inserted` says which were.
    """

    canaries: int
    included: int
    events: int
    overrides: list[str]
    epsilon: float = Field(ge=0)
    delta: float = Field(ge=0, le=1)
    confidence: float
    guesses: int
    right: int
    claimed: float | None
    scores: list[float]
    inserted: list[bool]


class GivenBack(_Section):
    """What a model makes of the first half of users' histories.

    Attributes:
        events: Mean share of a user's later items that the greedy continuation names.
        tokens: Mean number of tokens until it first differs from the true one.
        bits: Mean bits per token of the true continuation.
    """

    events: float
    tokens: float
    bits: float


class ExtractionSection(_Section):
    """Extraction by prefix: histories that a text adapter continues.

    Attributes:
        applies: False if rows hold soft tokens, so that there is no text to continue; `why_not` says so.
        users: Those whose histories were cut in two.
        base: The base alone; `version`: with the adapter; `without`: with one that was trained without these users.
        difference: `version` less `without`, in bits of the true continuation, and its 95 % interval; negative if remembered.
    """

    applies: bool
    why_not: str
    users: int
    new_tokens: int
    base: GivenBack | None
    version: GivenBack | None
    without: GivenBack | None
    difference: tuple[float, float, float] | None


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
    membership: MembershipSection | None = None
    canaries: CanariesSection | None = None
    extraction: ExtractionSection | None = None


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


def privacy_lines(report: AuditReport) -> list[str]:
    """The privacy sections of a report in lines for people; empty if it has none."""
    lines = []
    if (found := report.checks.membership) is not None:
        attacks = {"loss": found.loss, "likelihood ratio": found.ratio, "likelihood ratio, offline": found.offline}
        attacks |= {f"{name}, the version itself": attack for name, attack in (found.published or {}).items()}
        for name, attack in attacks.items():
            (low, high), (least, most) = attack.auc_interval, attack.tpr_interval
            auc = f"AUC {attack.auc:.3f} [{low:.3f}, {high:.3f}]"
            lines.append(f"membership by {name}: {auc}, found at 1 % false {attack.tpr:.3f} [{least:.3f}, {most:.3f}]")
    if (canaries := report.checks.canaries) is not None:
        claimed = "" if canaries.claimed is None else f"; the recipe promises {canaries.claimed:g}"
        guessed = f"{canaries.right} of {canaries.guesses} guesses about {canaries.canaries} canaries right"
        lines.append(f"epsilon at least {canaries.epsilon:.2f} at delta {canaries.delta:.1e} ({guessed}){claimed}")
    if (told := report.checks.extraction) is not None:
        if told.difference is None or told.version is None:
            lines.append(f"extraction: does not apply, {told.why_not}")
        else:
            difference, low, high = told.difference
            bits = f"{difference:+.4f} [{low:+.4f}, {high:+.4f}] bits per token against a training without them"
            lines.append(f"extraction: {told.version.events:.4f} of later items named of {told.users} users; {bits}")
    return lines
