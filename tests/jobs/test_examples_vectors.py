"""docs/examples: the scripts for vector indexes, run as they stand in an exported folder, give the engine's answers."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

import genre
from genre.engine import Engine, Request
from standins import ROOT

pytestmark = pytest.mark.slow  # a Python of its own for each, with a library that loads for seconds

SCRIPTS = sorted((ROOT / "docs" / "examples").glob("vectors_*.py"))
CLOSE = 1e-4


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_gives_the_engines_answers(script, trained, base, tmp_path):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 30
    for name in set(re.findall(r"(?m)^(?:import|from) (faiss|qdrant_client|lancedb)", text)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    genre.export.vectors(trained.registry, "next_item", tmp_path / "out", base=base, data=trained.log, users=True)
    with Engine(base, trained.registry, data=trained.log) as engine:
        for user in trained.log.user_ids[:2]:
            done = subprocess.run(
                [sys.executable, str(script), user, "10"],
                cwd=tmp_path / "out",
                env=os.environ | {"PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            (response,) = engine.score([Request("next_item", user_id=user, k=10)])
            assert [item for item, _ in found] == [item.item_id for item in response.results]
            assert [score for _, score in found] == pytest.approx([item.score for item in response.results], abs=CLOSE)
            assert "faiss" not in script.stem or re.search(r"recall@10 of HNSW: [01]\.\d{4}", done.stderr)
