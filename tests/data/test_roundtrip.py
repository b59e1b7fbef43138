"""A log in every format and every form of its times: what comes in is what went out."""

import gzip
import hashlib
import json
import tempfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre.cli import main
from genre.data.importers.log import import_log
from genre.data.interactions import Interactions

STEPS = {"s": 1_000_000, "ms": 1_000, "us": 1}

WORDS = st.text(st.sampled_from("abcXYZ0189äß字-_.:;,|'\"# "), min_size=1, max_size=6)
IDS = WORDS.map(str.strip).filter(lambda text: text and not text.endswith(".0") and text.strip("\"'")) | st.sampled_from(
    ["007", "7", "1e5", "NA", "true", "2024-03-01", "-1", "1,234"]
)
FEEDBACK = {
    "rating": st.integers(-4000, 4000).map(lambda n: n / 8),
    "click": st.booleans(),
    "behaviour": st.sampled_from(["view", "add to cart", 'say "yes"', "a,b", "true", "0"]),
}


def at(us: int, zone: timezone = UTC) -> datetime:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).astimezone(zone)


def clock(us: int, digits: int) -> str:
    fraction = f".{us % 10**6:06}"[: digits + 1] if digits else ""
    return f"{at(us):%H:%M:%S}{fraction}"


FORMS = {
    # name: (time_unit, the shortest step that it holds in microseconds, the cell)
    "s": ("s", 1_000_000, lambda us: us // 1_000_000),
    "ms": ("ms", 1_000, lambda us: us // 1_000),
    "us": ("us", 1, lambda us: us),
    "ns": ("ns", 1, lambda us: us * 1_000),
    "float seconds": ("s", 1, lambda us: us / 1_000_000),
    "float milliseconds": ("ms", 1, lambda us: us / 1_000),
    "iso": ("s", 1_000_000, lambda us: f"{at(us):%Y-%m-%d} {clock(us, 0)}"),
    "iso, 1 digit": ("s", 100_000, lambda us: f"{at(us):%Y-%m-%d}T{clock(us, 1)}Z"),
    "iso, 3 digits": ("ms", 1_000, lambda us: f"{at(us):%Y-%m-%d}T{clock(us, 3)}"),
    "iso, 6 digits": ("s", 1, lambda us: f"{at(us):%Y-%m-%d} {clock(us, 6)} UTC"),
    "iso, 9 digits": ("s", 1, lambda us: f"{at(us):%Y-%m-%d}T{clock(us, 6)}000Z"),
    "iso in a zone": ("s", 1, lambda us: at(us, timezone(timedelta(hours=-9, minutes=-30))).isoformat(timespec="microseconds")),
    "slashes": ("s", 1_000_000, lambda us: f"{at(us):%Y/%m/%d} {clock(us, 0)}"),
    "days": ("s", 86_400_000_000, lambda us: f"{at(us):%Y-%m-%d}"),
    "days as numbers": ("s", 86_400_000_000, lambda us: int(f"{at(us):%Y%m%d}")),
    "hours": ("s", 3_600_000_000, lambda us: f"{at(us):%Y-%m-%d %H}"),
    "ctime": ("s", 1_000_000, lambda us: f"{at(us):%a %b %d} {clock(us, 0)} +0000 {at(us):%Y}"),
    "mail": ("s", 1_000_000, lambda us: f"{at(us):%a, %d %b %Y} {clock(us, 0)} GMT"),
    "datetimes": ("s", 1, lambda us: at(us).replace(tzinfo=None)),
    "datetimes in a zone": ("s", 1, at),
}
KINDS = ("csv", "tsv", "csv.gz", "jsonl", "json", "sessions.jsonl", "parquet", "lists.parquet", "inter")


@st.composite
def logs(draw):
    """Events (user, item, µs, feedback, position), no two alike, and the name of the feedback or None."""
    feedback = draw(st.sampled_from([*FEEDBACK, None]))
    users, items = (draw(st.lists(IDS, min_size=1, max_size=4, unique=True)) for _ in range(2))
    # From 1,900,010,100 on (in 2030) seconds may also be hours as numbers, YYYYMMDDHH, which the import takes them for.
    start = draw(st.integers(1_000_000_000, 1_790_000_000)) * 1_000_000
    near = st.integers(0, 3 * 10**6) | st.integers(0, 10**14)  # within seconds, or within years
    event = st.tuples(
        st.sampled_from(users),
        st.sampled_from(items),
        near.map(lambda us: start + us),
        FEEDBACK[feedback] if feedback else st.none(),
    )
    events = draw(st.lists(event, min_size=2, max_size=20))
    return feedback, events, draw(st.permutations(range(len(events))))


def cell_text(value):
    return value.isoformat(sep=" ") if isinstance(value, datetime) else value


def export(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame in the format of its path; sessions and lists have a row per user and run of its events."""
    kind = path.name.partition(".")[2]
    texts = frame if kind.endswith("parquet") else frame.with_columns(pl.Series("timestamp", map(cell_text, frame["timestamp"])))
    runs = texts.with_columns(run=pl.col("user_id").rle_id())
    inner = [name for name in texts.columns if name != "user_id"]
    if kind in ("csv", "csv.gz"):
        data = texts.write_csv().encode()
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    elif kind == "tsv":
        texts.write_csv(path, separator="\t")
    elif kind == "inter":
        texts.rename(lambda name: f"{name}:token").write_csv(path, separator="\t", quote_style="never")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in texts.to_dicts()))
    elif kind == "json":
        path.write_text(json.dumps(texts.to_dicts(), ensure_ascii=False, indent=1), encoding="utf-8")
    elif kind == "sessions.jsonl":
        rows = [{"user_id": run["user_id"][0], "events": run.select(inner).to_dicts()} for run in runs.partition_by("run")]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "lists.parquet":
        runs.group_by("run", maintain_order=True).agg(pl.col("user_id").first(), *inner).drop("run").write_parquet(path)
    else:
        texts.write_parquet(path)


def expected(events, positions, order, step):
    """The events without doubles as they must come out: by user, time, rank, and the hash of user and item."""
    rows = [(user, item, us // step * step, value, row) for row, (user, item, us, value) in enumerate(events)]
    kept: dict[tuple, tuple] = {}
    for user, item, us, value, row in rows:  # a position of its own makes each event another
        kept.setdefault((user, item, us, value, positions[row]), (user, item, us, value, row))

    def place(event):
        user, item, us, _, row = event
        rank = {"hash": 0, "file": row, "position": positions[row]}[order]
        return user, us, rank, hashlib.sha256(f"{user}\x1f{item}".encode()).digest(), row

    return sorted(kept.values(), key=place)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(log=logs(), form=st.sampled_from([*FORMS]), order=st.sampled_from(["hash", "file", "position"]))
def test_events_order_and_feedback_come_back(kind, log, form, order):
    feedback, events, positions = log
    unit, step, cell = FORMS[form]
    columns = {
        "user_id": [user for user, _, _, _ in events],
        "item_id": [item for _, item, _, _ in events],
        "timestamp": [cell(us // step * step) for _, _, us, _ in events],
        "position": list(positions),
    }
    if feedback:
        columns[feedback] = [value for _, _, _, value in events]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"log.{kind}"
        export(pl.DataFrame(columns), path)
        found = import_log(path, time_unit=unit, order=order)
        again = Interactions.read(found.write(Path(folder) / "out"))
    wanted = expected(events, positions, order, step)
    for each in (found, again):
        assert each.frame["user_id"].to_list() == [user for user, *_ in wanted]
        assert each.frame["item_id"].to_list() == [item for _, item, *_ in wanted]
        assert each.times_us.tolist() == [us for _, _, us, _, _ in wanted]
        assert each.rows.tolist() == [row for *_, row in wanted]
        assert each.frame["position"].to_list() == [positions[row] for *_, row in wanted]
        assert feedback is None or each.frame[feedback].to_list() == [value for *_, value, _ in wanted]
        assert not each.info.skipped and each.info.order == order
    assert found.digest == again.digest


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_many_events(tmp_path, kind):
    frame = pl.DataFrame({"user_id": [f"{n % 997:04}" for n in range(20_000)], "item_id": [f"i{n % 89}" for n in range(20_000)]})
    times = pl.Series("timestamp", [1_700_000_000_000 + 37 * n for n in range(20_000)])
    log = frame.with_columns(times, position=pl.int_range(20_000), click=(pl.int_range(20_000) % 3) == 0).sort(
        "user_id", "position"
    )
    export(log, tmp_path / f"log.{kind}")
    out = tmp_path / "out"
    assert main(["data", "import", str(tmp_path / f"log.{kind}"), "--time-unit", "ms", "--out", str(out)]) == 0
    found = Interactions.read(out)
    assert found.digest == Interactions.from_frame(log, time_unit="ms").digest and len(found) == 20_000
