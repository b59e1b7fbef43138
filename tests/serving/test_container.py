"""The Dockerfile: what it copies is there, what it runs is understood, its health check tells the truth."""

import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from genre.cli import main

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def commands(word):
    return [found.strip() for found in re.findall(rf"^{word} (.*)$", DOCKERFILE, re.MULTILINE)]


def test_what_is_copied_is_there_and_not_ignored():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = [source for command in commands("COPY") for source in command.split()[:-1]]
    assert set(copied) == {"adapters", "pyproject.toml", "README.md", "LICENSE"}
    for source in copied:
        assert (ROOT / source).exists() and f"!{source}" in rules
    kept = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    for private in ("data", "registry", "runs", ".git", ".venv", "build"):
        assert not any(fnmatch(private, rule) for rule in kept)


def test_it_does_not_run_as_root():
    (user,) = commands("USER")
    assert int(user.split(":")[0]) >= 1000
    assert DOCKERFILE.index("\nUSER") > DOCKERFILE.rindex("\nRUN")  # what is installed stays root's


def test_the_command_is_understood(tmp_path, capsys):
    (entry,) = map(json.loads, commands("ENTRYPOINT"))
    assert entry[:2] == ["genre", "serve"]
    words = [str(tmp_path / "none") if word == "/srv/registry" else word for word in entry[1:]]
    assert main([*words, "--data", "none"]) == 2
    assert capsys.readouterr().err.startswith("genre: no such registry: got ")


def test_the_health_check_tells_the_truth(asked):
    (check,) = re.findall(r"CMD (\[.*\])", DOCKERFILE)
    program, *words = json.loads(check)
    assert program == "python"

    def healthy(port):
        command = [sys.executable, *(word.replace(":8000/", f":{port}/") for word in words)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert healthy(asked.client.base_url.port) and not healthy(9)  # nobody listens on the discard port
