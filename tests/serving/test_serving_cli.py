"""`genre serve`: wrong input ends in one line before anything listens; a process starts, follows signals, comes back."""

import signal
import socket

import httpx
import pytest
from serving_fakes import ADMIN, TOKEN, Process, copy_of

from genre.cli import main


@pytest.fixture
def folders(trained, tmp_path):
    registry = copy_of(trained.registry, tmp_path / "registry")
    return registry, trained.log.write(tmp_path / "data"), str(trained.base)


def refuse(capsys, *arguments):
    code = main(["serve", "--port", "0", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1, err
    return err


def test_wrong_input_is_one_line(folders, tmp_path, capsys, monkeypatch):
    registry, _, base = folders
    here = ("--registry", registry.url, "--base", base)
    assert "no such registry" in refuse(capsys, "--registry", tmp_path / "none")
    assert "there is no adapter to serve" in refuse(capsys, "--registry", tmp_path)
    assert "no adapter 'nothing'" in refuse(capsys, *here, "--adapters", "nothing")
    assert "no alias like@candidate" in refuse(capsys, *here, "--adapters", "like@candidate")
    assert "not a usable name" in refuse(capsys, *here, "--adapters", "../like")
    assert "name its folder with --base" in refuse(capsys, "--registry", registry.url)
    assert "is a behaviour encoder" in refuse(capsys, *here, "--adapters", "like", "--adapters", "encoder-planted")
    assert "no data set folder" in refuse(capsys, *here, "--data", tmp_path / "none")
    assert "--lanes is too small" in refuse(capsys, *here, "--lanes", 0)
    assert "port cannot be used: got 70000" in refuse(capsys, *here, "--port", 70000)
    assert "--host cannot be used: got no-such-host.invalid" in refuse(capsys, *here, "--host", "no-such-host.invalid")
    assert "no such quantization" in refuse(capsys, *here, "--quantization", "int3")
    assert "no such precision: got --precision fp16; expected auto," in refuse(capsys, *here, "--precision", "fp16")
    assert "--canary cannot be read: got 'like'" in refuse(capsys, *here, "--canary", "like")
    assert "canary cannot be used" in refuse(capsys, *here, "--canary", "like=2")
    assert "a canary needs the name's production to be served: got nope" in refuse(capsys, *here, "--canary", "nope=0.5")
    assert "timeout_s cannot be used: got 0.0" in refuse(capsys, *here, "--timeout", 0)
    assert "explore_pool cannot be used: got 0" in refuse(capsys, *here, "--explore-pool", 0)
    assert "--explore cannot be used: got 'best'" in refuse(capsys, *here, "--explore", "best")
    assert "--history-cache cannot be read: got '2 lots'" in refuse(capsys, *here, "--history-cache", "2 lots")
    assert "DIR:SIZE" in refuse(capsys, *here, "--history-cache-disk", "20GiB")
    assert "no such history-cache-storage" in refuse(capsys, *here, "--history-cache-storage", "int4")
    assert "--history-cache-ttl cannot be used: got -1.0" in refuse(capsys, *here, "--history-cache-ttl", -1)
    assert "--state cannot be used" in refuse(capsys, *here, "--state", tmp_path / "none" / "state.json")
    assert "--state cannot be used" in refuse(capsys, *here, "--state", tmp_path)
    (tmp_path / "state.json").write_text("{}[")
    assert "remove it to start over" in refuse(capsys, *here, "--state", tmp_path / "state.json")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "the address cannot be used" in refuse(capsys, *here, "--port", taken.getsockname()[1])
    monkeypatch.setenv("GENRE_ADMIN_TOKEN", "short-token")
    said = refuse(capsys, *here)
    assert "at least 16 characters" in said and "short-token" not in said


@pytest.mark.slow  # four processes that import torch
def test_a_process_serves_its_registry_and_comes_back_after_a_kill_with_the_same_aliases(folders, tmp_path):
    registry, data, base = folders
    arguments = (
        "--registry",
        registry.url,
        "--base",
        base,
        "--data",
        str(data),
        "--drain",
        "0",
        "--state",
        str(tmp_path / "state.json"),
    )
    log = tmp_path / "log.jsonl"
    row = {"adapter": "like", "user_id": "u3", "candidates": ["i0"]}
    with Process(log, *arguments, token=TOKEN) as process:
        process.ready()
        served = httpx.get(process.url + "/v1/adapters").json()["adapters"]
        assert [one["ref"] for one in served] == ["like@production", "next_item@production", "rating@production"]
        (before,) = httpx.post(process.url + "/v1/score", json={"requests": [row]}).json()["responses"]
        assert httpx.post(process.url + "/v1/admin/promote", json={"ref": "like"}, headers=ADMIN).status_code == 200
        for act, ref in (("load", "rating"), ("unload", "rating@production")):
            done = httpx.post(process.url + f"/v1/admin/{act}", json={"ref": ref}, headers=ADMIN)
            assert done.json()["remembered"] is True
        served = httpx.get(process.url + "/v1/adapters").json()["adapters"]
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
    often = "import genre.progress; genre.progress.EVERY_S = 0.001"
    with Process(log, *arguments, before=often) as process:
        process.ready()
        again = httpx.get(process.url + "/v1/adapters").json()["adapters"]
        assert [one["ref"] for one in again] == ["like@production", "next_item@production", "rating"]
        assert [(one["ref"], one["digest"], one["aliases"]) for one in again] == [
            (one["ref"], one["digest"], one["aliases"]) for one in served
        ]
        (after,) = httpx.post(process.url + "/v1/score", json={"requests": [row]}).json()["responses"]
        assert after == before
        started = [line for line in process.log.read_text().splitlines() if '"event": "starting"' in line]
        assert started and '"message": "loading the base' in "".join(started)
        assert process.end(signal.SIGTERM) == 0
    with Process(log, *arguments) as process:
        assert process.ready().end(signal.SIGINT) == 0
    assert TOKEN not in log.read_text()
