"""docs/data.md says what happens: its commands run as they stand on small files, and its report is what is printed."""

import re
import shlex

import polars as pl
import pytest

import worlds
from genre.cli import main
from genre.recipe import Recipe
from standins import ROOT

GUIDE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ genre (data .*)$|`genre (data import [^`]+--out[^`]+)`", GUIDE, flags=re.MULTILINE)


def strange() -> bytes:
    """400 events and three told twice, a line that is not an event after every thirtieth; as a spreadsheet writes it."""
    lines = ["Kunde;Artikel-Nr.;Sterne;Wann;Titel"]
    for n in range(400):
        when = f"2024-03-{1 + n // 60:02}T10:{n % 60:02}:00+01:00"
        lines.append(f"k{n % 20};a{n % 50};{1 + n % 4},5;{when};Ding {n % 50}")
    lines += lines[1:4]
    for n in range(12):
        bad = f"k1;a{n};viel;2024-03-02;x", f";a{n};4,0;2024-03-02;x", f"k1;a{n};3,0;gestern;x"
        lines.insert(30 * n + 5, bad[n % 3])
    return b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with every file that the guide's commands name."""
    monkeypatch.chdir(tmp_path)
    for write in (worlds.ml_100k, worlds.mind, worlds.amazon, worlds.shop_events):
        write()
    events = pl.read_csv("shop-events.csv")
    events.write_parquet("events.parquet")
    events.select("customer", "sku", pl.col("at") // 1000, pl.lit(4).alias("stars")).write_csv("events.csv")
    lines = [f"u{n % 5}\ti{n % 7}\t{1 + n % 5}\t{1_700_000_000 + 60 * n}" for n in range(40)]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (tmp_path / "shop.inter").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    (tmp_path / "export.csv").write_bytes(strange())
    steps = [f"{user},p{(3 * user + 7 * step) % 20},{step}" for user in range(30) for step in range(8)]
    (tmp_path / "sequences.csv").write_text("\n".join(["user_id,item_id,position", *steps]) + "\n", encoding="utf-8")
    (tmp_path / "sequences.txt").write_text("1 17 4 17\n2 4 9\n", encoding="utf-8")
    (tmp_path / "clicks.dat").write_text(
        "1,2014-04-07T10:51:09.277Z,214536502,0\n1,2014-04-07T10:54:09.868Z,21,S\n", encoding="utf-8"
    )
    session = '{"session": %d, "events": [{"aid": 7, "ts": 1661724000278, "type": "clicks"}]}\n'
    (tmp_path / "sessions.jsonl").write_text("".join(session % n for n in range(3)), encoding="utf-8")
    products = [f"p{n},Product {n}" for n in range(20)]
    (tmp_path / "products.csv").write_text("\n".join(["item_id,title", *products]) + "\n", encoding="utf-8")
    return tmp_path


def test_every_command_runs(place):
    commands = [console or inline for console, inline in COMMANDS]
    assert len(commands) >= 7 and sum("--format mind" in command for command in commands) == 1
    for command in commands:
        assert main(shlex.split(command)) == 0, command


def test_a_log_without_feedback_goes_all_the_way(place, tiny, capsys):
    section = GUIDE.partition("## A log without feedback")[2].partition("\n## ")[0]
    commands = re.findall(r"^\$ genre (.*)$", section, flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["data", "recipe", "train", "evaluate", "recommend"]
    for command in commands:
        base = [] if command.startswith(("data", "train")) else ["--base", str(tiny)]
        assert main([*shlex.split(command), *base]) == 0, command
    sequence = Recipe.read(place / "next_item.yaml").sequence
    assert (sequence.feedback, sequence.instruction) == ("none", "Items of one user, in order:")
    assert capsys.readouterr().out.count("Product") >= 5


def test_the_report_is_what_is_printed(place, capsys):
    command, report = re.search(r"^\$ genre (data import export.csv .*)\n((?:.+\n)+?)```", GUIDE, flags=re.MULTILINE).groups()
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out == report
