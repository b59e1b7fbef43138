"""Forgetting users in a served log: their lists and rewards go, and so do the bytes."""

import sqlite3
from contextlib import closing

import pytest

from genre.errors import InputError
from genre.serving.forgotten import forget_served
from genre.serving.served import Impression, Reward, ServedLog

GONE = "user-7f3a-to-forget"


def impression(name, user):
    return Impression(name, "next_item@production", "d" * 64, user, "best", [f"{user}-item", "2"], [2.0, 1.0], [0.9, 0.5])


def test_no_byte_of_a_user_is_left(tmp_path):
    path = tmp_path / "served.sqlite"
    log = ServedLog(path)
    log.show([impression(f"of-{user}-{number}", user) for number in range(40) for user in (GONE, "7", None)]).result()
    log.reward([Reward(f"of-{GONE}-3", f"{GONE}-item", 1.0), Reward("of-7-3", "2", 0.5)]).result()
    with pytest.raises(InputError, match="--served-log cannot be used: got .* which another service uses"):
        forget_served(path, [GONE])
    log.close()
    assert GONE.encode() in path.read_bytes()
    assert forget_served(path, [GONE, "nobody"], dry=True) == 40
    assert forget_served(path, [GONE, "nobody"]) == 40
    assert not [each for each in tmp_path.iterdir() if GONE.encode() in each.read_bytes()]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*), count(reward) FROM shown").fetchone() == (160, 1)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    again = ServedLog(path)
    assert again.reward([Reward("of-7-3", "2", 0.5), Reward(f"of-{GONE}-3", "2", 1.0)]).result() == ["repeated", "unknown"]
    again.close()
    assert forget_served(path, [GONE]) == 0


def test_what_is_no_served_log_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no log at all, but long enough for SQLite to look at its header")
    for path, message in ((tmp_path / "none", "expected the file of genre serve"), (tmp_path / "notes.txt", "a served log")):
        with pytest.raises(InputError, match=message):
            forget_served(path, ["7"])
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as connection:
        connection.execute("CREATE TABLE impressions (user TEXT)")
    with pytest.raises(InputError, match="a served log of this version"):
        forget_served(tmp_path / "other.sqlite", ["7"])
