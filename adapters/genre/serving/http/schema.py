"""Models of the bodies of calls and of answers.

Owns: the models that bodies are checked by and that the OpenAPI document is generated from. Ignores: the rows of a body, which
`Request.from_json` reads, so that each fails alone.
"""

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SkipValidation

from genre.engine.explain import EventShare
from genre.engine.requests import ExplainRequest, Request, ScoredText
from genre.registry import MetricValue


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ScoreBody(_Body):
    """A call: rows for any adapters and tasks; each is read and fails alone."""

    requests: list[SkipValidation[Request]] = Field(min_length=1)


class ExplainBody(_Body):
    """A call: items whose scores are to be explained."""

    requests: list[SkipValidation[ExplainRequest]] = Field(min_length=1)


class Item(BaseModel):
    """An item; a score is a probability, a value, or a logit over the catalogue.

    `/v1/recommend` adds a title, what else is known (year, genres, …) and, for next-item tasks, the probability: the softmax over
    all items that could be answered. With exploration it adds the propensity: the probability with which the item was drawn for
    its place.
    """

    item_id: str
    score: float | None = None
    probability: float | None = None
    propensity: float | None = None
    title: str | None = None
    about: dict[str, JsonValue] | None = None


class Answer(BaseModel):
    """A row's answer: results and the digest of the version that gave them, with a note where they are none; or an error.

    With a served log the id of the impression, which rewards name; with exploration the policy that drew the list.
    """

    id: str | None = None
    adapter: str
    digest: str | None = None
    impression_id: str | None = None
    policy: str | None = None
    results: list[Item] | list[ScoredText] | None = None
    note: str | None = None
    error: str | None = None


class Answers(_Model):
    """Answers in the order of the rows."""

    responses: list[Answer]


class Explanation(BaseModel):
    """A row's explanation, or its error."""

    id: str | None = None
    adapter: str
    digest: str | None = None
    task: str | None = None
    item_id: str | None = None
    title: str | None = None
    method: str | None = None
    column: str | None = None
    score: float | None = None
    without_history: float | None = None
    older: int | None = None
    events: list[EventShare] | None = None
    sentence: str | None = None
    error: str | None = None


class Explanations(_Model):
    """Explanations in the order of the rows."""

    responses: list[Explanation]


class RewardRow(_Body):
    """The reward of one item of an impression; sent again it counts once."""

    impression_id: str = Field(min_length=1, max_length=64)
    item_id: str = Field(min_length=1, max_length=8192)
    reward: float = Field(ge=-(2**53), le=2**53, allow_inf_nan=False)


class FeedbackBody(_Body):
    """A call: rewards, such as 1 for a click; each is read and fails alone."""

    feedback: list[SkipValidation[RewardRow]] = Field(min_length=1)


class Outcome(BaseModel):
    """`recorded` or `repeated` (the same was known already); or an error."""

    outcome: str | None = None
    error: str | None = None


class Outcomes(_Model):
    """Outcomes in the order of the rows."""

    outcomes: list[Outcome]


class Found(_Model):
    """Items."""

    items: list[Item]


class User(_Model):
    """A user and how many events they have; of a sample also the titles of the latest ones."""

    user_id: str
    events: int
    latest: list[str] | None = None


class Users(_Model):
    """Users."""

    users: list[User]


class History(_Model):
    """A user's columns and latest events, oldest first."""

    user_id: str
    columns: dict[str, JsonValue]
    total: int
    events: list[dict[str, JsonValue]]


class Canary(_Model):
    """A candidate's share of the traffic and how it fares."""

    share: float
    state: str
    version: str | None
    rows: int
    failures: int
    reason: str | None


class Adapter(_Model):
    """A served reference."""

    ref: str
    name: str
    version: str
    digest: str
    created: str
    kind: str
    resident: bool
    aliases: dict[str, str]
    tasks: list[dict[str, JsonValue]]
    feedback: dict[str, JsonValue]
    data: str | None
    protocol: dict[str, str]
    metrics: dict[str, dict[str, MetricValue]]
    baselines: dict[str, dict[str, dict[str, MetricValue]]]
    history: list[dict[str, JsonValue]]
    versions: list[dict[str, JsonValue]]
    canary: Canary | None


class Overview(_Model):
    """Base, data set and everything that is served."""

    base: dict[str, JsonValue]
    data: dict[str, JsonValue] | None
    admin: bool
    adapters: list[Adapter]


class Stats(_Model):
    """The last minute in figures."""

    uptime_s: float
    window_s: int
    rows_per_s: float
    requests_per_s: float
    errors_per_s: float
    latency_ms: dict[str, float | None]
    per_second: list[int]
    queue_rows: int
    queue_limit: int
    lanes: dict[str, int]
    history_cache: dict[str, int] | None


class Forgotten(_Model):
    """A user, and how many states of histories were dropped."""

    user_id: str
    dropped: int


class Health(_Model):
    """The state of the process, with the reasons where something is wrong."""

    ok: bool
    reasons: list[str]


class Trouble(_Model):
    """The error of a call that was not answered as a whole."""

    error: str
    code: str
    request_id: str


class Done(BaseModel):
    """The outcome of an admin call: the references served now; the move, the digest or the canary; whether a restart keeps it."""

    serving: dict[str, str]
    move: dict[str, JsonValue] | None = None
    digest: str | None = None
    canary: Canary | None = None
    remembered: bool | None = None


class LoadBody(_Body):
    """A reference."""

    ref: str = Field(examples=["like@candidate"])


class PromoteBody(_Body):
    """A version, the alias to point at it, and the bounds that it must meet."""

    ref: str = Field(examples=["like@candidate"])
    alias: str = "production"
    floor: dict[str, float] = Field(default_factory=dict, examples=[{"auc": 0.7}])
    not_worse: bool = False


class RollbackBody(_Body):
    """An alias to move back to its previous version."""

    name: str = Field(examples=["like"])
    alias: str = "production"


class CanaryBody(_Body):
    """The share of a name's traffic that goes to its candidate."""

    name: str = Field(examples=["like"])
    share: float = Field(ge=0, le=1, examples=[0.1])
