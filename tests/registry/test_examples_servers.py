"""docs/examples: scripts for stock PEFT, llama.cpp and vLLM, run as they stand on an exported folder, answer as the engine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served_fakes import World

import genre

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def answers(script: str, folder: Path, *words: str, python: str = sys.executable, **variables: str) -> list[list[float]]:
    """The probabilities that a script prints, before those that the folder names."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | variables
    command = [python, str(EXAMPLES / script), str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = re.findall(r"^\w+: ([\d., e-]+) \(adapter ", done.stdout, re.MULTILINE)
    return [[float(share) for share in line.split(", ")] for line in lines]


def ours(world: World, folder: Path) -> list[float]:
    """The engine's scores of the canaries."""
    canaries = json.loads((folder / "canaries.json").read_text())["canaries"]
    requests: list[Any] = [
        genre.Request("texts", task=each["task"], history=each["history"], candidates=[each["candidate"]]) for each in canaries
    ]
    with genre.Engine(world.base, world.registry, lanes=2) as engine:
        return [answer.results[0].score for answer in engine.score(requests)]


def scores(rows: list[list[float]]) -> list[float]:
    """A probability of two words, or an expectation over stars."""
    return [row[1] if len(row) == 2 else sum((i + 1) * share for i, share in enumerate(row)) for row in rows]


def test_every_script_is_short() -> None:
    found = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("server_*.py")}
    assert found.keys() == {"server_peft.py", "server_llama_cpp.py", "server_vllm.py"} and max(found.values()) < 30


@pytest.mark.slow  # imports torch, transformers and peft in a process of its own
def test_stock_peft(world: World, tmp_path: Path) -> None:
    out = world.registry.export("texts", tmp_path / "out", base=world.tiny)
    assert scores(answers("server_peft.py", out)) == pytest.approx(ours(world, out), abs=1e-3)  # four digits are printed


@pytest.mark.slow  # needs llama-cpp-python
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp(llama_cpp: Any, world: World, tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, (os.environ.get("LLAMA_CPP_PYTHON"), os.environ.get("PYTHONPATH"))))
    out = world.registry.export("texts", tmp_path / "out", to="gguf", base=world.tiny)
    assert scores(answers("server_llama_cpp.py", out, PYTHONPATH=path)) == pytest.approx(ours(world, out), abs=1e-3)
