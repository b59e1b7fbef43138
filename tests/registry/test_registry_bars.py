"""The bars of the registry, by the script that prints them: a share of the counts always, all of them with -m slow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "registry.py"


def run(tmp_path: Path, bar: str, scale: float) -> dict[str, object]:
    command = [sys.executable, str(SCRIPT), "--only", bar, "--scale", str(scale), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    counts: dict[str, object] = json.loads((tmp_path / "out.json").read_text())[bar]
    return counts


@pytest.mark.parametrize(("bar", "scale"), [("kills", 0.06), ("moves", 0.04), ("damage", 0.12)])
def test_a_share(tmp_path: Path, bar: str, scale: float) -> None:
    assert run(tmp_path, bar, scale)["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("bar", ["kills", "moves", "damage", "list", "export"])
def test_in_full(tmp_path: Path, bar: str) -> None:
    assert run(tmp_path, bar, 1.0)["ok"]
