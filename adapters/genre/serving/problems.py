"""What goes wrong with a call as a whole, as HTTP says it.

Owns: status, code and body of such answers, and which of the library's errors gives which status. Ignores: rows, which
fail alone inside a 200.

    {"error": "the queue is full: got 2048 rows; …", "code": "queue_full", "request_id": "5b0c…"}
"""

from collections.abc import Mapping

from pydantic_core import to_json

from genre.errors import ConflictError, GenreError, InputError, IntegrityError, NotFoundError, QualityError

LONGEST_MESSAGE = 600


class Problem(Exception):
    """Ends a call with a status, a code for programs and a line for people."""

    def __init__(self, status: int, code: str, error: GenreError | str, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.code, self.message, self.headers = status, code, shorten(str(error)), dict(headers or {})
        super().__init__(self.message)

    def body(self, request_id: str) -> bytes:
        """The JSON body."""
        return to_json({"error": self.message, "code": self.code, "request_id": request_id})


def shorten(message: str) -> str:
    """A message that repeats no more of what was sent than helps."""
    return message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 1] + "…"


def problem_of(error: GenreError, hide: str = "") -> Problem:
    """The problem that one of the library's errors is to an operator.

    Args:
        error: What was raised.
        hide: A place on this machine that no answer names: the registry's.
    """
    message = str(error).replace(hide, "the registry") if hide else str(error)
    if isinstance(error, NotFoundError):
        return Problem(404, "not_found", message)
    if isinstance(error, ConflictError):
        return Problem(409, "conflict", message)
    if isinstance(error, QualityError):
        return Problem(409, "not_good_enough", message)
    if isinstance(error, IntegrityError):
        return Problem(409, "damaged", message)
    if isinstance(error, InputError):
        return Problem(422, "bad_input", message)
    return Problem(500, "internal", "the job failed; the log has the reason under this request id")
