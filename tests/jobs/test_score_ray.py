"""`genre score --engine ray`: the rows of the one-process run, whoever is killed on the way.

The slow ones start a real Ray on loopback, whose workers import torch: 20 s a start on two cores. They need the extra `ray`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from genre import cli
from genre.errors import InputError, NotFoundError
from genre.jobs.score.local import look_ahead
from genre.jobs.score.on_ray import Plan
from genre.jobs.score.requests import RequestFile

SCRIPT = "import sys; from genre.cli import main; sys.exit(main())"
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
ROWS = 3_000
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}


def request(number):
    row = {"id": str(number), "adapter": ("like@production", "next_item", "rating")[number % 3], "user_id": f"u{number % 60}"}
    return row | ({"k": 5} if number % 3 == 1 else {"candidates": [f"i{(number + step) % 30}" for step in range(20)]})


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained):
    folder = tmp_path_factory.mktemp("rays")
    trained.log.write(folder / "shop")
    (folder / "registry").symlink_to(trained.registry.url)
    lines = [json.dumps(request(number)) for number in range(ROWS)]
    lines[7], lines[201] = "no json", json.dumps({**request(201), "adapter": "nope"})
    lines.insert(100, "")
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def arguments(tiny, output, *more, source="in.jsonl"):
    return ["score", "--data", "shop", "--base", str(tiny), "--input", source, "--output", output, *more]


@pytest.fixture(scope="module")
def wanted(place, tiny):
    """What one process answers."""
    assert cli.main(arguments(tiny, "wanted.jsonl")) == 0
    return rows_of("wanted.jsonl")


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# --- without Ray


def plan_of(tiny, source="in.jsonl", **values):
    with RequestFile(source) as file:
        file.need_plain()
        refs, lines = look_ahead(file.lines(), source)
        return Plan.make(source, lines, refs, registry="registry", base=str(tiny), **values)


def test_the_index_has_every_row_once_and_references_mean_one_version(place, tiny, trained):
    plan = plan_of(tiny, workers=1)
    assert plan.rows == ROWS and [chunk.rows for chunk in plan.index] == [64] * (ROWS // 64) + [ROWS % 64]
    numbers = []
    for chunk in plan.index:
        with RequestFile("in.jsonl") as file:
            numbers += [line.number for line, _ in zip(file.lines(chunk.begin, chunk.number), range(chunk.rows), strict=False)]
    assert numbers == [number for number in range(1, ROWS + 2) if number != 101]
    version = trained.registry.resolve("like").digest
    assert plan.exact["like@production"] == f"like:{version}" and "nope" not in plan.exact and plan.refs[0] == "like@production"


def test_a_plan_is_refused_before_ray_starts(place, tiny):
    with pytest.raises(InputError, match="--workers is too large: got 1000; expected at most"):
        plan_of(tiny, workers=1000)
    Path("nobody.jsonl").write_text('{"adapter": "nobody", "history": [], "k": 1}\n')
    with pytest.raises(NotFoundError, match="no adapter 'nobody'"):
        plan_of(tiny, "nobody.jsonl")


def test_a_plan_finds_its_references_after_bad_rows(place, tiny, monkeypatch):
    monkeypatch.setattr("genre.jobs.score.local.LOOK_ROWS", 2)
    late = ['{"adapter": "nobody"}', '{"adapter": 5}', '{"adapter": "like@production", "history": [], "k": 1}']
    Path("late.jsonl").write_text("\n".join(late) + "\n")
    plan = plan_of(tiny, "late.jsonl", exclude_seen=False)
    assert plan.refs == ("like@production",) and plan.rows == 3 and plan.exclude_seen is False
    Path("bad.jsonl").write_text('{"adapter": 5}\n')
    assert plan_of(tiny, "bad.jsonl").refs == ()


def test_threads_are_divided_and_stay_within_what_is_allowed(place, tiny, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [(plan.workers, plan.threads) for plan in (plan_of(tiny), plan_of(tiny, workers=3))] == [(8, 2), (3, 5)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert plan_of(tiny, workers=4).threads == 1


def test_without_ray_one_line_says_what_to_install(place, tiny, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(arguments(tiny, "none.jsonl", "--engine", "ray")) == 2
    assert capsys.readouterr().err == (
        "genre: --engine ray needs another package: got no ray; pip install 'genre-adapters[ray]'\n"
    )
    assert not Path("none.jsonl").exists()


# --- with Ray


def start(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process, find):
    """What `find` gives, once that is true and while the process runs."""
    for _ in range(3000):
        assert process.poll() is None, process.communicate()
        if found := find():
            return found
        time.sleep(0.1)
    raise AssertionError("nothing happened for five minutes")


def family(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def actors(process):
    """The workers that score, by what Ray calls their processes."""
    found = []
    for child in family(process):
        with contextlib.suppress(psutil.Error):
            if child.cmdline() and child.cmdline()[0].startswith("ray::MapWorker"):
                found.append(child)
    return found


def written(path):
    part = Path(path + ".part")
    return part.read_bytes().count(b"\n") if part.exists() else 0


def same(found, wanted):
    assert [row.get("id") for row in found] == [row.get("id") for row in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        if "error" in ours:  # workers know the registry by its whole path
            ours = {**ours, "error": ours["error"].replace(f"{Path.cwd()}/", "")}
        assert {**ours, "results": None} == {**theirs, "results": None}
        ours, theirs = ours.get("results", []), theirs.get("results", [])
        assert [item["item_id"] for item in ours] == [item["item_id"] for item in theirs]
        assert [item["score"] for item in ours] == pytest.approx([item["score"] for item in theirs], abs=1e-5)
    return True


@pytest.mark.slow  # two starts of Ray, and a worker that begins anew
@pytest.mark.timeout(900)
def test_a_killed_worker_loses_and_doubles_nothing(place, tiny, wanted):
    pytest.importorskip("ray", reason="needs the extra ray")
    process = start(*arguments(tiny, "killed.jsonl", "--engine", "ray", "--workers", "2"))
    wait_for(process, lambda: written("killed.jsonl") >= 64 and len(actors(process)) == 2)
    sockets = [each for child in family(process) for each in child.net_connections("inet")]
    assert sockets and {each.laddr.ip for each in sockets} <= LOOPBACK
    assert {each.raddr.ip for each in sockets if each.raddr} <= LOOPBACK
    left, victims = family(process), actors(process)
    os.kill(victims[0].pid, signal.SIGKILL)
    assert written("killed.jsonl") < ROWS - 64 and process.poll() is None  # it really was on the way
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out == f"{ROWS} rows in killed.jsonl, 2 of them errors\n"
    assert all(line.startswith(("scoring  ", f"{ROWS} rows over 2 workers")) for line in err.splitlines()), err
    assert same(rows_of("killed.jsonl"), wanted)
    assert not psutil.wait_procs(left, timeout=30)[1]


@pytest.mark.slow  # two starts of Ray
@pytest.mark.timeout(900)
def test_a_killed_job_goes_on_where_it_was(place, tiny, wanted):
    pytest.importorskip("ray", reason="needs the extra ray")
    command = arguments(tiny, "job.jsonl", "--engine", "ray", "--workers", "1")
    process = start(*command)
    wait_for(process, lambda: written("job.jsonl") >= 64)
    left = family(process)
    process.kill()
    process.communicate()
    before = written("job.jsonl")
    assert 64 <= before < ROWS and not Path("job.jsonl").exists()
    named = {child.pid: child.name() for child in left}
    still = {named[child.pid] for child in psutil.wait_procs(left, timeout=60)[1]}
    assert still <= AGENTS  # Ray's own, which notice later that their node has gone
    process = start(*command, "--resume")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert (
        out == f"{ROWS} rows in job.jsonl ({before} from before), 2 of them errors\n" and f"continuing after {before} rows" in err
    )
    assert same(rows_of("job.jsonl"), wanted)


@pytest.mark.slow  # a start of Ray for each
@pytest.mark.timeout(900)
def test_jobs_that_cannot_go_on_end_in_one_line(place, tiny):
    pytest.importorskip("ray", reason="needs the extra ray")
    process = start(*arguments("nowhere", "base.jsonl", "--engine", "ray", "--workers", "1"))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 2 and not out and err.splitlines()[-1].startswith("genre: no base is called 'nowhere'"), err
    assert not list(place.glob("base.jsonl*"))
    process = start(*arguments(tiny, "poison.jsonl", "--engine", "ray", "--workers", "1"))
    killed = set()
    while process.poll() is None:  # a row that kills every worker
        for each in actors(process):
            killed.add(each.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        time.sleep(0.5)
    out, err = process.communicate()
    assert process.returncode == 1 and err.splitlines()[-1].startswith("genre: a worker failed"), err
    assert len(killed) > 1 and "Ray's logs are in" in err
