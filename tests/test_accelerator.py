"""The library on a simulated accelerator, in a process of its own: torch takes one such device per process, and keeps it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(*options: str) -> None:
    """Run the tests of `tests/accelerator`; the first lines of what failed are the message."""
    command = [sys.executable, "-m", "pytest", str(HERE / "accelerator"), "-p", "no:cacheprovider", "--no-header", *options]
    env = os.environ | {"GENRE_SIMULATED": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=HERE.parent, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_on_a_simulated_accelerator() -> None:
    run()


@pytest.mark.slow  # every kind of task, the engine, jobs and the service once more, through Python for every operator
def test_the_whole_on_a_simulated_accelerator() -> None:
    run("-m", "slow")
