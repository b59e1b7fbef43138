"""Public logs by name: every kind of file, in every variant, has the right events, order, times and feedback, or one line says why
not."""

import pytest

from data.public_logs import BAD, LOGS, VARIANTS, Kind, write_log
from genre.data.importers.log import import_log
from genre.data.interactions import Interactions
from genre.errors import DataError

CASES = [(name, variant) for name in LOGS for variant in VARIANTS if not ("yambda" in name and variant == "crlf")]


def found(log: Interactions, kind: Kind) -> dict[str, list[tuple[object, ...]]]:
    names = ["item_id"] + ([kind.feedback] if kind.feedback else [])
    events: dict[str, list[tuple[object, ...]]] = {}
    for row, time in zip(log.frame.select("user_id", *names).rows(), log.times_us.tolist(), strict=True):
        events.setdefault(row[0], []).append((row[1], time, row[2] if kind.feedback else None))
    return events


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_public_log_has_the_right_events_in_the_right_order(tmp_path, name, variant):
    kind = LOGS[name]()
    path = write_log(kind, tmp_path, variant)
    if variant == "extra" and not kind.header:
        with pytest.raises(DataError, match="does not fit its columns"):
            import_log(path, format=kind.format)
        return
    log = import_log(path, format=kind.format)
    if variant == "bad":
        assert log.info.skipped["bad timestamp"] == 1
    assert found(log, kind) == kind.wanted(but=BAD if variant == "bad" else None)
    assert ("channel" in log.frame.columns) == (variant == "extra" and name != "amazon")


def test_sixty_files_are_checked():
    assert len(CASES) > 60 and {LOGS[name]().format for name in LOGS} >= {"amazon", "otto", "lastfm"}
