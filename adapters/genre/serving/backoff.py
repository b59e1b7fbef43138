"""Clients that guess the admin token wait longer and longer.

Owns: how many wrong guesses are free, how long a client then waits, who is remembered. Ignores: tokens, HTTP.

After `free` wrong guesses each further one doubles the time that its client has to wait, from one second up to a minute;
until then its calls are refused before the token is looked at, so that waiting cannot be skipped. A right token begins anew.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

LONGEST_S = 60.0
CLIENTS = 1024


class Backoff:
    """Wrong guesses by client. Used by one thread.

    Args:
        free: Wrong guesses before the first wait.
        clock: Seconds.
    """

    def __init__(self, free: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.free, self.clock = free, clock
        self._guesses: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how many, and until when it waits

    def wait_s(self, client: str) -> float:
        """How long a client has to wait yet; 0 if not at all."""
        return max(0.0, self._guesses.get(client, (0, 0.0))[1] - self.clock())

    def wrong(self, client: str) -> None:
        """A client guessed wrong. Of more than 1,024 clients those that guessed longest ago are forgotten."""
        guesses = self._guesses.pop(client, (0, 0.0))[0] + 1
        over = guesses - self.free
        pause = 0.0 if over <= 0 else min(LONGEST_S, 2.0 ** min(over - 1, 10))
        self._guesses[client] = guesses, self.clock() + pause
        while len(self._guesses) > CLIENTS:
            self._guesses.popitem(last=False)

    def right(self, client: str) -> None:
        """A client has the token."""
        self._guesses.pop(client, None)
