"""Real registry code of several writers, interleaved step by step: every request to the object store is a step.

    bucket = Bucket()
    run(bucket, {"gc": lambda registry: registry.gc(), "publish": lambda registry: registry.publish(folder, draft)}, plan)

A plan is a list of (actor, steps): that many requests of that actor, then the next row; then all run to their ends, the actor of
the last row last. So `[("gc", 7)]` lets a whole publish happen between gc's seventh and eighth request.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from genre.registry import Registry

OPERATIONS = ("find", "exists", "cat_file", "get_file", "put_file", "pipe_file", "rm_file")
Plan = list[tuple[str, int]]
Actor = Callable[[Registry], Any]


class Bucket:
    """An object store in memory, as s3fs shows one: strongly consistent, with creation that fails if the object exists."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.now = 1_000_000.0

    def copy(self) -> "Bucket":
        other = Bucket()
        other.objects, other.now = dict(self.objects), self.now
        return other

    def find(self, path: str, detail: bool) -> dict[str, dict[str, Any]]:
        found = {key: row for key, row in self.objects.items() if key.startswith(path + "/")}
        return {key: {"size": len(data), "mtime": at} for key, (data, at) in sorted(found.items())}

    def exists(self, path: str) -> bool:
        return path in self.objects

    def cat_file(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path][0][start:end]

    def get_file(self, path: str, target: str) -> None:
        Path(target).write_bytes(self.cat_file(path))

    def put_file(self, source: str, path: str) -> None:
        self.pipe_file(path, Path(source).read_bytes())

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and path in self.objects:
            raise FileExistsError(path)
        self.objects[path] = (data, self.now)

    def rm_file(self, path: str) -> None:
        self.objects.pop(path, None)


class Stepped:
    """A file system whose requests wait for their turn in the threads that are actors."""

    def __init__(self, fs: Any, turns: "Turns") -> None:
        self._fs, self._turns = fs, turns

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._fs, name)
        if name not in OPERATIONS:
            return operation

        def step(*arguments: Any, **options: Any) -> Any:
            self._turns.wait(f"{name} {arguments[0]}")
            return operation(*arguments, **options)

        return step


class Turns:
    """One actor runs at a time, from one request up to the next."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.results: dict[str, Any] = {}
        self._go: dict[str, threading.Semaphore] = {}
        self._back = threading.Semaphore(0)
        self._threads: dict[str, threading.Thread] = {}

    def start(self, name: str, work: Callable[[], Any]) -> None:
        def body() -> None:
            self._go[name].acquire()
            try:
                self.results[name] = work()
            except Exception as error:  # judged by the test
                self.results[name] = error
            self._back.release()

        self._go[name] = threading.Semaphore(0)
        self._threads[name] = threading.Thread(target=body, name=name, daemon=True)
        self._threads[name].start()
        self.step(name)  # up to its first request

    def wait(self, what: str) -> None:
        name = threading.current_thread().name
        if name in self._go:
            self._back.release()
            self._go[name].acquire()
            self.trace.append(f"{name}: {what}")

    def step(self, name: str) -> bool:
        """Let an actor make one request and go on up to the next; False if it has ended."""
        if name in self.results:
            return False
        self._go[name].release()
        assert self._back.acquire(timeout=60), f"{name} hangs after {self.trace[-3:]}"
        if name in self.results:
            self._threads[name].join()
        return True


def opened(fs: Any, root: str, cache: Path) -> Registry:
    """A registry on a file system, by the code that serves s3://."""
    registry = Registry("memory://stand-in", cache=cache, single_writer=True)
    objects = registry.store.objects  # type: ignore[attr-defined]
    objects.fs, objects.root, objects.url = fs, root, f"s3://{root}"
    return registry


def run(fs: Any, root: str, cache: Path, actors: Mapping[str, Actor], plan: Plan) -> Turns:
    """Run the actors by a plan; their results, or errors, and the requests in order stand in what is returned."""
    turns = Turns()
    for name, actor in actors.items():
        registry = opened(Stepped(fs, turns), root, cache)
        turns.start(name, lambda actor=actor, registry=registry: actor(registry))
    rest = sorted(actors, key=lambda name: bool(plan) and name == plan[-1][0])
    for name, steps in [*plan, *((name, 10_000) for name in rest)]:
        for _ in range(steps):
            if not turns.step(name):
                break
    return turns


def switches(lengths: Mapping[str, int], rows: int) -> Iterator[Plan]:
    """Every plan of two actors with so many rows: all numbers of requests, either one first."""
    for first, second in itertools.permutations(lengths, 2):
        order = list(itertools.islice(itertools.cycle((first, second)), rows))
        yield from _plans(order, lengths, ())


def _plans(order: list[str], lengths: Mapping[str, int], before: tuple[tuple[str, int], ...]) -> Iterator[Plan]:
    if not order:
        yield list(before)
        return
    left = lengths[order[0]] - sum(steps for name, steps in before if name == order[0])
    for steps in range(1, left + 1):
        yield from _plans(order[1:], lengths, (*before, (order[0], steps)))


def lengths_of(turns: Turns, actors: Iterable[str]) -> dict[str, int]:
    """The number of requests that each actor made."""
    return {name: sum(row.startswith(f"{name}: ") for row in turns.trace) for name in actors}
