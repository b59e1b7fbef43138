"""The Dockerfile: what it copies is there, what it runs is understood, its health check tells the truth."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from fnmatch import fnmatch
from pathlib import Path

import pytest

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


def arguments():
    """The values of the Dockerfile's ARGs."""
    return dict(line.split("=", 1) for line in commands("ARG"))


def carried_out(step, arguments, root, python):
    """A RUN as it stands, but for the machine's own: pip is the environment's, and folders are below `root`."""
    step = step.replace("pip install", f"{python} -m pip install --quiet").replace("/srv", f"{root}/srv")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | arguments
    done = subprocess.run(["sh", "-ec", step], cwd=root / "opt/genre", env=variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{step}: {done.stderr[-3000:]}"


@pytest.mark.slow  # an environment of its own, with torch
@pytest.mark.timeout(1800)
def test_its_steps_run_one_by_one(tmp_path):
    venv.create(tmp_path / "bare", with_pip=True)
    python, work = tmp_path / "bare/bin/python", tmp_path / "opt/genre"
    work.mkdir(parents=True)
    skipped = []
    for line in DOCKERFILE.splitlines():
        word, _, rest = line.partition(" ")
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                    shutil.copytree(ROOT / source, work / target, ignore=ignored)
                else:
                    shutil.copyfile(ROOT / source, work / target / source)
        elif word == "RUN" and "useradd" in rest:
            skipped.append(rest)  # users are the machine's
            carried_out(next(part for part in rest.split("&&") if "mkdir" in part), {}, tmp_path, python)
        elif word == "RUN":
            carried_out(rest, arguments(), tmp_path, python)
    assert len(skipped) == 1 and (tmp_path / "srv/registry").is_dir()
    (entry,) = map(json.loads, commands("ENTRYPOINT"))
    command = [str(python.with_name(entry[0])), *(f"{tmp_path}{word}" if word.startswith("/srv") else word for word in entry[1:])]
    done = subprocess.run([*command, "--data", "none"], cwd=tmp_path / "srv", capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("genre: "), done.stderr[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # pulls an image and installs torch
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed; the steps run one by one above")
def test_buildah_builds_it():
    build = ["buildah", "build", "--isolation", "chroot", "--tag", "genre-test", "."]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    try:
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        subprocess.run(["buildah", "rmi", "--force", "genre-test"], capture_output=True, check=False)
