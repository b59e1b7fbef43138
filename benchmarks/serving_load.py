"""A service in a process of its own, and clients that cost little: HTTP/1.1 over asyncio streams.

A call that was sent and got no complete answer is `Lost`; one that could not be sent because nobody listened is `Refused`.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

TOKEN = "the token of the benchmark"
READY_S = 120.0


class Refused(Exception):
    """Nobody listened: the call was not sent."""


class Lost(Exception):
    """The call was sent and not answered."""


class Server:
    """`genre serve` in a process, its log lines in a file."""

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        *,
        before: str = "",
        port: int = 0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}.jsonl"
        code = f"{before}\nimport sys\nfrom genre.cli import main\nsys.exit(main(sys.argv[1:]))"
        self.begun = time.monotonic()
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "serve", "--port", str(port), *arguments],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, "GENRE_ADMIN_TOKEN": TOKEN, **(variables or {})},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " at http://" not in line:
            raise RuntimeError(f"the service did not start: {line}{self.log.read_text()[-2000:]}")
        host, port_text = line.rsplit("http://", 1)[1].strip().split(":")
        self.address = host, int(port_text)
        while not self._ready():
            if time.monotonic() - self.begun > READY_S or self.process.poll() is not None:
                raise RuntimeError(f"the service is not ready: {self.log.read_text()[-2000:]}")
            time.sleep(0.01)
        self.ready_s = time.monotonic() - self.begun

    def _ready(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.get("/readyz")["ok"])
        return False

    def get(self, path: str) -> Any:
        """Return a JSON answer, for set-up and observation."""
        with urllib.request.urlopen(f"http://{self.address[0]}:{self.address[1]}{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self, how: int = signal.SIGTERM) -> int:
        """Send a signal, wait, return the exit code."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        """The exit code."""
        code = self.process.wait(120)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)


class Client:
    """One connection at a time, kept alive while the service lets it; from an address of this machine, if one is given."""

    def __init__(self, address: tuple[str, int], source: str | None = None) -> None:
        self.address = address
        self._from = None if source is None else (source, 0)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(
        self, path: str, body: bytes | None = None, *, method: str = "POST", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send a call; its status and body."""
        named = {"Host": self.address[0], "Content-Type": "application/json", **(headers or {})}
        if body is not None:
            named["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        return await self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""))

    async def send(self, data: bytes) -> tuple[int, bytes]:
        """Send bytes as they are; the status and body of what comes back."""
        if self._streams is None:
            try:
                self._streams = await asyncio.open_connection(*self.address, local_addr=self._from)
            except OSError as error:
                raise Refused(str(error)) from None
        reader, writer = self._streams
        try:
            writer.write(data)
            await writer.drain()
            status, headers = await _head(reader)
            answer = await reader.readexactly(int(headers.get("content-length", 0)))
        except (OSError, EOFError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from None
        if headers.get("connection", "") == "close":
            self.close()
        return status, answer

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return int(first.split(" ", 2)[1]), headers


def run_clients(
    address: tuple[str, int], count: int, work: Callable[[Client, int], Awaitable[None]], beside: Any = None
) -> float:
    """Run `work(client, number)` for several clients at once, with one more coroutine beside them; return the seconds.

    `beside` is a function of a client that runs until it is cancelled.
    """

    async def main() -> float:
        clients = [Client(address) for _ in range(count + 1)]
        other = asyncio.ensure_future(beside(clients[-1])) if beside is not None else None
        begun = time.perf_counter()
        try:
            await asyncio.gather(*(work(client, number) for number, client in enumerate(clients[:-1])))
        finally:
            if other is not None:
                other.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await other
            for client in clients:
                client.close()
        return time.perf_counter() - begun

    return asyncio.run(main())
