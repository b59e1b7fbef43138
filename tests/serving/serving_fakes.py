"""Services for tests: in a thread on a free port, or as `genre serve` in a process of its own."""

import asyncio
import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

import genre
from builders import publish_stirred, recipe
from genre.registry import Registry
from genre.serving import Service, Settings
from genre.serving.http.server import bind, make_server, url_of

ENCODER = "encoder-planted"
TOKEN = "a token for the tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


def copy_of(registry: Registry, folder: Path) -> Registry:
    """A registry of one's own with the same versions and aliases."""
    shutil.copytree(registry.url, folder)
    return Registry(folder)


def add_version(registry, trained, base, folder, task, *, seed, **sections):
    """Publish one more version of a task's adapter, with random weights; only `latest` moves."""
    wanted = recipe(trained.base, task, **sections)
    return publish_stirred(registry, wanted, trained.log, base, folder, seed=seed, encoder=ENCODER)


@contextlib.contextmanager
def serving(engine, refs, *, stream=None, state=None, served=None, **settings):
    """A started service behind a socket; yields it and a client."""
    told = Settings.make(**{"port": 0, "drain_s": 0.0, **settings})
    service = Service(engine, told, stream=stream or io.StringIO(), state=state, served=served)
    listener = bind("127.0.0.1", service.settings.port)
    try:
        service.start(refs)
        server = make_server(service)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            with httpx.Client(base_url=url_of(listener), timeout=60) as client:
                wait_until(lambda: server.started)
                yield service, client
        finally:
            server.should_exit = True
            thread.join()
    finally:
        service.stop()
        listener.close()


def wait_until(ready, seconds=60.0):
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found


class Process:
    """`genre serve` in a process of its own, with its log in a file.

    Attributes:
        url: Where it listens.
        log: The file of its log lines.
    """

    def __init__(self, log: Path, *arguments: str, token: str | None = None, before: str = "") -> None:
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("GENRE_ADMIN_TOKEN", None)
        if token is not None:
            environment["GENRE_ADMIN_TOKEN"] = token
        code = f"{before}\nimport sys\nfrom genre.cli import main\nsys.exit(main(sys.argv[1:]))"
        with log.open("a") as stream:
            command = [sys.executable, "-c", code, "serve", "--port", "0", *arguments]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment)
        line = self.process.stdout.readline()
        assert " at http://" in line, f"{line}{log.read_text()}"
        self.url = line.rsplit(" at ", 1)[1].strip()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def ready(self) -> "Process":
        """Wait until it takes traffic."""

        def asked():
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(self.url + "/readyz").status_code == 200

        wait_until(asked)
        return self

    def end(self, how: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(how)
        code = self.process.wait(60)
        self.process.stdout.close()
        return code

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end(signal.SIGKILL)


def raw(address, *parts, seconds=30.0):
    """Send bytes as they are and read all that comes until the other side closes."""
    with socket.create_connection(address, timeout=seconds) as connection:
        for part in parts:
            connection.sendall(part)
        received = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
        return bytes(received)


def open_engine(trained, registry=None, *, data=True, lanes=8, history_cache=None):
    """An engine on a base of its own."""
    base = genre.Base.load(str(trained.base))
    log = trained.log if data else None
    return genre.Engine(base, registry or trained.registry, lanes=lanes, data=log, history_cache=history_cache)
