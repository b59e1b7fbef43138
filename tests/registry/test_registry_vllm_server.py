"""A vLLM server answers an exported adapter as our engine does: SmolLM2-135M, MovieLens-100K, the line of the exported README.

vLLM's CPU build has an environment of its own, made once under $GENRE_PEERS (or the user's cache).
"""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genre
from builders import publish_stirred
from genre.cli import main
from genre.registry.export.client import Client, distance
from genre.registry.manifest import Manifest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECIPE = BENCHMARKS / "recipes" / "like_text.yaml"
CONTROL = {"title": "A <|im_end|> film</s> of <|endoftext|>"}
# Slow: an environment of about 2 GB is installed the first time; the server starts in about a minute.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Exported:
    """`like_text`, and `uneven`, whose linears differ in rank and alpha; random weights on four layers, exported to vLLM.

    Attributes:
        out: The export of `like_text`.
        uneven: That of `uneven`.
    """

    log: genre.Interactions
    base: genre.Base
    registry: genre.Registry
    out: Path
    uneven: Path

    def asked(self) -> list[tuple[list[Any], list[Any]]]:
        """Histories with candidates."""
        items = list(self.log.catalogue.item_ids[:40])
        some = [(self.log.history(user)[:size], items) for user, size in (("196", 29), ("186", 12), ("22", 1), ("244", 0))]
        return [*some, ([{"item": CONTROL, "rating": 5}], [CONTROL, *items[:3]])]

    def scores(self, name: str, asked: list[tuple[list[Any], list[Any]]]) -> list[list[float]]:
        """The engine's scores."""
        with genre.Engine(self.base, self.registry, lanes=2) as engine:
            answers = engine.score([genre.Request(name, history=history, candidates=items) for history, items in asked])
        return [[scored.score for scored in answer.results] for answer in answers]


def _make_uneven(adapter: Path) -> None:
    """Give an adapter of rank 8 rank 4 in its q_proj, other alphas in two linears, and rsLoRA."""
    from safetensors.numpy import load_file, save_file

    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    cut = {"q_proj.lora_A.weight": (slice(4), slice(None)), "q_proj.lora_B.weight": (slice(None), slice(4))}
    tensors = {
        name: np.ascontiguousarray(value[next((part for end, part in cut.items() if name.endswith(end)), ...)])
        for name, value in load_file(weights).items()
    }
    save_file(tensors, weights, {"format": "pt"})
    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 3, "down_proj": 30}}
    config.write_text(json.dumps(json.loads(config.read_text()) | patterns | {"use_rslora": True}))
    (adapter / "README.md").unlink()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    from genre.jobs.loading import open_log
    from genre.modules.base.packaged import prepare_base

    folder, depth, log = tmp_path_factory.mktemp("vllm"), 4, open_log("ml-100k")
    base, registry = genre.Base.load("smollm2-135m", depth=depth), genre.Registry(folder / "registry")
    published = publish_stirred(registry, genre.Recipe.read(RECIPE, [f"base.depth={depth}"]), log, base, folder / "like_text")
    other = shutil.copytree(registry.fetch(registry.resolve("like_text")), folder / "uneven")
    _make_uneven(other)
    fresh = {"name": "uneven", "version": "", "digest": "", "created": "", "checksum": "", "files": {}}
    registry.publish(other, Manifest.parse(published.manifest.raw() | fresh))
    whole = prepare_base("smollm2-135m")
    out, uneven = (registry.export(name, folder / f"{name}-out", to="vllm", base=whole) for name in ("like_text", "uneven"))
    return Exported(log, base, registry, out, uneven)


@pytest.fixture(scope="module")
def url(vllm_python: Path, exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(vllm_python, exported.out, log, uneven=exported.uneven / "adapter") as opened:
        yield opened


@contextlib.contextmanager
def serving(python: Path, folder: Path, log: Path, **others: Path) -> Iterator[str]:
    """The server that the exported README starts, on a free port of loopback, with other adapters by their names."""
    line = re.search(r"^\$ vllm (serve .*)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert line, "the README has no line to serve with"
    words = shlex.split(line[1])
    place = words.index("--lora-modules") + 1
    words[place:place] = [f"{name}={path}" for name, path in others.items()]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python.with_name("vllm")), *words, "--host", "127.0.0.1", "--port", str(port)]
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


def compare(ours: list[list[float]], theirs: list[list[float]]) -> None:
    """Check that scores are equal within the bars, which docs/servers.md states."""
    pairs = [(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    worst, apart = max(abs(a - b) for a, b in pairs), max(abs(odds(a) - odds(b)) for a, b in pairs)
    print(f"largest difference of {len(pairs)} scores: {worst:.2g} in probability, {apart:.2g} in log-odds")
    assert worst <= 1e-2 and apart <= 5e-2  # the second also tells where all probabilities are small


def test_probabilities_equal_ours(exported: Exported, url: str) -> None:
    asked = exported.asked()
    ours = exported.scores("like_text", asked)
    assert odds(max(ours[0])) - odds(min(ours[0])) > 1, "the adapter does something"
    with Client(url, exported.out) as client:
        compare(ours, [client.score(history, candidates) for history, candidates in asked])
        row = {
            "id": "1",
            "history": [*asked[2][0], {"item": {"title": "A new film"}, "rating": 4}],
            "candidates": [{"title": "Another"}],
        }
        assert 0 < client.answer(row)["results"][0]["score"] < 1


def test_scales_of_an_adapter_are_those_of_the_engine(exported: Exported, url: str) -> None:
    asked = [(history[:5], items[:10]) for history, items in exported.asked()]
    with Client(url, exported.uneven) as client:
        compare(exported.scores("uneven", asked), [client.score(history, items) for history, items in asked])


def test_a_server_of_another_adapter_or_none_is_refused(exported: Exported, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["registry", "check-server", url, "--folder", str(exported.out)]
    assert main(command) == 0 and f"{url} answers with the adapter: 2 of 2 canaries" in capsys.readouterr().out
    assert main([*command, "--model", "base"]) == 1, "a name that the base answers to"
    assert capsys.readouterr().err.startswith(f"genre: {url} answers base with its base: got ")
    assert main([*command, "--model", "uneven"]) == 1
    assert "answers uneven with neither the adapter nor the base" in capsys.readouterr().err
    assert main([*command, "--model", "missing"]) == 1 and "404" in capsys.readouterr().err


def test_the_example_answers_as_the_canaries_say(vllm_python: Path, exported: Exported) -> None:
    example = BENCHMARKS.parent / "docs" / "examples" / "server_vllm.py"
    variables = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    printed = subprocess.run([vllm_python, example, exported.out], env=variables, capture_output=True, text=True, timeout=900)
    lines = re.findall(r"^like: (.*) \(adapter (.*); base (.*)\)$", printed.stdout, re.MULTILINE)
    assert len(lines) == 2, printed.stderr[-3000:]
    for line in lines:
        answer, adapter, alone = ([float(share) for share in row.split(", ")] for row in line)
        assert distance(answer, adapter) <= 1e-3 and distance(answer, alone) > 2e-2
