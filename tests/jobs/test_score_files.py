"""`genre score` and `recommend --all-users` in pieces: what is read, what a killed job leaves, how it goes on, flat memory."""

import gzip
import io
import json
import shutil
import subprocess
import sys

import pytest
from filelock import FileLock

from builders import LIKE, disk_of, publish_stirred, recipe
from genre import cli
from genre.errors import DiskError, InputError
from genre.jobs.score import local as scoring
from genre.jobs.score import requests as request_file
from genre.jobs.score import results as results_file
from genre.jobs.score.local import Scorer, look_ahead
from genre.jobs.score.requests import Line, RequestFile, chunks, read_row
from genre.jobs.score.results import Results
from genre.modules.base.base import Base
from genre.progress import Bar, Reporter
from genre.registry import Registry

GOOD = {"adapter": "like@production", "user_id": "u1", "candidates": ["i1", "i2"]}


def request(number, **values):
    return json.dumps({"id": str(number), **GOOD, "user_id": f"u{number % 60}", **values})


@pytest.fixture(scope="module")
def made(tmp_path_factory, trained):
    """A data set, and 150 requests to three adapters, some of them wrong, with a blank line and a byte order mark."""
    place = tmp_path_factory.mktemp("made")
    trained.log.write(place / "shop")
    lines = [request(number) for number in range(150)]
    lines[3], lines[71] = "no json", request(71, adapter="nope")
    for number in range(0, 150, 7):
        lines[number] = request(number, adapter="next_item", candidates=None, k=3)
    lines.insert(5, "   ")
    (place / "registry").symlink_to(trained.registry.url)
    (place / "in.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    (place / "in.gz").write_bytes(gzip.compress((place / "in.jsonl").read_bytes()))
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def score(place, tiny, capfd):
    """Run `genre score`; its code, standard output and standard error."""

    def run(*arguments, source="in.jsonl", output="out.jsonl"):
        code = cli.main(["score", "--data", "shop", "--base", str(tiny), "--input", source, "--output", output, *arguments])
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return run


def test_bad_rows_fail_alone_wherever_the_first_request_stands(place, score, monkeypatch):
    monkeypatch.setattr(scoring, "LOOK_ROWS", 100)
    bad = [json.dumps({"id": str(number), "adapter": "like@production", "histroy": []}) for number in range(150)]
    late = [request(150, adapter="ghost"), request(151), "no json", request(152, adapter="next_item", candidates=None, k=3)]
    (place / "late.jsonl").write_text("\n".join(["[1]", *bad, *late]), encoding="utf-8")
    code, out, _ = score(source="late.jsonl")
    assert code == 0 and "155 rows in out.jsonl, 153 of them errors" in out
    rows = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    assert "unknown field: got histroy" in rows[1]["error"] and rows[1]["id"] == "0" and "ghost" in rows[151]["error"]
    assert len(rows[152]["results"]) == 2 and "line 154 is not JSON" in rows[153]["error"] and len(rows[154]["results"]) == 3


def test_a_file_of_bad_requests_alone_is_a_file_of_errors(place, score):
    (place / "bad.jsonl").write_text(json.dumps({"id": "1", "adapter": "like"}) + "\n", encoding="utf-8")
    code, out, _ = score(source="bad.jsonl")
    assert code == 0 and "1 rows in out.jsonl, 1 of them errors" in out
    assert json.loads((place / "out.jsonl").read_text())["id"] == "1"
    (place / "none.jsonl").write_text('["like"]\n5\n', encoding="utf-8")
    code, _, shown = score(source="none.jsonl", output="none.out")
    assert code == 2 and "no row of the input is a request: got none.jsonl: line 1: a request is not a JSON object" in shown


def test_late_requests_of_unknown_adapters_fail_alone(place, score, monkeypatch):
    monkeypatch.setattr(scoring, "LOOK_ROWS", 1)
    (place / "ghosts.jsonl").write_text("{}\n" + request(1, adapter="ghost") + "\n", encoding="utf-8")
    code, out, _ = score(source="ghosts.jsonl")
    assert code == 0 and "2 rows in out.jsonl, 2 of them errors" in out and "ghost" in (place / "out.jsonl").read_text()


def test_seen_items_for_rows_that_do_not_say(place, score, trained):
    rows = [
        request(n, adapter="next_item", candidates=None, k=30, user_id="u1", **more)
        for n, more in enumerate(
            (
                {},
                {"exclude_seen": True},
                {"exclude_seen": False},
            )
        )
    ]
    (place / "seen.jsonl").write_text("\n".join(rows), encoding="utf-8")
    counts = {}
    for seen in ([], ["--seen", "kept"], ["--seen", "masked"]):
        name = "-".join(["out", *seen]).replace("--", "")
        assert score(*seen, source="seen.jsonl", output=name)[0] == 0
        counts[tuple(seen)] = [len(json.loads(line)["results"]) for line in (place / name).read_text().splitlines()]
    every, fresh = 30, 30 - len({event["item_id"] for event in trained.log.history("u1")})
    assert counts[()] == [fresh, fresh, every] == counts["--seen", "masked"]
    assert counts["--seen", "kept"] == [every, fresh, every]
    code, _, shown = score("--seen", "all", source="seen.jsonl", output="x")
    assert code == 2 and "no such seen: got --seen all; expected masked or kept" in shown


@pytest.fixture(scope="module")
def whole(made, tiny):
    """What the requests give in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        arguments = ["--data", "shop", "--base", str(tiny), "--input", "in.jsonl", "--output", "whole.jsonl"]
        assert cli.main(["score", *arguments]) == 0
    return (made / "whole.jsonl").read_bytes()


def lines_of(path, **values):
    with RequestFile(path) as file:
        return list(file.lines(**values))


# --- reading


def test_lines_know_where_they_begin(tmp_path):
    (tmp_path / "in").write_bytes(b"\n a\r\n\n\nbb\nccc")
    found = lines_of(tmp_path / "in")
    assert [(line.number, line.begin, line.raw) for line in found] == [(2, 1, b" a\r\n"), (5, 7, b"bb\n"), (6, 10, b"ccc")]
    for place, line in enumerate(found):
        assert lines_of(tmp_path / "in", begin=line.begin, number=line.number) == found[place:]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_line_that_is_too_long_fails_alone(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(request_file, "LINE_BYTES", 100)
    content = request(1) + "\n" + request(2, note="x" * 1000) + "\n" + request(3)[:50] + "\n" + "y" * 101
    (tmp_path / "in").write_bytes(pack(content.encode()))
    found = lines_of(tmp_path / "in")
    assert [line.number for line in found] == [1, 2, 3, 4] and all(len(line.raw) <= 101 for line in found)
    errors = [row.get("error") if isinstance(row, dict) else None for row in map(read_row, found)]
    assert errors[0] is None and "line 2: too long: got more bytes; expected at most 100" in errors[1]
    assert "line 3 is not JSON" in errors[2] and "line 4: too long" in errors[3]


def test_chunks_are_bounded_in_rows_and_in_bytes(tmp_path, monkeypatch):
    (tmp_path / "in").write_bytes(b"x\n" * 150)
    assert [len(chunk) for chunk in chunks(lines_of(tmp_path / "in"))] == [64, 64, 22]
    monkeypatch.setattr(request_file, "CHUNK_BYTES", 20)
    assert {len(chunk) for chunk in chunks(lines_of(tmp_path / "in"))} == {10}


def test_chunks_that_grow_hold_every_row_in_order():
    found = list(chunks(range(2000), grow=True))
    assert [len(chunk) for chunk in found] == [64, 128, 256, 512, 512, 512, 16]
    assert [row for chunk in found for row in chunk] == list(range(2000))


@pytest.mark.parametrize("grow", [True, False])
def test_chunks_of_a_resumed_job_end_where_those_of_a_whole_one_do(grow):
    whole = [chunk[-1] for chunk in chunks(range(2000), grow=grow)]
    for done in (0, 1, 64, 65, 100, 192, 960, 1471, 1472, 1999):
        found = list(chunks(range(done, 2000), grow=grow, done=done))
        assert [row for chunk in found for row in chunk] == list(range(done, 2000))
        assert [chunk[-1] for chunk in found] == [last for last in whole if last >= done]


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_what_stands_before_damage_comes_first(tmp_path, harm):
    import random

    draw = random.Random(0)
    packed = gzip.compress("".join(f"{draw.random()}\n" for _ in range(20_000)).encode())
    half = len(packed) // 2
    broken = packed[:half] if harm == "cut" else packed[:half] + bytes([packed[half] ^ 255]) * 64 + packed[half + 64 :]
    (tmp_path / "in.gz").write_bytes(broken)
    rows = 0
    with RequestFile(tmp_path / "in.gz") as file, pytest.raises(InputError, match="the input is damaged in line") as error:
        for chunk in chunks(file.lines()):
            rows += len(chunk)
    assert rows > 1_000
    assert f"line {rows + 1}:" in str(error.value) or harm == "flipped"  # which may have made blank lines


@pytest.mark.parametrize("whole", [10, 999, 1_000, 1_023, 1_024, 1_500])
def test_damage_near_the_end_of_the_look_ahead_is_never_lost(whole):
    """Looking ahead refuses damage that it meets; the lines that it gives back refuse damage behind it."""

    def lines():
        for number in range(1, whole + 1):
            yield Line(number, 0, request(number).encode())
        raise InputError(f"the input is damaged in line {whole + 1}")

    read = 0
    with pytest.raises(InputError, match=f"the input is damaged in line {whole + 1}"):
        refs, rest = look_ahead(lines(), "in.gz")
        assert refs == ["like@production"]
        for chunk in chunks(rest):
            read += len(chunk)
    assert read == (whole if whole >= scoring.LOOK_ROWS else 0)


PEAK = """
import sys, tracemalloc
from pathlib import Path
from genre.jobs.score.requests import RequestFile, chunks, read_row
path = Path(sys.argv[1])
with RequestFile(path) as file:
    read_row(next(iter(file.lines())))  # imports what it needs
tracemalloc.start()
with RequestFile(path) as file:
    count = sum(len([read_row(line) for line in chunk]) for chunk in chunks(file.lines()))
print(count, tracemalloc.get_traced_memory()[1])
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    """10,000 rows of 6 MB go through in the memory of a few chunks; in a process of its own, where no other thread allocates."""
    row = request(1, deny=["x" * 500]).encode() + b"\n"
    (tmp_path / "in").write_bytes(row * 10_000)
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "in")], capture_output=True, text=True, check=True)
    count, peak = map(int, done.stdout.split())
    assert count == 10_000 and peak < 2_000_000


# --- going on


def test_the_output_appears_when_it_is_whole(score, whole, place):
    code, out, err = score()
    assert code == 0 and "150 rows in out.jsonl, 2 of them errors" in out and "Traceback" not in err
    assert (place / "out.jsonl").read_bytes() == whole and not (place / "out.jsonl.part").exists()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["id"] for row in rows] == [None if number == 3 else str(number) for number in range(150)]
    assert "line 4 is not JSON" in rows[3]["error"] and "no adapter 'nope'" in rows[71]["error"]


@pytest.mark.parametrize("rows", [0, 1, 64, 100, 150])
def test_an_unfinished_output_goes_on_after_its_last_whole_line(score, whole, place, rows):
    lines = whole.splitlines(keepends=True)
    (place / "out.jsonl.part").write_bytes(b"".join(lines[:rows]) + (lines[rows][:30] if rows < 150 else b""))
    code, _, err = score()
    assert code == 2 and "there is an unfinished output: got out.jsonl.part; expected a new file; continue with --resume" in err
    code, out, _ = score("--resume")
    before = f" ({rows} from before)" if rows else ""
    assert code == 0 and f"150 rows in out.jsonl{before}, 2 of them errors" in out
    found = (place / "out.jsonl").read_bytes().splitlines()
    assert len(found) == 150 and found[:rows] == whole.splitlines()[:rows]
    for ours, theirs in zip(map(json.loads, found), map(json.loads, whole.splitlines()), strict=True):
        assert {**ours, "results": None} == {**theirs, "results": None}
        scores = [[item["score"] for item in row.get("results", [])] for row in (ours, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_reference_means_the_same_after_the_break(place, tiny, score, whole, trained):
    """An alias that moved meanwhile does not divide the output."""
    (place / "registry").unlink()
    shutil.copytree(trained.registry.url, place / "registry")
    store, base = Registry(place / "registry"), Base.load(str(tiny))
    digest = store.resolve("like").digest
    (place / "out.jsonl.part").write_bytes(b"".join(whole.splitlines(keepends=True)[:64]))
    wanted = recipe(tiny, LIKE, encoder={"use": "encoder-planted"})
    other = publish_stirred(store, wanted, trained.log, base, place / "other", encoder="encoder-planted")
    store.promote(other.ref, "production")
    assert score("--resume")[0] == 0
    rows = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    assert {row.get("digest") for row in rows if row.get("adapter") == "like@production"} == {digest}
    assert score(output="new.jsonl")[0] == 0
    assert other.digest in (place / "new.jsonl").read_text() and digest not in (place / "new.jsonl").read_text()


def test_a_version_that_cannot_be_read_any_more_fails_its_own_rows(place, tiny, score, whole, trained):
    """Another version that has its alias by now does not answer in its place."""
    (place / "registry").unlink()
    shutil.copytree(trained.registry.url, place / "registry")
    store, base = Registry(place / "registry"), Base.load(str(tiny))
    version = store.resolve("like")
    (place / "out.jsonl.part").write_bytes(b"".join(whole.splitlines(keepends=True)[:64]))
    other = publish_stirred(
        store,
        recipe(tiny, LIKE, encoder={"use": "encoder-planted"}),
        trained.log,
        base,
        place / "other",
        encoder="encoder-planted",
    )
    store.promote(other.ref, "production")
    broken = place / "registry" / "like" / version.version / "adapter_model.safetensors"
    broken.chmod(0o644)
    broken.write_bytes(b"no weights")
    assert score("--resume")[0] == 0
    rows = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()][64:]
    failed = [row for row in rows if row.get("adapter") == "like@production"]
    assert failed and all("adapter_model.safetensors" in row["error"] for row in failed)
    assert all("results" in row for row in rows if row.get("adapter") == "next_item")


REFUSED = {
    "whole": ("out.jsonl", None, (), "the file exists: got out.jsonl; expected a new file"),
    "other ids": ("out.jsonl.part", '{"id": "x"}\n', ("--resume",), "is of another input: got id '0' in row 1; expected id 'x'"),
    "more rows": ("out.jsonl.part", '{"id": "x"}\n' * 151, ("--resume",), "of another input: got 150 rows; expected at least"),
    "other things": ("out.jsonl.part", "a,b\n", ("--resume",), "is not a result file: got out.jsonl.part, line 1; expected rows"),
    **{
        f"odd row {number}": ("out.jsonl.part", row + "\n", ("--resume",), "is not a result file: got out.jsonl.part, line 1")
        for number, row in enumerate(
            (
                "5",
                "[]",
                '"id"',
                '["id"]',
                '{"id": "0", "digest": "0"}',
                '{"id": "0", "adapter": ["like"], "digest": "0"}',
                '{"id": "0", "adapter": "like", "digest": [0]}',
                "[" * 100_000,
            )
        )
    },
    "a version that is gone": (
        "out.jsonl.part",
        json.dumps({"id": "0", "adapter": "like", "digest": "0" * 64}) + "\n",
        ("--resume",),
        "the unfinished output was written with like:000000000000: got no version like:000000000000",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_outputs_that_are_refused(score, place, case):
    name, content, options, message = REFUSED[case]
    (place / name).write_text(content or "")
    code, _, err = score(*options)
    assert code == 2 and message in err and err.count("genre: ") == 1
    assert (place / name).read_text() == (content or "")


def test_resuming_what_is_whole_does_nothing(score, place, whole):
    (place / "out.jsonl").write_bytes(whole)
    code, out, _ = score("--resume")
    assert code == 0 and "150 rows in out.jsonl (150 from before), 2 of them errors" in out
    assert (place / "out.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (149, "the output out.jsonl is of another input: got id '148' in row 149; expected id '149'"),
        (151, "the output out.jsonl is of another input: got 150 rows; expected 151; remove it to start over"),
        (100, "the output out.jsonl is of another input: got more than 100 rows; expected 100"),
    ],
)
def test_a_whole_output_of_another_input_is_refused(score, place, whole, rows, message):
    lines = whole.splitlines(keepends=True)
    kept = {149: lines[:148] + lines[149:], 151: [*lines, lines[-1]], 100: lines[:100]}[rows]
    (place / "out.jsonl").write_bytes(b"".join(kept))
    code, _, err = score("--resume")
    assert code == 2 and message in err and err.count("genre: ") == 1
    assert (place / "out.jsonl").read_bytes() == b"".join(kept)


def test_two_processes_do_not_write_one_output(score, place):
    with FileLock(place / "out.jsonl.part.lock"):
        code, _, err = score("--resume")
    assert code == 2 and "another process writes the output: got out.jsonl.part" in err


def test_a_disk_that_fills_keeps_what_is_whole(score, place, whole):
    size = len(b"".join(whole.splitlines(keepends=True)[:64]))
    with disk_of(size + 100):
        code, _, err = score()
    assert (
        code == 1 and "out.jsonl cannot be written: got File too large; 64 rows are in out.jsonl.part; --resume continues" in err
    )
    assert score("--resume")[0] == 0 and len((place / "out.jsonl").read_bytes().splitlines()) == 150


def interrupt_the_second_chunk(patch):
    """Ctrl-C while it is answered; what comes after is answered again."""
    answer, calls = Scorer.answer, []

    def stop(self, rows):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(self, rows)

    patch.setattr(Scorer, "answer", stop)


def test_an_interrupted_job_says_what_it_leaves(score, place, monkeypatch):
    interrupt_the_second_chunk(monkeypatch)
    code, _, err = score()
    assert code == 1 and "genre: interrupted: 64 rows are in out.jsonl.part; --resume continues" in err
    assert score("--resume")[0] == 0 and len((place / "out.jsonl").read_bytes().splitlines()) == 150


# --- streams


def test_gzip_in_and_standard_output(score, whole):
    code, out, err = score(source="in.gz", output="-")
    assert code == 0 and out.encode() == whole
    assert "150 rows in standard output, 2 of them errors" in err


def test_standard_input(score, whole, place, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((place / "in.jsonl").read_bytes())))
    assert score(source="-")[0] == 0
    assert (place / "out.jsonl").read_bytes() == whole


def test_a_reader_that_goes_away_is_an_error_of_one_line():
    class Gone(io.RawIOBase):
        def write(self, data):
            raise BrokenPipeError

    with pytest.raises(Exception, match="standard output was closed by its reader: got 0 rows written"):
        Results.open(results_file.STANDARD, stream=Gone()).write(b"{}\n", rows=1, errors=0)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nope", (), "no such input file: got nope; expected JSON lines of requests, or - for standard input"),
        ("shop", (), "the input is a folder: got shop"),
        ("shop/interactions.parquet", (), "no row of the input is a request: got shop/interactions.parquet: line 1"),
        ("broken.gz", (), "the input is damaged in line"),
        ("empty", (), "no row of the input is a request: got empty: no rows"),
        ("nobody.jsonl", (), "no adapter 'nobody': got the registry at registry; expected"),
        ("in.jsonl", ("--workers", "2"), "--workers cannot be used: got 2 with --engine local"),
        ("in.jsonl", ("--output", "shop"), "--output is a folder: got shop"),
        ("in.jsonl", ("--output", "in.jsonl/new/out"), "--output lies in a file"),
        (
            "in.jsonl",
            ("--output", "out.jsonl.gz"),
            "--output is not compressed: got out.jsonl.gz; expected a .jsonl file",
        ),
        ("in.jsonl", ("--output", "-", "--resume"), "--resume needs a file: got --output -"),
    ],
)
def test_bad_input_leaves_nothing(score, place, source, options, message):
    (place / "broken.gz").write_bytes((place / "in.gz").read_bytes()[:-200])
    (place / "empty").write_text("\n \n")
    (place / "nobody.jsonl").write_text(request(1, adapter="nobody") + "\n")
    before = sorted(place.iterdir())
    code, out, err = score(*options, source=source, output="new/folder/out.jsonl")
    assert code == 2 and message in err and not out and err.count("genre: ") == 1
    assert sorted(place.iterdir()) == before


def test_all_users_go_on_too(place, tiny, capfd):
    arguments = ["recommend", "next_item", "--data", "shop", "--base", str(tiny), "--all-users", "-k", "2", "--output"]
    assert cli.main([*arguments, "all.jsonl"]) == 0
    whole = (place / "all.jsonl").read_bytes()
    assert len(whole.splitlines()) == 60 and cli.main([*arguments, "all.jsonl"]) == 2
    settings = json.dumps({"-k": 2, "--task": None, "--where": [], "--diversity": 0.0})
    (place / "some.jsonl.part").write_bytes(b"".join(whole.splitlines(keepends=True)[:20]) + b'{"id": ')
    (place / "some.jsonl.part.json").write_text(settings)
    assert cli.main([*arguments, "some.jsonl", "--resume"]) == 0
    ids = [json.loads(line)["id"] for line in (place / "some.jsonl").read_text().splitlines()]
    assert ids == [json.loads(line)["id"] for line in whole.splitlines()]
    assert "60 rows in some.jsonl (20 from before), 0 of them errors" in capfd.readouterr().out
    assert cli.main([*arguments, "-"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 60
    (place / "other.jsonl.part").write_bytes(b"".join(whole.splitlines(keepends=True)[:20]).replace(b'"next_item"', b'"like"'))
    (place / "other.jsonl.part.json").write_text(settings)
    assert cli.main([*arguments, "other.jsonl", "--resume"]) == 2
    assert "is of another adapter: got like; expected next_item" in capfd.readouterr().err
    assert cli.main([*arguments, "new.jsonl", "--where", "colour == red"]) == 2
    assert "the items have no column 'colour'" in capfd.readouterr().err and not (place / "new.jsonl").exists()
    assert cli.main([*arguments, "new.jsonl", "--json", "one.json"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-k", "3"), "all.jsonl.part was written with other settings: got -k 3; expected -k 2; use the same, or remove"),
        (("--where", "title == x"), 'got --where ["title == x"]; expected --where []'),
        (("--diversity", "0.5"), "got --diversity 0.5; expected --diversity 0.0"),
        (("--task", "next_item"), 'got --task "next_item"; expected --task null'),
    ],
)
def test_all_users_go_on_with_the_same_settings_only(place, tiny, capfd, monkeypatch, options, message):
    arguments = [
        "recommend",
        "next_item",
        "--data",
        "shop",
        "--base",
        str(tiny),
        "--all-users",
        "-k",
        "2",
        "--output",
        "all.jsonl",
    ]
    with monkeypatch.context() as patch:
        interrupt_the_second_chunk(patch)
        patch.setattr("genre.jobs.score.requests.CHUNK_ROWS", 20)
        assert cli.main(arguments) == 1
    part = (place / "all.jsonl.part").read_bytes()
    assert len(part.splitlines()) == 20 and (place / "all.jsonl.part.json").exists()
    capfd.readouterr()
    assert cli.main([*arguments, "--resume", *options]) == 2
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1 and (place / "all.jsonl.part").read_bytes() == part
    assert cli.main([*arguments, "--resume"]) == 0
    assert len((place / "all.jsonl").read_bytes().splitlines()) == 60 and not list(place.glob("*.part*"))
    assert cli.main([*arguments, "--resume"]) == 0
    assert "60 rows in all.jsonl (60 from before)" in capfd.readouterr().out


@pytest.mark.parametrize("content", [None, "no json", "[]"])
def test_an_unfinished_list_without_its_settings_is_refused(place, tiny, capfd, content):
    (place / "all.jsonl.part").write_text('{"id": "u0", "adapter": "next_item", "error": "x"}\n')
    if content is not None:
        (place / "all.jsonl.part.json").write_text(content)
    arguments = ["--data", "shop", "--base", str(tiny), "--all-users", "--output", "all.jsonl", "--resume"]
    assert cli.main(["recommend", "next_item", *arguments]) == 2
    assert "all.jsonl.part was written by another command: got one without settings" in capfd.readouterr().err


def test_settings_that_cannot_be_written_leave_nothing(tmp_path):
    with disk_of(10), pytest.raises(DiskError, match=r"all.jsonl.part.json cannot be written"):
        Results.open(tmp_path / "all.jsonl", settings={"-k": 2, "--diversity": 0.5})
    assert not list(tmp_path.iterdir())


# --- progress


def test_progress_of_a_file_whose_rows_are_not_counted(place):
    bar = Bar("scoring", None, lambda bar: None, 10.0, share=lambda: 0.5, done=100)
    bar.begun -= 10
    bar.advance(50)
    assert bar.text().startswith("scoring  150 rows  50%  5.0 rows/s  0:00:") and bar.text().endswith("30 left")
    endless = Bar("scoring", None, lambda bar: None, 10.0)
    endless.advance(3)
    assert endless.text().startswith("scoring  3 rows  ") and "left" not in endless.text()
    with RequestFile("in.jsonl") as file:
        shares = [line.share for line in file.lines()]
    assert shares == sorted(shares) and shares[0] < 0.02 and shares[74] == pytest.approx(0.5, abs=0.05) and shares[-1] == 1.0


def test_a_resumed_bar_counts_its_own_rows_only():
    shown = []
    with Reporter(shown.append).bar("scoring", 300, done=100) as bar:
        bar.begun -= 10
        bar.advance(100)
        assert bar.text().startswith("scoring  200/300  0:00:") and int(bar.text().split(":")[2][:2]) in (9, 10)
        bar.advance(100)
    assert shown == [bar.text()] or shown[-1].startswith("scoring  300/300")
