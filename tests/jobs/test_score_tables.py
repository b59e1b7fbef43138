"""`recommend --all-users` as a table: the lines' content, titles, users without an item, going on after a kill."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from genre import cli
from genre.jobs.score.tables import write_table


@pytest.fixture
def place(tmp_path, monkeypatch, trained, log):
    monkeypatch.chdir(tmp_path)
    log.write("shop")
    shutil.copytree(trained.registry.url, "registry")
    return tmp_path


@pytest.fixture
def ask(place, tiny):
    asked = ["recommend", "next_item", "--data", "shop", "--base", str(tiny), "--all-users", "-k", "3", "--output"]
    return lambda output, *more: cli.main([*asked, output, *more])


def read(path):
    return pl.read_parquet(path) if path.endswith(".parquet") else pl.read_csv(path, schema_overrides={"user_id": pl.String})


@pytest.mark.parametrize("output", ["all.parquet", "all.CSV"])
def test_a_table_holds_what_the_lines_hold_and_titles(output, ask, place, log, capsys):
    assert ask("all.jsonl") == 0
    assert ask(output) == 0
    assert f"60 rows in {output}, 0 of them errors" in capsys.readouterr().out
    table = read(output)
    titles = dict(zip(log.catalogue.item_ids, log.catalogue.titles(), strict=True))
    expected = [
        (line["id"], rank, item["item_id"], titles[item["item_id"]], line["digest"])
        for line in map(json.loads, (place / "all.jsonl").read_text().splitlines())
        for rank, item in enumerate(line["results"], 1)
    ]
    assert len(expected) == 180
    assert table.select("user_id", "rank", "item_id", "title", "digest").rows() == expected
    scores = [item["score"] for line in (place / "all.jsonl").read_text().splitlines() for item in json.loads(line)["results"]]
    assert table["score"].to_list() == pytest.approx(scores, rel=1e-6)
    assert not list(place.glob(f"{output}.*"))


def test_users_without_an_item_have_a_row_with_the_reason(tmp_path, log):
    items = [{"item_id": "i2", "score": 0.5}, {"item_id": "i1", "score": 0.1}]
    rows = [
        {"id": "u1", "adapter": "like", "error": "no user 'u1'"},
        {"id": "u2", "adapter": "like", "digest": "d", "results": [], "note": "every item was seen"},
        {"id": "u3", "adapter": "like", "digest": "d", "results": items},
    ]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_table(lines, tmp_path / "out.parquet", log.catalogue)
    found = pl.read_parquet(tmp_path / "out.parquet").select("user_id", "rank", "item_id", "note").rows()
    assert found == [
        ("u1", None, None, "no user 'u1'"),
        ("u2", None, None, "every item was seen"),
        ("u3", 1, "i2", None),
        ("u3", 2, "i1", None),
    ]


def test_a_table_goes_on_after_a_kill(ask, place, capsys):
    assert ask("all.jsonl") == 0
    assert ask("all.parquet") == 0
    settings = json.dumps({"-k": 3, "--task": None, "--where": [], "--diversity": 0.0})
    lines = (place / "all.jsonl").read_bytes().splitlines(keepends=True)
    (place / "some.parquet.jsonl.part").write_bytes(b"".join(lines[:20]) + b'{"id": ')
    (place / "some.parquet.jsonl.part.json").write_text(settings)
    assert ask("some.parquet", "--resume") == 0
    assert "60 rows in some.parquet (20 from before)" in capsys.readouterr().out
    assert read("some.parquet").drop("score").equals(read("all.parquet").drop("score"))
    (place / "late.parquet.jsonl").write_bytes(b"".join(lines))  # killed between the last line and the table
    assert ask("late.parquet") == 2
    assert ask("late.parquet", "--resume") == 0
    assert read("late.parquet").equals(read("all.parquet"))


def test_a_table_that_is_there_is_kept(ask, place, capsys):
    assert ask("all.parquet") == 0
    before = Path("all.parquet").read_bytes()
    assert ask("all.parquet") == 2
    assert "the file exists: got all.parquet" in capsys.readouterr().err
    assert ask("all.parquet", "--resume") == 0
    assert "all.parquet is complete" in capsys.readouterr().out
    read("all.parquet").with_columns(adapter=pl.lit("like")).write_parquet("other.parquet")
    assert ask("other.parquet", "--resume") == 2
    message = "other.parquet is of another input: got 60 users by like; expected 60 users by next_item; remove it"
    assert message in capsys.readouterr().err
    Path("broken.parquet").write_bytes(b"PAR1")
    assert ask("broken.parquet", "--resume") == 2
    assert "broken.parquet is not a table of recommendations: got" in capsys.readouterr().err
    assert Path("all.parquet").read_bytes() == before
