"""Settings of a service: addresses, limits, times.

Owns: the fields, their defaults and bounds. Ignores: where they come from.

    Settings.make(port=8080, canary={"like": 0.1})
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from genre.errors import InputError
from genre.evaluation.exploring import LARGEST_POOL, POOL, Exploration
from genre.validation import refusal

TOKEN_VARIABLE = "GENRE_ADMIN_TOKEN"
SHORTEST_TOKEN = 16


class Settings(BaseModel):
    """Frozen settings of one service.

    Attributes:
        host, port: The address to listen on; port 0 takes a free one.
        hosts: Names that a request's Host header may carry; empty means loopback names where the host is one, else any.
        batch_rows, batch_tokens: A batch ends at either; a row that is larger goes alone.
        batch_ms: A batch, and each forward pass of a larger row, takes about so long at most, by the speed of the passes before.
        gather_ms: How long a free worker waits for another row after the last one; ten times as long after the first at most.
        queue_rows: Rows that wait at most; more get 429. A caller with less than its share still finds room.
        call_rows: Rows of one call.
        call_tokens: Estimated tokens of one call's rows together; more get 413.
        call_results: Results of one call's rows together at most; more get 413.
        row_tokens: Estimated tokens of one row.
        timeout_s: Seconds from the last byte of a call to its answer; a later one gets 504.
        body_bytes: Larger bodies get 413.
        receive_s: A call's body must arrive within so many seconds of its head.
        idle_s: A connection without a call is closed after so many seconds; more than the 60 that a load balancer before it often
            waits, which else sends a call into a connection that is closing.
        connections: Open connections at most; more get 503.
        follow_s: How often alias moves are looked for; 0 never looks.
        drain_s: How long a stopping service goes on accepting, while `/readyz` says 503.
        canary: Share of a name's traffic that goes to its `candidate`.
        canary_failures, canary_window: So many failures among a candidate's last rows send its traffic back to production.
        token_guesses: Wrong admin tokens of a client before it has to wait; a call without one is no guess.
        explore: How `/v1/recommend` draws its lists (`genre.evaluation.exploring`); None gives the best items.
        explore_pool: The best so many items that can be drawn.
        log_rows: Log user ids and histories; off, so that logs hold no user's data.
        token: Must come with admin calls; None switches them off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    hosts: tuple[str, ...] = ()
    batch_rows: int = Field(default=64, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)
    batch_ms: float = Field(default=100.0, gt=0)
    gather_ms: float = Field(default=2.0, ge=0, le=1000)
    queue_rows: int = Field(default=2048, ge=1)
    call_rows: int = Field(default=256, ge=1)
    call_tokens: int = Field(default=2**20, ge=1)
    call_results: int = Field(default=2**18, ge=1)
    row_tokens: int = Field(default=65_536, ge=1)
    timeout_s: float = Field(default=30.0, gt=0, le=3600)
    body_bytes: int = Field(default=4 * 2**20, ge=1)
    receive_s: float = Field(default=10.0, gt=0)
    idle_s: int = Field(default=75, ge=1)
    connections: int = Field(default=1024, ge=1)
    follow_s: float = Field(default=1.0, ge=0)
    drain_s: float = Field(default=1.0, ge=0)
    canary: dict[str, float] = Field(default_factory=dict)
    canary_failures: int = Field(default=3, ge=1)
    canary_window: int = Field(default=100, ge=1)
    token_guesses: int = Field(default=5, ge=0)
    explore: str | None = None
    explore_pool: int = Field(default=POOL, ge=1, le=LARGEST_POOL)
    log_rows: bool = False
    token: SecretStr | None = Field(default=None, repr=False)

    @field_validator("canary")
    @classmethod
    def _shares(cls, value: dict[str, float]) -> dict[str, float]:
        for name, share in value.items():
            if not 0 <= share <= 1:
                raise ValueError(f"the share of {name} must lie between 0 and 1")
        return value

    @field_validator("token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < SHORTEST_TOKEN:
            raise ValueError(f"an admin token needs at least {SHORTEST_TOKEN} characters")
        return value

    @model_validator(mode="after")
    def _explores(self) -> Self:
        self.exploration()
        return self

    def exploration(self) -> Exploration | None:
        """How lists are drawn; None if they are not.

        Raises:
            InputError: There is no such policy, or its amount is out of bounds.
        """
        return None if self.explore is None else Exploration.parse(self.explore, self.explore_pool)

    @classmethod
    def make(cls, **values: Any) -> Self:
        """Settings from plain values.

        Raises:
            InputError: One cannot be used; the token is never shown.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            if first["loc"] == ("token",):
                raise InputError("token cannot be used", expected=first["msg"].removeprefix("Value error, ")) from None
            raise refusal(error, "a service", list(cls.model_fields), InputError) from None
