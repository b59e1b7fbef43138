"""Failures of a call as a whole, as HTTP answers them.

Owns: status, code and body of such answers, and which of the library's errors gives which status. Ignores: rows, which
fail alone inside a 200.

    {"error": "the queue is full: got 2048 rows; …", "code": "queue_full", "request_id": "5b0c…"}
"""

from collections.abc import Mapping

from pydantic_core import to_json

from genre.errors import ConflictError, GenreError, InputError, IntegrityError, NotFoundError, QualityError, TrustError

LONGEST_MESSAGE = 600
STATUSES = (
    (NotFoundError, 404, "not_found"),
    (ConflictError, 409, "conflict"),
    (QualityError, 409, "not_good_enough"),
    (TrustError, 403, "not_trusted"),
    (IntegrityError, 409, "damaged"),
    (InputError, 422, "bad_input"),
)


class Problem(Exception):
    """Ends a call with a status, a code for programs and a line for people."""

    def __init__(self, status: int, code: str, error: GenreError | str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.code = code
        self.message = shorten(str(error))
        self.headers = dict(headers or {})
        super().__init__(self.message)

    def body(self, request_id: str) -> bytes:
        """The JSON body."""
        return to_json({"error": self.message, "code": self.code, "request_id": request_id})


def shorten(message: str) -> str:
    """Cut a message that repeats more of what was sent than helps."""
    return message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 1] + "…"


def problem_of(error: GenreError, hide: str = "") -> Problem:
    """The problem for an operator that one of the library's errors stands for.

    Args:
        error: The error.
        hide: A path of this machine that no answer names: the registry's.
    """
    message = str(error).replace(hide, "the registry") if hide else str(error)
    for kind, status, code in STATUSES:
        if isinstance(error, kind):
            return Problem(status, code, message)
    return Problem(500, "internal", "the job failed; the log has the reason under this request id")
