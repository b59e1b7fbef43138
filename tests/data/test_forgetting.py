"""Forgetting users in a data set folder: no byte of them is left, nothing depends on what they did, others lose nothing."""

import gzip
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from builders import give_key, with_values
from fakes import planted_log
from genre.data.folder import read_info
from genre.data.forgetting import Forgotten, foresee_forgetting, forget_users, without_users
from genre.data.interactions import Interactions
from genre.data.user_key import FILE, UserKey, read_key
from genre.errors import DataError, InputError

GONE = "user-7f3a-to-forget"


def with_guest(*events: tuple[str, float], info: dict | None = None, extra_items: list[str] | None = None) -> Interactions:
    """The planted log with a user who has these (item, rating) events, which stand before all others in the file."""
    log = planted_log(users=8, items=16, events=6)
    guest = pl.DataFrame(
        {
            "user_id": [GONE] * len(events),
            "item_id": [item for item, _ in events],
            "rating": [rating for _, rating in events],
            "timestamp": [500 + 10 * step for step in range(len(events))],
        }
    )
    frame = pl.concat([guest, log.frame.drop("row").select(guest.columns)])
    people = pl.concat([log.users, pl.DataFrame({"user_id": [GONE], "age": [99]})])
    items = pl.concat([log.catalogue.frame, pl.DataFrame({"item_id": extra_items or [], "title": extra_items or []})])
    found = Interactions.from_frame(frame, items=items, users=people, name="guests")
    return Interactions.from_frame(found.frame, items, people, info=found.info.model_copy(update=info or {}), stored=True)


def names_in(folder, word: str) -> list[str]:
    """Files under a folder, or at it, that hold a word in their bytes, unpacked too."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".parquet":
                data += str(pl.read_parquet(path).to_dicts()).encode()
            if data.startswith(b"\x1f\x8b"):
                data += gzip.decompress(data)
            if word.encode() in data or word in path.name:
                found.append(path.name)
    return found


def test_no_byte_of_a_user_is_left_and_others_lose_nothing(tmp_path):
    log = with_guest(("i3", 5.0), ("i4", 1.0), info={"examples": (f"bad rating: row 3 (user {GONE})",), "checksum": "sha256:1"})
    folder = log.write(tmp_path / "shop", {"kg": pl.DataFrame({"source": ["i1"], "target": ["war"]})})
    pl.DataFrame({"user_id": [GONE, "u1"], "seen": [1, 2]}).write_parquet(folder / "visits.parquet")
    (folder / "readme.txt").write_text("of the shop")
    assert names_in(folder, GONE)
    foreseen = foresee_forgetting(folder, [GONE])
    assert names_in(folder, GONE) and read_key(folder) is None
    assert forget_users(folder, [GONE]) == foreseen == Forgotten(users=1, events=2, items=0, kept_items=0)
    assert names_in(tmp_path, GONE) == []
    after = Interactions.read(folder)
    assert after.user_ids == sorted(planted_log(users=8).user_ids) and len(after) == 48
    assert after.frame.drop("row").equals(log.frame.filter(pl.col("user_id") != GONE).drop("row"))
    assert after.users.height == 8 and after.catalogue.frame.equals(log.catalogue.frame)
    assert pl.read_parquet(folder / "visits.parquet").rows() == [("u1", 2)]
    assert pl.read_parquet(folder / "kg.parquet").height == 1 and (folder / "readme.txt").read_text() == "of the shop"
    info = read_info(folder)
    assert info.examples == () and info.checksum == "" and "genre data forget" in info.notes[-1] and info.name == "guests"
    assert info.users_key.digest(GONE) in info.users_key.forgotten and "users_key" not in (folder / "dataset.json").read_text()
    assert forget_users(folder, [GONE]).events == 0, "asked again, there is nothing left to do"


def test_what_is_left_is_the_same_whatever_they_did():
    first, second = with_guest(("i3", 5.0), ("i4", 1.0)), with_guest(("i9", 2.0), ("i3", 3.0), ("only-theirs", 4.0))
    one, other = (without_users(log, [GONE]) for log in (first, second))
    assert first.digest != second.digest and "only-theirs" in second.catalogue
    assert one.digest == other.digest and one.frame.equals(other.frame) and one.info == other.info
    assert one.catalogue.item_ids == other.catalogue.item_ids and one.rows.max() == len(one) - 1
    assert without_users(one, [GONE]).digest == one.digest


def test_an_item_that_a_table_describes_stays_unless_it_is_to_go(tmp_path):
    log = with_guest(("lamp", 5.0), ("i3", 1.0), extra_items=["lamp"])
    assert "lamp" in without_users(log, [GONE]).catalogue and "lamp" not in without_users(log, [GONE], drop_items=True).catalogue
    folder = log.write(tmp_path / "shop")
    assert foresee_forgetting(folder, [GONE]).kept_items == 1
    assert forget_users(folder, [GONE], drop_items=True) == Forgotten(users=1, events=2, items=1, kept_items=0)
    assert names_in(folder, "lamp") == []


def test_fractions_of_seconds_that_only_they_had_leave_no_column():
    log = with_guest(("i3", 5.0))
    frame = log.frame.with_columns(subsecond_us=pl.when(pl.col("user_id") == GONE).then(5).otherwise(0).cast(pl.Int32))
    timed = Interactions.from_frame(frame, log.catalogue.frame, log.users, info=log.info, stored=True)
    assert "subsecond_us" in timed.frame.columns
    assert without_users(timed, [GONE]).digest == without_users(log, [GONE]).digest


def test_what_cannot_be_forgotten_is_refused_and_nothing_changes(tmp_path):
    folder = with_guest(("i3", 5.0)).write(tmp_path / "shop")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for users, error, message in (
        (["nobody"], DataError, "unknown user: got 'nobody'; expected one of the 9 users of the log"),
        ([GONE, "nobody"], DataError, "unknown user: got 'nobody'"),
        ([GONE, *planted_log(users=8).user_ids], DataError, "nobody is left in the log"),
    ):
        with pytest.raises(error, match=message):
            forget_users(folder, users)
    with gzip.open(folder / "raw.csv.gz", "wt") as file:
        file.write(f"{GONE},i3,5\n")
    with pytest.raises(InputError, match="raw.csv.gz names a user who is to be forgotten"):
        forget_users(folder, [GONE])
    (folder / "raw.csv.gz").unlink()
    pl.DataFrame({"friend": [GONE]}).write_parquet(folder / "friends.parquet")
    with pytest.raises(InputError, match="friends.parquet names a user"):
        forget_users(folder, [GONE])
    (folder / "friends.parquet").unlink()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_user_who_has_the_id_of_an_item_is_no_reason_to_refuse_a_graph(tmp_path):
    frame = pl.DataFrame({"user_id": ["1", "2", "2"], "item_id": ["1", "1", "2"], "timestamp": [1, 2, 3]})
    folder = Interactions.from_frame(frame).write(tmp_path / "shop", {"kg": pl.DataFrame({"source": ["1"], "target": ["2"]})})
    assert forget_users(folder, ["1"]).events == 1


def test_a_link_forgets_what_it_leads_to(tmp_path):
    folder = with_guest(("i3", 5.0)).write(tmp_path / "real" / "shop")
    (tmp_path / "shop").symlink_to(folder)
    (tmp_path / "real" / ".shop.abc.tmp").mkdir()
    found = forget_users(tmp_path / "shop", [GONE])
    assert (tmp_path / "shop").is_symlink() and names_in(tmp_path, GONE) == []
    assert found.left == (str(tmp_path / "real" / ".shop.abc.tmp"),)


def test_a_key_stays_with_a_folder_and_with_what_is_made_of_it(tmp_path):
    log = planted_log(users=8, items=16, events=6)
    folder = log.write(tmp_path / "shop")
    assert log.info.users_key is None and read_key(folder) is None
    give_key(folder)
    key = read_key(folder)
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600 and key.secret.hex() not in repr(key)
    give_key(folder)
    log.write(folder)
    assert read_key(folder) == key, "neither another training nor another import changes it"
    half = Interactions.read(folder).select(np.arange(len(log)) % 2 == 0)
    assert read_key(half.write(tmp_path / "half")) == key
    changed = with_values(Interactions.read(folder), rating={0: 1.0})
    assert read_key(changed.write(tmp_path / "other")) is None
    (folder / FILE).write_text("of no use")
    with pytest.raises(DataError, match=r"users.key cannot be read: got other content; expected 64 hex digits"):
        Interactions.read(folder)


def test_first_trainings_at_once_agree_on_one_key(tmp_path):
    keys = [replace(UserKey.new(), folder=tmp_path) for _ in range(8)]
    together = threading.Barrier(len(keys))

    def keep(key):
        together.wait()
        return key.kept()

    with ThreadPoolExecutor(len(keys)) as threads:
        kept = list(threads.map(keep, keys))
    assert set(kept) == {read_key(tmp_path)} and [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_key_that_another_training_wrote_meanwhile_is_taken(tmp_path, monkeypatch):
    own, other, write = replace(UserKey.new(), folder=tmp_path), UserKey.new(), UserKey.write

    def late(key, folder, *name):
        write(other, folder)
        write(key, folder, *name)

    monkeypatch.setattr(UserKey, "write", late)
    assert own.kept() == other == read_key(tmp_path) and [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_key_of_somebody_else_is_no_reason_not_to_read_a_log(tmp_path, monkeypatch):
    folder = with_guest(("i3", 5.0)).write(tmp_path / "shop")
    give_key(folder)
    key, read_text = read_key(folder), Path.read_text

    def forbidden(path, *given, **named):  # root, who runs tests, may read everything
        if path.name == FILE:
            raise PermissionError(13, "Permission denied")
        return read_text(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", forbidden)
    assert Interactions.read(folder).info.users_key is None
    give_key(folder)
    for change in (lambda: forget_users(folder, [GONE]), lambda: with_guest(("i3", 5.0)).write(folder)):
        with pytest.raises(DataError, match=r"users.key cannot be read: got no permission; .*; become its owner"):
            change()
    monkeypatch.undo()
    assert read_key(folder) == key


def test_digests_are_keyed():
    first, second = UserKey.new(), UserKey.new()
    assert first.digest("196") == first.digest("196") != second.digest("196") and first.name != second.name
    assert first.with_forgotten(["196"]).with_forgotten(["7"]).forgotten == {first.digest("196"), first.digest("7")}
