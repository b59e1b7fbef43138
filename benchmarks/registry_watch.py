"""What sealed hostile versions do to whoever reads them: the section `sealed` of `registry.py`.

Owns: reading each in every way that there is, its time and memory, counting. Ignores: how they are made (`registry_sealed.py`).
"""

import collections
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genre.engine import Engine
from genre.errors import GenreError
from genre.registry import Registry
from registry_sealed import KINDS, offer
from serving_world import make
from tiny_world import NAME

MOST_S, MOST_BYTES = 2.0, 200 * 2**20
STUCK_S = 60.0
"""Wall time after which a read is ended: it waits for something that never comes."""
ROW = {"user_id": "u1", "candidates": ["i1", "i2"]}


class Stuck(BaseException):
    """A read took longer than `STUCK_S`; no `Exception`, so that nobody handles it."""


def sealed(root: Path, scale: float) -> dict[str, Any]:
    """1,000 sealed hostile versions: none may load, crash, or take 2 s of a core or 200 MiB.

    The good version is read in the same way first: what it takes is the control.
    """
    total = max(len(KINDS), int(1000 * scale))
    world = make(root / "world", NAME, NAME, 2, rows=12)
    registry = Registry(world.registry)
    count, kinds = collections.Counter[str](), collections.Counter[str]()
    wrong: list[str] = []
    most = {"seconds_most": 0.0, "mib_most": 0.0}
    with world.engine() as engine:
        engine.load("like@production", pin=True)
        control = _read(registry, engine, "like@production", "like", root / "export")
        for seed in range(total):
            what, name, ref = offer(seed, registry, "like@production", root / f"work{seed}")
            found = _read(registry, engine, ref, name, root / "export")
            kinds[what.partition(":")[0]] += 1
            count["loaded"] += found.loaded
            count["crashed"] += bool(found.crashes)
            count["over_2_s"] += found.seconds > MOST_S
            count["over_200_mib"] += found.peak > MOST_BYTES
            most["seconds_most"] = max(most["seconds_most"], found.seconds)
            most["mib_most"] = max(most["mib_most"], found.peak / 2**20)
            if found.loaded or found.crashes or found.seconds > MOST_S or found.peak > MOST_BYTES:
                wrong.append(f"{seed} {what}: {found}"[:400])
                print(wrong[-1], file=sys.stderr, flush=True)
            for folder in (f"h{seed}", f"h{seed}-encoder"):
                shutil.rmtree(Path(registry.url) / folder, ignore_errors=True)
            shutil.rmtree(root / f"work{seed}", ignore_errors=True)
        good = engine.score([{"adapter": "like@production", **ROW}])[0].error is None
    figures = ("loaded", "crashed", "over_2_s", "over_200_mib")
    return {
        "cases": total,
        **{name: count[name] for name in figures},
        **{name: round(value, 2) for name, value in most.items()},
        "control_seconds": round(control.seconds, 2),
        "control_mib": round(control.peak / 2**20, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "good_after": good,
        "kinds": dict(kinds),
        "wrong": wrong[:40],
        "ok": good and not any(count[name] for name in figures),
    }


class _Found:
    """The outcome of reading one version.

    Attributes:
        loaded: It could be loaded for scoring.
        crashes: Errors that are no refusals, by what was asked.
        seconds: Of a core, for what takes longest.
        peak: Bytes of memory beyond those before.
    """

    def __init__(self) -> None:
        self.loaded = False
        self.crashes: list[str] = []
        self.seconds = 0.0
        self.peak = 0
        self.answers: dict[str, str] = {}

    def __str__(self) -> str:
        state = ["loaded"] * self.loaded + self.crashes
        return f"{'; '.join(state)} {self.seconds:.2f} s {self.peak / 2**20:.0f} MiB {self.answers}"


def _read(registry: Registry, engine: Engine, ref: str, name: str, out: Path) -> _Found:
    """Read a version in every way that there is."""
    found = _Found()
    asked: dict[str, Callable[[], object]] = {
        "load": lambda: engine.load(ref),
        "load by alias": lambda: engine.load(f"{name}@production"),
        "score": lambda: engine.score([{"adapter": ref, **ROW}]),
        "fetch": lambda: registry.fetch(ref),
        "promote": lambda: registry.promote(ref, "other"),
        "roll back": lambda: registry.rollback(name),
        "history": lambda: registry.history(name),
        "show": lambda: registry.resolve(ref)._repr_html_(),
        "lineage": lambda: registry.lineage(ref),
        "diff": lambda: registry.diff(ref, "like@production"),
        "baselines": lambda: registry.baselines(ref),
        "list": registry.list,
        "verify": lambda: registry.verify(name),
        "export": lambda: registry.export(ref, out),
    }
    before = _restart_peak()
    for what, act in asked.items():
        begun = time.process_time()
        try:
            with _alarm():
                act()
            if what.startswith("load"):
                found.loaded = True
                engine.unload(ref if what == "load" else f"{name}@production")
        except GenreError as error:
            found.answers[what] = str(error)[:80]
        except Stuck:
            found.crashes.append(f"{what} is stuck")
        except Exception as error:
            found.crashes.append(f"{what}: {type(error).__name__}: {error}"[:160])
        found.seconds = max(found.seconds, time.process_time() - begun)
    found.peak = _peak() - before
    shutil.rmtree(out, ignore_errors=True)
    return found


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Stuck

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, STUCK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _restart_peak() -> int:
    """Forget the process's largest memory so far; its memory now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _of_status("VmRSS")


def _peak() -> int:
    return _of_status("VmHWM")


def _of_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
