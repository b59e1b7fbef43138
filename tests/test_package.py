"""The package: a wheel and an sdist built, checked, and the wheel installed into a bare environment; extras; versions of Python.

Slow: environments of their own are made, with torch in one of them, and the package index is asked.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
HARMLESS = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}


def run(command: Sequence[str | Path], folder: Path, timeout: int = 1500) -> str:
    """The output of a command that knows nothing of this checkout."""
    done = subprocess.run(list(map(str, command)), cwd=folder, env=HARMLESS, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def environment(folder: Path, *packages: str | Path) -> Path:
    """The python of a new environment with some packages."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if packages:
        run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], folder)
    return python


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is committed or would be, without what lies about."""
    target = tmp_path_factory.mktemp("package") / "source"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for file in filter(None, files):
        if (ROOT / file).is_file():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, target / file)
    return target


@pytest.fixture(scope="module")
def built(source: Path) -> tuple[Path, Path]:
    """The wheel and the sdist; the wheel is built from the sdist, so this holds all that a build needs."""
    python = environment(source.parent / "tools", "build", "twine")
    run([python, "-m", "build", "--outdir", source.parent / "dist", source], source.parent)
    (wheel,) = (source.parent / "dist").glob("*.whl")
    (sdist,) = (source.parent / "dist").glob("*.tar.gz")
    run([python, "-m", "twine", "check", "--strict", wheel, sdist], source.parent)
    return wheel, sdist


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_holds_the_library_and_no_more(built: tuple[Path, Path], source: Path) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    root = source / "adapters"
    committed = {path.relative_to(root).as_posix() for path in (root / "genre").rglob("*") if path.is_file()}
    assert names == committed, "every module, page, template, table and marker, no test, no recipe"
    assert {"genre/py.typed", "genre/serving/page/index.html", "genre/data/packaged/ml_100k_movies.csv"} <= names
    for version in VERSIONS:
        assert f"Classifier: Programming Language :: Python :: {version}" in metadata
    with tarfile.open(built[1]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "adapters/genre/serving/page/index.html"} <= inside


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_runs_where_nothing_else_is(built: tuple[Path, Path], tmp_path: Path) -> None:
    python = environment(tmp_path / "bare", "torch==2.13.0", f"{built[0]}[serve]")
    genre = python.with_name("genre")
    assert re.fullmatch(r"genre \d+\.\d+\S*\n", run([genre, "--version"], tmp_path))
    assert "registry" in run([genre, "--help"], tmp_path)
    where = run([python, "-c", "import genre, genre.serving.http.app; print(genre.__file__); genre.Engine"], tmp_path)
    assert str(tmp_path / "bare") in where
    run([python, "-m", "pip", "check"], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_extras_resolve_together(source: Path, tmp_path: Path) -> None:
    extras = ",".join(PROJECT["project"]["optional-dependencies"])
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    run([*command, "--report", tmp_path / "report.json", f"{source}[{extras}]"], tmp_path)
    found = {each["metadata"]["name"] for each in json.loads((tmp_path / "report.json").read_text())["install"]}
    assert {"genre-adapters", "torch", "fastapi", "optuna", "pyarrow", "s3fs", "ray", "wandb"} <= found


def test_classifiers_and_the_lower_bound_agree() -> None:
    named = [each.rpartition(" ")[2] for each in PROJECT["project"]["classifiers"] if "Python :: 3." in each]
    assert tuple(named) == VERSIONS and PROJECT["project"]["requires-python"] == f">={VERSIONS[0]}"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_every_module_compiles(version: str) -> None:
    """By the interpreter of that version, where the machine has it; the oldest one's grammar is checked here in any case."""
    files = sorted((ROOT / "adapters").rglob("*.py"))
    if version == VERSIONS[0]:
        for file in files:
            ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 11))
    roots = (Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python{version}")
    python = next(iter(roots), None) or shutil.which(f"python{version}")
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    check = "import sys, pathlib; [compile(pathlib.Path(f).read_bytes(), f, 'exec', dont_inherit=True) for f in sys.argv[1:]]"
    run([python, "-W", "error::SyntaxWarning", "-c", check, *files], ROOT)
