"""What the OpenAPI document says of bodies and answers, with examples.

Owns: the models of the document. Ignores: checking: rows are read by `Request.from_json`, so that each fails alone.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from genre.registry import MetricValue


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Event(BaseModel):
    """An event of a history: an item that the catalogue has, or one that is given by its columns; then the feedback column."""

    model_config = ConfigDict(extra="allow")

    item_id: str | None = None
    item: dict[str, JsonValue] | None = None


class Row(_Model):
    """One question to one adapter."""

    adapter: str = Field(description="A served reference, or an adapter's bare name.")
    id: str | None = Field(default=None, description="Comes back in the answer.")
    task: str | None = Field(default=None, description="May be left out where the adapter has one.")
    user_id: str | None = Field(default=None, description="Takes history and columns from the mounted data set.")
    history: list[Event] | None = Field(default=None, description="Events in order, instead of user_id; [] for a new user.")
    user: dict[str, JsonValue] | None = Field(default=None, description="The user's columns.")
    candidates: list[str | dict[str, JsonValue]] | None = Field(default=None, description="Ids, or items by their columns.")
    k: int | None = Field(default=None, ge=1, description="The best k only, best first.")
    exclude_seen: bool = True
    allow: list[str] | None = None
    deny: list[str] | None = None
    where: list[str] | None = Field(default=None, description="Conditions on item columns, such as in_stock == true.")
    diversity: float | None = Field(default=None, ge=0, le=1, description="How much the k items are to differ; 0 is off.")
    texts: list[dict[str, JsonValue]] | None = Field(
        default=None,
        description="Of an adapter that reads labelled texts, instead of a history: each by its columns, and a text_id.",
    )


class ScoreBody(_Model):
    """A call: rows for any adapters and tasks."""

    requests: list[Row] = Field(min_length=1)


class ExplainRow(_Model):
    """Which events does this item's score come from?"""

    adapter: str
    item: str | dict[str, JsonValue]
    id: str | None = None
    task: str | None = None
    user_id: str | None = None
    history: list[Event] | None = None
    user: dict[str, JsonValue] | None = None
    method: str = Field(default="leave_one_out", pattern="^(leave_one_out|gradient)$")


class ExplainBody(_Model):
    """A call: items whose scores are to be explained."""

    requests: list[ExplainRow] = Field(min_length=1)


class Text(BaseModel):
    """A text; its score is a probability or a value, or for classes their expected value, with each one's probability."""

    text_id: str
    score: float
    classes: dict[str, float] | None = None


class Item(BaseModel):
    """An item; a score is a probability, a value, or a logit over the catalogue."""

    item_id: str
    score: float | None = None
    title: str | None = None


class Answer(BaseModel):
    """A row's answer: results and the digest of the version that gave them, or an error."""

    id: str | None = None
    adapter: str
    digest: str | None = None
    results: list[Item] | list[Text] | None = None
    error: str | None = None


class Answers(_Model):
    """Answers in the order of the rows."""

    responses: list[Answer]


class Share(BaseModel):
    """An event's part in a score; shares' absolute values sum to one."""

    place: int
    item_id: str
    title: str
    feedback: Any = None
    effect: float
    share: float


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
    events: list[Share] | None = None
    error: str | None = None


class Explanations(_Model):
    """Explanations in the order of the rows."""

    responses: list[Explanation]


class Found(_Model):
    """Items."""

    items: list[Item]


class User(_Model):
    """A user and how many events they have."""

    user_id: str
    events: int


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
    metrics: dict[str, dict[str, MetricValue]]
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


class Health(_Model):
    """Whether all is well, and if not why."""

    ok: bool
    reasons: list[str]


class Trouble(_Model):
    """Why a call as a whole was not answered."""

    error: str
    code: str
    request_id: str


class Done(BaseModel):
    """What an operator's act led to: what is served now; the move, the digest or the canary; whether a restart remembers it."""

    serving: dict[str, str]
    move: dict[str, JsonValue] | None = None
    digest: str | None = None
    canary: Canary | None = None
    remembered: bool | None = None


class LoadBody(_Model):
    """A reference."""

    ref: str = Field(examples=["like@candidate"])


class PromoteBody(_Model):
    """A version, the alias that is to name it, and what it must reach."""

    ref: str = Field(examples=["like@candidate"])
    alias: str = "production"
    floor: dict[str, float] = Field(default_factory=dict, examples=[{"auc": 0.7}])
    not_worse: bool = False


class RollbackBody(_Model):
    """An alias that is to name again what it named before."""

    name: str = Field(examples=["like"])
    alias: str = "production"


class CanaryBody(_Model):
    """The share of a name's traffic that goes to its candidate."""

    name: str = Field(examples=["like"])
    share: float = Field(ge=0, le=1, examples=[0.1])


ADMIN: dict[str, type[BaseModel]] = {
    "load": LoadBody, "unload": LoadBody, "promote": PromoteBody, "rollback": RollbackBody, "canary": CanaryBody,
}  # fmt: skip
