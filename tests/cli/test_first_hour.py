"""The commands of docs/first-hour.md, taken from the page: exit codes, time, the longest silence of each, what comes of it."""

import contextlib
import io
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from fakes import make_base
from films import write_films
from genre import cli
from genre.modules.base.packaged import BASES, PREPARED
from genre.registry import Registry
from standins import ROOT

PAGE = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line.removeprefix("$ ") for block in BLOCKS for line in block.splitlines()]
SILENCE_S = 10.0
WHOLE_S = 20 * 60
SERVING = re.compile(r"(?m)^serving (.*) at (http://\S+)\n")


@dataclass
class Ran:
    """What a command printed and how long it took.

    Attributes:
        silence_s: The most seconds in which it printed nothing, without those in which it waited for a core.
        seconds: From its start to its end.
        waited_s: Of them, those in which it was ready and other programs had the cores: none on a quiet machine.
        cpu_s: Of all its threads.
    """

    text: str
    silence_s: float
    seconds: float
    waited_s: float = 0.0
    cpu_s: float = 0.0


class Waits:
    """The time that a process is kept from running, as Linux counts it: of each span that of the thread that waits most."""

    def __init__(self, process: int) -> None:
        self.tasks = Path(f"/proc/{process}/task")
        self.known: dict[str, int] = {}

    def since_last(self) -> float:
        """Seconds since the last call; 0 where they are not counted."""
        now = {}
        with contextlib.suppress(OSError):  # other systems, or a thread that has just ended
            for task in self.tasks.iterdir():
                now[task.name] = int((task / "schedstat").read_text().split()[1])
        waited = max((now[name] - self.known.get(name, 0) for name in now), default=0)
        self.known |= now
        return waited / 1e9


def cpu_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def as_process(command: str, place: Path) -> Ran:
    """Run a command as a process; its output is read as it comes, both streams in one."""
    arguments, used = shlex.split(command), cpu_seconds()
    begun = last = time.perf_counter()
    text, silence_s, waited_s, looked = "", 0.0, 0.0, False
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=place,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    waits = Waits(process.pid)
    try:
        while True:
            chunk = os.read(process.stdout.fileno(), 65536)
            now, waited = time.perf_counter(), waits.since_last()
            silence_s, waited_s, last = max(silence_s, now - last - waited), waited_s + waited, now
            if not chunk:
                break
            text += chunk.decode()
            if not looked and (found := SERVING.search(text)):
                look(*found.groups())
                process.send_signal(signal.SIGINT)
                waited_s += waits.since_last()
                looked, last = True, time.perf_counter()
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert code == 0, f"exit code {code}: {text}"
    now = time.perf_counter()
    return Ran(text, max(silence_s, now - last), now - begun, waited_s, cpu_seconds() - used)


def in_process(command: str, place: Path) -> Ran:
    """Run a command in this process, which has imported everything; a thread looks at the service, and stops it by a signal."""
    out, err, begun = io.StringIO(), io.StringIO(), time.perf_counter()
    faults = []

    def visit() -> None:
        try:
            while not (found := SERVING.search(out.getvalue())):
                time.sleep(0.05)
            look(*found.groups())
        except BaseException as fault:
            faults.append(fault)
        os.kill(os.getpid(), signal.SIGINT)

    if command.startswith("genre serve"):
        threading.Thread(target=visit, daemon=True).start()
    # What a merge keeps of a figure on 40 users is noise, so the small hour merges whatever it keeps.
    words = shlex.split(command.replace("--floor 0.9", "--floor 0"))[1:]
    with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    assert code == 0 and not faults, (code, faults, err.getvalue())
    return Ran(out.getvalue() + err.getvalue(), 0.0, time.perf_counter() - begun)


def fetch(url: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def look(names: str, url: str) -> None:
    """What a browser does first with the service: the page, sample users, the lists of one."""
    assert "films@production" in names
    assert "<title>" in fetch(url) and json.loads(fetch(f"{url}/openapi.json"))["openapi"]
    user = json.loads(fetch(f"{url}/v1/users?sample=true&limit=3"))["users"][0]["user_id"]
    rows = [{"adapter": "films@production", "task": task, "user_id": user, "k": 5} for task in ("next_item", "like")]
    for answer in json.loads(fetch(f"{url}/v1/recommend", {"requests": rows}))["responses"]:
        assert [bool(item["title"]) for item in answer["results"]] == [True] * 5, answer


def walk(place: Path, run: Callable[[str, Path], Ran]) -> dict[str, Ran]:
    """Run every command of the page, in order."""
    ran = {}
    for command in COMMANDS:
        ran[command] = run(command, place)
        report(command, ran[command])
    whole = (sum(getattr(each, name) for each in ran.values()) for name in ("seconds", "waited_s", "cpu_s"))
    report("all of them", Ran("", max(each.silence_s for each in ran.values()), *whole))
    return ran


def report(command: str, ran: Ran) -> None:
    times = f"{ran.seconds:7.1f} s, of which {ran.waited_s:5.1f} s without a core, {ran.cpu_s:7.1f} s of CPU"
    print(f"{times}, longest silence {ran.silence_s:4.1f} s: {command}", flush=True)


def check(ran: dict[str, Ran], place: Path) -> None:
    """One encoder, three adapters, nothing silent for long."""
    assert {command.split()[1] for command in ran} >= {"data", "recipe", "base", "train", "compare", "merge", "registry", "serve"}
    registry = Registry(place / "registry")
    assert registry.verify() == []
    (encoder,) = (name for name in registry.names() if name.startswith("encoder-"))
    assert sorted(registry.names()) == sorted(["films", "like", "next_item", encoder])
    assert len({registry.resolve(name).manifest.encoder for name in ("films", "like", "next_item")}) == 1
    said = "".join(each.text for each in ran.values())
    assert "Traceback" not in said and not re.search(r"(?m)^genre: ", said)
    assert {command: each.silence_s for command, each in ran.items() if each.silence_s > SILENCE_S} == {}
    assert sum(each.seconds - each.waited_s for each in ran.values()) < WHOLE_S


def test_a_new_users_hour_in_small(tmp_path, monkeypatch):
    """300 films and a random base of four layers under the packaged one's name; every command as the page has it."""
    write_films(tmp_path / "films", users=40, films=300, events=1200)
    source = BASES["smollm2-135m"]
    folder = make_base(tmp_path / "cache" / "bases" / f"{source.name}-{source.sha256[:8]}-{source.format}", layers=4)
    (folder / PREPARED).write_text("{}")
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    try:
        check(walk(tmp_path, in_process), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow  # about a quarter of an hour on two cores: the packaged base, 9,000 films
@pytest.mark.timeout(4 * WHOLE_S)  # where other programs have the cores
def test_a_new_users_hour(tmp_path):
    write_films(tmp_path / "films", users=670, films=9000, events=100_000)
    check(walk(tmp_path, as_process), tmp_path)


def test_the_films_are_the_same_each_time(tmp_path):
    a, b = (write_films(tmp_path / name, users=670, films=9000, events=100_000) for name in "ab")
    assert all((a / file).read_bytes() == (b / file).read_bytes() for file in ("ratings.csv", "movies.csv"))
    log = pl.read_csv(a / "ratings.csv")
    assert log.columns == ["userId", "movieId", "rating", "timestamp"] and 95_000 < log.height < 105_000
    assert log["userId"].n_unique() == 670 and pl.read_csv(a / "movies.csv").height == 9000
    assert set(log["rating"].unique()) <= {half / 2 for half in range(1, 11)}
