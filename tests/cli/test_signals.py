"""Ctrl-C at fractions of the time that a command takes: exit code 1, one line, nothing half-written, and going on works.

The signal is a real one, from a timer; test_interruption.py has every command at a chosen event, and training.
"""

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from builders import LIKE, recipe
from fakes import planted_log
from genre import cli
from genre.registry import Registry

# A signal may come between the opening of a file and the block that closes it: the process ends then, and so does the file.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

EVENTS = 50_000
ROWS = 300
QUICK = ["--set", "train.epochs=1"]


@dataclass(frozen=True)
class Case:
    """A command that takes long enough to be stopped.

    Attributes:
        words: The command line.
        made: What it makes beside versions: its paths begin so.
        kept: What it may leave when it is stopped, and goes on from.
        resume: Options with which it goes on where it kept something.
        moved: The aliases that it moves.
        same: Results that are the same bytes after going on.
    """

    words: str
    made: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    same: tuple[str, ...] = field(default=())


CASES = {
    "data import": Case("data import log.csv --out new", ("new",), same=("new/interactions.parquet",)),
    "evaluate": Case("evaluate like --data shop --json figures.json", ("figures",)),
    "score": Case(
        "score --input in.jsonl --output out.jsonl --data shop", ("out.jsonl",), ("out.jsonl",), ("--resume",), ("out.jsonl",)
    ),
    "recommend": Case(
        "recommend next_item --all-users --output out.jsonl --data shop",
        ("out.jsonl",),
        ("out.jsonl",),
        ("--resume",),
        ("out.jsonl",),
    ),
    "compare": Case("compare like --baseline additive --data shop --json compared.json", ("compared",), same=("compared.json",)),
    "merge": Case("merge like rating --as both --floor 0 --data shop"),
    "refresh": Case("refresh like --data grown --set train.epochs=1", ("runs",), ("runs",)),
    "tune": Case(
        "tune like.yaml --trials 2 --study study --sampler random --search train.learning_rate=log:1e-4:1e-2",
        ("study",),
        ("study",),
    ),
    "crossval": Case("crossval like.yaml --folds 2 --out folds", ("folds",), ("folds",)),
    "bench": Case("bench like.yaml --way head_only --out priced", ("priced",), ("priced",)),
}
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
SLOW = {"bench", "crossval"}
"""Ten seconds and more for a moment: a run of bench is a process that imports torch."""
MOMENTS = [
    pytest.param(command, share, marks=[pytest.mark.slow] if share != 0.5 or command in SLOW else [])
    for command in CASES
    for share in SHARES
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, trained, log):
    folder = tmp_path_factory.mktemp("signals")
    log.write(folder / "shop")
    planted_log(events=40).write(folder / "grown")
    (folder / "log.csv").write_text(
        "user_id,item_id,timestamp,rating\n" + "".join(f"u{n % 97},i{n % 1009},{n},{n % 5 + 1}\n" for n in range(EVENTS))
    )
    rows = (f'{{"id": "{n}", "adapter": "like", "user_id": "u{n % 60}", "candidates": ["i1", "i2"]}}\n' for n in range(ROWS))
    (folder / "in.jsonl").write_text("".join(rows))
    (folder / "like.yaml").write_text(recipe(trained.base, LIKE, data={"path": "shop"}, train={"epochs": 1}).dump())
    return folder


@pytest.fixture
def fresh(made, trained, tmp_path, monkeypatch):
    """Makes the current directory a new one with data, recipe and registry."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    number = iter(range(100))

    def make() -> Path:
        place = tmp_path / str(next(number))
        place.mkdir()
        for path in made.iterdir():
            (place / path.name).symlink_to(path)
        shutil.copytree(trained.registry.url, place / "registry")
        monkeypatch.chdir(place)
        return place

    yield make
    signal.signal(signal.SIGINT, before)


def run(words: list[str], after_s: float | None = None) -> tuple[int | None, str]:
    """Exit code and standard error; a signal comes after so many seconds, or None is returned where the command ended before."""
    err = io.StringIO()
    timer = threading.Timer(after_s or 0.0, os.kill, (os.getpid(), signal.SIGINT))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            if after_s is not None:
                timer.start()
            code = cli.main(words)
            waited = timer.is_alive()
            timer.cancel()
        except KeyboardInterrupt:  # between the end of the command and that of the timer
            return None, ""
        finally:
            # A signal that comes while no_grad begins leaves it off, which the end of a process mends.
            torch.set_grad_enabled(True)
    return (None if after_s is not None and waited else code), err.getvalue()


def files(place: Path) -> set[str]:
    """Paths of files, digests and numbers of runs aside."""
    found = (str(path.relative_to(place)) for path in place.rglob("*") if path.is_file() and ".lock" not in path.name)
    return {re.sub(r"[0-9a-f]{12,}|(?<=^runs/like/)\d+", "*", path) for path in found}


durations: dict[str, float] = {}
wholes: dict[str, tuple[set[str], dict[str, bytes]]] = {}


def words_of(case: Case, trained) -> list[str]:
    registry = [] if case.words.startswith(("data", "crossval")) else ["--registry", "registry"]
    base = ["--base", str(trained.base)] if not case.words.startswith(("data", "tune", "crossval", "bench")) else []
    return [*case.words.split(), *registry, *base]


def whole(command: str, fresh, trained) -> tuple[set[str], dict[str, bytes]]:
    """What the command leaves when nobody stops it."""
    if command not in wholes:
        case = CASES[command]
        for _ in range(2):
            place = fresh()
            begun = time.perf_counter()
            code, said = run(words_of(case, trained))
            durations[command] = time.perf_counter() - begun
            assert code == 0, said
            if durations[command] > 3:  # imports are a small part of it
                break
        wholes[command] = files(place), {name: (place / name).read_bytes() for name in case.same}
    return wholes[command]


@pytest.mark.parametrize(("command", "share"), MOMENTS)
def test_a_signal_in_the_midst(command, share, fresh, trained):
    case = CASES[command]
    left, same = whole(command, fresh, trained)
    for attempt in range(6):  # it may be faster than it was when it was measured
        place = fresh()
        before = files(place)
        code, said = run(words_of(case, trained), durations[command] * share * 0.7**attempt)
        if code is not None:
            break
    assert code == 1, said
    lines = [line for line in said.splitlines() if line.startswith("genre: ")]
    assert len(lines) == 1 and "interrupted" in lines[0] and "Traceback" not in said, said
    now = files(place)
    litter = [path for path in now - before if not path.startswith((*case.kept, "registry/"))]
    if "the work was done already" not in lines[0]:
        assert [path for path in litter if path not in left] == []
    assert [path for path in now if ".tmp" in path or ".old" in path] == []
    assert Registry("registry").verify() == []
    resumed = case.resume if any(path.startswith(case.kept) for path in now - before) else ()
    if "data import" in case.words and (place / "new").exists():
        assert "the work was done already" in lines[0]
        return
    code, said = run([*words_of(case, trained), *resumed])
    assert code == 0, said
    assert files(place) == left
    assert {name: (place / name).read_bytes() for name in case.same} == same
    assert Registry("registry").verify() == []


@pytest.mark.slow  # a process that starts a process, and both import torch
def test_a_signal_of_the_terminal_reaches_the_processes_of_a_bench_too(fresh, trained):
    """A terminal signals the whole group of processes: one line, and no traceback of any of them."""
    place = fresh()
    words = [sys.executable, "-m", "genre", *words_of(CASES["bench"], trained)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True) as bench:
        first = next(line for line in bench.stderr if "loading" not in line)
        time.sleep(1)  # the run's process imports
        os.killpg(bench.pid, signal.SIGINT)
        said = first + bench.stderr.read()
    assert bench.returncode == 1 and said.count("genre: interrupted") == 1 and "Traceback" not in said, said
    assert [path for path in files(place) if ".tmp" in path] == []


@contextlib.contextmanager
def watching(out: io.StringIO, then) -> Iterator[None]:
    """Call a function with the service's address once it is printed."""

    def wait() -> None:
        while not stop.is_set():
            if found := re.search(r"at (http://\S+)\n", out.getvalue()):
                return then(found[1])
            time.sleep(0.01)

    stop = threading.Event()
    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def serve(trained, after_s: float | None) -> tuple[int | None, str, float | None]:
    """Serve until a signal comes: after so many seconds, or once the service answers; the last is the time until then."""
    out, err, begun, up = io.StringIO(), io.StringIO(), time.perf_counter(), []

    def ready(url: str) -> None:
        try:
            with urllib.request.urlopen(f"{url}/livez", timeout=30) as answer:
                assert answer.status == 200
        except OSError:  # the signal came before an answer
            return
        up.append(time.perf_counter() - begun)
        if after_s is None:
            os.kill(os.getpid(), signal.SIGINT)

    words = ["serve", "--adapters", "like", "--data", "shop", "--base", str(trained.base), "--port", "0", "--drain", "0"]
    timer = threading.Timer(after_s or 0.0, os.kill, (os.getpid(), signal.SIGINT))
    with watching(out, ready), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if after_s is not None:
            timer.start()
        code = cli.main(words)
    return code, err.getvalue(), (up or [None])[0]


@pytest.mark.parametrize("share", [pytest.param(share, marks=[pytest.mark.slow] if share != 0.5 else []) for share in SHARES])
def test_a_signal_while_the_service_starts(share, fresh, trained):
    """While it starts: exit code 1 and a line. Once it answers a signal is how it ends: exit code 0."""
    fresh()
    serve(trained, None)
    code, said, start_s = serve(trained, None)
    assert code == 0 and "genre: " not in said
    code, said, up = serve(trained, start_s * share)
    lines = [line for line in said.splitlines() if line.startswith("genre: ")]
    assert (code, len(lines)) == (0, 0) or (up is None and (code, len(lines)) == (1, 1)), said
    assert "Traceback" not in said and all("interrupted" in line for line in lines)
    assert serve(trained, None)[0] == 0
