"""Access for operators: the admin token, and waits for clients that guess it.

Owns: comparing tokens, how many wrong ones are free, how long a client then waits. Ignores: HTTP, what operators do.

After `free` wrong tokens each further one doubles the time that its client has to wait, from one second up to a minute; a wrong
one that comes earlier answers 429 and is not counted. A call without a token is no guess, since anybody's browser can be made to
send one. The right token is never kept waiting, and resets the count: it is too long to be found by guessing, and clients behind
a proxy have one address.
"""

import hashlib
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from pydantic import SecretStr

from genre.errors import RequestError
from genre.serving.problems import Problem

LONGEST_S = 60.0
CLIENTS = 1024


class AdminAccess:
    """The admin token of one service, and the wrong ones that clients have sent. Used by one thread.

    Args:
        token: The right one; None refuses every client.
        free: Wrong tokens of a client before its first wait.
        clock: Seconds.
    """

    def __init__(self, token: SecretStr | None, free: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.token = token
        self.free = free
        self.clock = clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how many, and until when the client waits

    def check(self, client: str, authorization: str) -> None:
        """Compare in constant time, whatever the lengths.

        Args:
            client: The address of the client.
            authorization: The header of that name, decoded as Latin-1.

        Raises:
            Problem: 401, no token or a wrong one; 429, too many wrong ones.
        """
        kind, _, token = authorization.partition(" ")
        token = token.strip() if kind.lower() == "bearer" else ""
        expected = "" if self.token is None else self.token.get_secret_value()
        got, wanted = (hashlib.sha256(each).digest() for each in (token.encode("latin-1"), expected.encode()))
        if hmac.compare_digest(got, wanted) and self.token is not None:
            self._wrong.pop(client, None)
            return
        if token and (seconds := self.wait_s(client)) > 0:
            error = RequestError("too many wrong admin tokens", todo=f"try again in {math.ceil(seconds)} s")
            raise Problem(429, "too_many_guesses", error, {"Retry-After": str(math.ceil(seconds))})
        if token:
            self.count_wrong(client)
        error = RequestError("this needs the admin token", expected="the header Authorization: Bearer TOKEN")
        raise Problem(401, "unauthorized", error, {"WWW-Authenticate": "Bearer"})

    def wait_s(self, client: str) -> float:
        """Seconds until a client may guess again; 0 if it may now."""
        return max(0.0, self._wrong.get(client, (0, 0.0))[1] - self.clock())

    def count_wrong(self, client: str) -> None:
        """Count a wrong token. Of more than 1,024 clients those whose last one is longest ago are forgotten."""
        count = self._wrong.pop(client, (0, 0.0))[0] + 1
        over = count - self.free
        pause = 0.0 if over <= 0 else min(LONGEST_S, 2.0 ** min(over - 1, 10))
        self._wrong[client] = count, self.clock() + pause
        while len(self._wrong) > CLIENTS:
            self._wrong.popitem(last=False)
