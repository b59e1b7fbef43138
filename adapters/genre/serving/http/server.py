"""The process around a service: socket, uvicorn, signals, an orderly end.

Owns: binding, uvicorn's settings, the order in which a stopping service lets go. Ignores: routes, clients that are slow on
purpose (a proxy before the service is for those).

A SIGTERM or SIGINT: `/readyz` says 503 and every answer closes its connection, while new connections are still taken for
`drain_s` seconds (a balancer needs a moment to look elsewhere); then the socket is closed; what is under way is answered; the
queue is scored to its end; then the process ends.
"""

import asyncio
import gc
import socket
import sys
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from genre.errors import InputError
from genre.serving.http.app import create_app
from genre.serving.logs import server_messages
from genre.serving.service import Service
from genre.unpromised import close_listeners

BACKLOG = 2048
LONGEST_HEAD = 32 * 1024
LAST_REQUESTS_S = 1.0
SWITCH_S = 0.0005
"""Seconds after which a thread gives up the interpreter to another."""


class Server(uvicorn.Server):
    """uvicorn's server, which drains before it closes and ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Keep accepting for `drain_s` seconds, then close the sockets and let everything finish.

        Connections that were accepted last have a moment to send their request, before uvicorn closes those without one.
        """
        self.service.draining = True
        self.service.log.write("draining", seconds=self.service.settings.drain_s)
        await self._wait(self.service.settings.drain_s)
        await close_listeners(self, sockets or [])
        await self._wait(LAST_REQUESTS_S, until_idle=True)
        await super().shutdown(sockets)

    async def _wait(self, seconds: float, *, until_idle: bool = False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.force_exit and not (until_idle and not self.server_state.connections):
            await asyncio.sleep(0.02)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal, at once at the second; uvicorn would raise it again at the end."""
        self.force_exit = self.should_exit
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket without listening yet, so that a taken port fails before anything is loaded.

    Raises:
        InputError: The address cannot be used.
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
        raise InputError("the address cannot be used", got=f"{host}:{port}", expected="a free port", todo=reason) from None
    listener.set_inheritable(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(service: Service, app: ASGIApp | None = None) -> Server:
    """A server for a started service; run it with `serve(sockets=[…])`."""
    settings = service.settings
    config = uvicorn.Config(
        app or create_app(service),
        http="h11",
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.idle_s,
        h11_max_incomplete_event_size=LONGEST_HEAD,
        limit_concurrency=settings.connections,
        timeout_graceful_shutdown=int(settings.timeout_s + settings.receive_s) + 1,
    )
    return Server(config, service)


def run(service: Service, listener: socket.socket) -> None:
    """Serve until a signal, then stop the service.

    Python's defaults are for one thread of work. What is there at the start is left out of garbage collection meanwhile: a look
    at the libraries' half a million objects stops every thread for a quarter of a second, and a call of many results makes
    Python look. And a thread that computes gives up the interpreter at each product, and would wait for it as long as a switch
    takes, hundreds of times a batch, beside one that reads a large body.
    """
    interval = sys.getswitchinterval()
    with server_messages(service.log):
        try:
            gc.collect()
            gc.freeze()
            sys.setswitchinterval(SWITCH_S)
            make_server(service).run(sockets=[listener])
        finally:
            gc.unfreeze()
            sys.setswitchinterval(interval)
            service.stop()
