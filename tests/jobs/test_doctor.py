"""`genre doctor`: the page and its JSON, what counts as a problem, and no secret on either."""

import json
import shutil
from importlib.metadata import PackageNotFoundError

import pytest

from genre import __version__, cli
from genre.jobs.doctor import examine
from genre.registry import Registry
from genre.registry.trust.keys import Signer


@pytest.fixture
def place(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.registry.url, "registry")
    return tmp_path


def test_a_page_without_problems(place, capsys):
    assert cli.main(["doctor", "--json", "doctor.json"]) == 0
    page, found = capsys.readouterr().out, json.loads((place / "doctor.json").read_text())
    assert found["problems"] == [] and page.endswith("problems\n  none\n")
    assert found["versions"]["genre"] == __version__ and found["packages"]["torch"] in page
    names = len(Registry("registry").names())  # other tests of this session publish there too
    assert found["registry"] == {"url": "registry", "names": names, "versions": found["registry"]["versions"], "problems": []}
    assert found["registry"]["versions"] >= names >= 4
    assert {"serve", "tune", "pandas"} <= found["extras"].keys() and "dev" not in found["extras"]
    assert max(map(len, page.replace(page.partition("packages\n")[2].partition("registry\n")[0], "").splitlines())) < 130


@pytest.mark.parametrize(
    ("gone", "problem"),
    [("fastapi", None), ("uvicorn", "extra serve: no uvicorn; pip install 'genre-adapters[serve]'")],
)
def test_an_extra_is_there_with_its_first_package(gone, problem, place, monkeypatch):
    def version(name):
        if name == gone:
            raise PackageNotFoundError(name)
        return "99.0"

    monkeypatch.setattr("genre.jobs.doctor.version", version)
    assert [line for line in examine("registry")["problems"] if "extra serve" in line] == ([] if problem is None else [problem])


def test_no_secret_and_no_home_folder_is_shown(place, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("GENRE_ADMIN_TOKEN", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("GENRE_REGISTRY", "memory://me:hunter2@host/models?key=hunter2")
    cli.main(["doctor", "--json", "doctor.json"])
    shown = capsys.readouterr().out + (place / "doctor.json").read_text()
    assert "hunter2" not in shown and "memory://host/models" in shown
    assert "GENRE_ADMIN_TOKEN" in shown and "(set)" in shown
    assert str(place) not in shown and '"working folder": "~"' in shown


def test_who_signs_and_who_is_trusted(tmp_path, monkeypatch):
    pytest.importorskip("cryptography", reason="signatures need the extra sign")
    monkeypatch.chdir(tmp_path)
    key = Signer.generate(tmp_path / "release.key").key
    (tmp_path / "trust.yaml").write_text(f"registry: {{trust: {{keys: ['{key}'], require: false}}}}")
    for name, value in {"GENRE_TRUST": "trust.yaml", "GENRE_ACTOR": "ann", "GENRE_SIGN_KEY": "release.key"}.items():
        monkeypatch.setenv(name, value)
        assert examine("registry")["variables"][name] == value
    monkeypatch.setenv("GENRE_SIGN_KEY", (tmp_path / "release.key").read_text())
    found = examine("registry")["variables"]
    assert found["GENRE_SIGN_KEY"] == "(set, but to no file)" and "PRIVATE" not in str(found)


def test_a_damaged_registry_is_a_problem_and_exit_code_1(place, capsys):
    manifest = next((place / "registry" / "like").glob("*/manifest.json"))
    manifest.write_text("{}")
    next((place / "registry" / "rating").glob("*/heads.safetensors")).unlink()
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr()
    assert "heads.safetensors is missing" in shown.out and f"registry: like:{manifest.parent.name}" in shown.out
    assert "genre: 2 problems found" in shown.err


def test_a_cache_that_cannot_be_written_is_a_problem(place, monkeypatch):
    (place / "file").write_text("")
    monkeypatch.setenv("GENRE_CACHE", str(place / "file" / "cache"))
    assert any("the cache folder lies in a file" in problem for problem in examine("nowhere")["problems"])


def test_a_registry_that_is_not_there_is_no_problem(place):
    assert examine("nowhere")["registry"] == {"url": "nowhere", "names": 0, "versions": 0, "problems": []}
    assert not (place / "nowhere").exists()
