"""The middleware around every call: its id, its limits, its line in the log.

Owns: request ids, body size and time, the Host header, security headers, errors that nobody else caught, call metrics and
log lines. Ignores: routes, bodies' content.
"""

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genre.errors import RequestError
from genre.serving.problems import Problem
from genre.serving.service import Service

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SLACK_S = 30.0
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d+)?")
_POLICY = b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _POLICY),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Middleware:
    """Pure ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        settings = service.settings
        self.hosts = settings.hosts or (LOOPBACK if settings.host in LOOPBACK else ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one call; anything but HTTP (the lifespan) passes through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()


class _Exchange:
    """One call and its answer."""

    def __init__(self, middleware: Middleware, scope: Scope, receive: Receive, send: Send) -> None:
        self.middleware = middleware
        self.service = middleware.service
        self.settings = middleware.service.settings
        self.scope = scope
        self._receive = receive
        self._send = send
        self.headers = dict(reversed(scope["headers"]))
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        self.request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.begun = time.monotonic()
        self.size = 0
        self.whole = False
        self.status: int | None = None
        self.log_fields = scope["genre"] = {"request_id": self.request_id}

    async def run(self) -> None:
        """Check the call, pass it on, and whatever happens answer and log."""
        try:
            async with asyncio.timeout(self.settings.receive_s + self.settings.timeout_s + SLACK_S):
                await self._answer()
        except TimeoutError:  # a client that does not read its answer
            self.service.log.write("gave up", level="warning", request_id=self.request_id)
            raise
        finally:
            self._log()

    async def _answer(self) -> None:
        try:
            self._check_host()
            self._check_length()
            await self.middleware.app(self.scope, self.receive, self.send)
        except Problem as problem:
            await self.refuse(problem)
        except Exception as error:
            self.service.log.failure("call failed", error, request_id=self.request_id)
            await self.refuse(Problem(500, "internal", "internal error; the log has the reason under this request id"))

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem, unless an answer has begun."""
        if self.status is not None:
            return
        self.log_fields["code"] = problem.code
        body = problem.body(self.request_id)
        named = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *named]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": head})
        await self.send({"type": "http.response.body", "body": body})

    def _check_host(self) -> None:
        hosts = self.middleware.hosts
        if not hosts:
            return
        match = _HOST.fullmatch(self.headers.get(b"host", b"").decode("latin-1"))
        name = match[1].strip("[]").lower() if match else ""
        if name not in hosts:
            what, todo = "this service does not answer to that host", "start it with --allow-host NAME"
            error = RequestError(what, got=repr(name[:80]), expected=", ".join(hosts), todo=todo)
            raise Problem(421, "wrong_host", error)

    def _check_length(self) -> None:
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit():
            self._check_size(int(length[:20]))

    def _check_size(self, size: int) -> None:
        most = self.settings.body_bytes
        if size > most:
            got, expected = f"{size:,} bytes", f"at most {most:,}"
            error = RequestError("the body is too large", got=got, expected=expected, todo="send fewer rows in a call")
            raise Problem(413, "too_large", error)

    async def receive(self) -> Message:
        """The next part of the body, within the limits of size and time; after it, the client's disconnection."""
        if self.whole:
            return await self._receive()
        left = self.begun + self.settings.receive_s - time.monotonic()
        try:
            async with asyncio.timeout(max(0, left)):
                message = await self._receive()
        except TimeoutError:
            what = f"the body did not arrive within {self.settings.receive_s:g} seconds"
            raise Problem(408, "slow_body", what, {"Connection": "close"}) from None
        self.size += len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        self._check_size(self.size)
        return message

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on, its head with our headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._route().startswith("/v1/"):
                self.service.metrics.live.call()  # before the client can ask for the figures
            headers = list(message.get("headers", ()))
            there = {name for name, _ in headers}
            headers += [(b"x-request-id", self.request_id.encode()), *(pair for pair in _HEADERS if pair[0] not in there)]
            if b"cache-control" not in there:
                headers.append((b"cache-control", b"no-store"))
            if self.service.draining and b"connection" not in there:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)

    def _route(self) -> str:
        route: Any = self.scope.get("route")
        return str(getattr(route, "path", "unmatched"))

    def _log(self) -> None:
        seconds = time.monotonic() - self.begun
        route = self._route()
        status = self.status or 499
        self.service.metrics.calls.labels(route, str(status)).observe(seconds)
        if status >= 400:
            self.service.metrics.refused.labels(str(self.log_fields.get("code", status))).inc()
        if route in ("/livez", "/readyz", "/metrics") and status == 200:
            return
        method, ms = self.scope["method"][:16], round(1000 * seconds, 3)
        self.service.log.write("call", method=method, route=route, status=status, ms=ms, **self.log_fields)
