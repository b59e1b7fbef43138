"""The process around a service: socket, uvicorn, signals, an orderly end.

Owns: binding, time limits on slow heads, the order in which a stopping service lets go. Ignores: routes.

A SIGTERM or SIGINT: `/readyz` says 503 and every answer closes its connection, while new connections are still taken for
`drain_s` seconds (a balancer needs a moment to look elsewhere); then what the kernel has queued is taken too and the
socket closed; what is under way is answered; the queue is scored to its end; then the process ends.
"""

import asyncio
import contextlib
import gc
import socket
import time
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from genre.errors import InputError
from genre.serving.app import create_app
from genre.serving.logs import server_messages
from genre.serving.service import Service

BACKLOG = 2048
LONGEST_HEAD = 32 * 1024
IDLE_GRACE_S = 1.0


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, with an end to its patience: a head, or a body that nobody waits for any more, must arrive in time."""

    seconds = 10.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection begins with a head."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Something came; is a head or an unwanted body still not whole?"""
        if self.timeout_keep_alive_task is not None:  # a new head begins: its time does too
            self._forget()
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer is out; the rest of its body, if any, is read to nobody."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """No more waiting."""
        super().connection_lost(exc)
        self._forget()

    def _watch(self) -> None:
        answered = self.cycle is not None and self.cycle.response_complete
        unwanted = answered and self.conn.their_state is h11.SEND_BODY
        if self.conn.their_state is not h11.IDLE and not unwanted:
            self._forget()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.seconds, self._close)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if self.timeout_keep_alive_task is None:  # an idle connection has uvicorn's own, longer time
            self.transport.close()
        else:
            self._watch()


class OrderlyServer(uvicorn.Server):
    """uvicorn's server, which drains before it closes."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, take what the kernel has accepted, close, let everything finish."""
        self.service.draining = True
        self.service.log.write("draining", seconds=self.service.settings.drain_s)
        await self._pause(self.service.settings.drain_s)
        await self._close_listeners(sockets or [])
        await self._pause(IDLE_GRACE_S, until_empty=True)
        await super().shutdown(sockets)

    async def _pause(self, seconds: float, *, until_empty: bool = False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.force_exit and not (until_empty and not self.server_state.connections):
            await asyncio.sleep(0.02)

    async def _close_listeners(self, listeners: list[socket.socket]) -> None:
        """Accept what is connected already, then close: a reset would meet requests that are on their way."""
        waiting = []
        for listener in listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    waiting.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        for connection in waiting:
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        made: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return protocol

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """As uvicorn does, but a service that ended in order ends with exit code 0."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address, not yet listening, so that a taken port is known before anything is loaded.

    Raises:
        InputError: The address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError("--host cannot be used", got=host, expected="an address of this machine", todo=error.strerror) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError("the address cannot be had", got=f"{host}:{port}", expected="a free port", todo=reason) from None
    listener.set_inheritable(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(service: Service, app: ASGIApp | None = None) -> OrderlyServer:
    """A server for a started service; run it with `serve(sockets=[…])`."""
    settings = service.settings
    protocol = type("Protocol", (PatientProtocol,), {"seconds": settings.receive_s})
    config = uvicorn.Config(
        app or create_app(service), http=protocol, ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=False,
        proxy_headers=False, server_header=False, backlog=BACKLOG, timeout_keep_alive=settings.idle_s,
        h11_max_incomplete_event_size=LONGEST_HEAD, limit_concurrency=settings.connections,
        timeout_graceful_shutdown=int(settings.timeout_s + settings.receive_s) + 1,
    )  # fmt: skip
    return OrderlyServer(config, service)


@contextlib.contextmanager
def few_to_collect() -> Iterator[None]:
    """Within the block the garbage collector takes what there is now for permanent.

    Most of it is (modules, the base): to look through it took so long that full collections came rarely, and versions that
    had been swapped out waited for one with their tensors.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # the collector compares what is new with what this leaves
    try:
        yield
    finally:
        gc.unfreeze()


def run(service: Service, listener: socket.socket) -> None:
    """Serve until a signal, then stop the service."""
    with server_messages(service.log), few_to_collect():
        try:
            make_server(service).run(sockets=[listener])
        finally:
            service.stop()
