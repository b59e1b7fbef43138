"""Progress: bars and phases speak again while one step takes long, and the time left is that of the whole job."""

import io
import time

import pytest

from genre.progress import Bar, Reporter, Verbosity, never_silent, reporting


@pytest.fixture
def said(monkeypatch):
    monkeypatch.setattr("genre.progress.EVERY_S", 0.05)
    lines = []
    return Reporter(lines.append), lines


def test_a_phase_says_its_name_at_once_and_again_while_it_lasts(said):
    reporter, lines = said
    with reporter.phase("fitting the encoder"):
        assert lines == ["fitting the encoder"]
        time.sleep(0.3)
    assert len(lines) >= 3 and lines[-1] == "fitting the encoder  0:00:00"
    count = len(lines)
    time.sleep(0.15)
    assert len(lines) == count


def test_a_bar_is_shown_while_one_step_takes_long(said):
    reporter, lines = said
    with reporter.bar("baselines", 2) as bar:
        bar.label = "baseline ease of next_item"
        time.sleep(0.3)
        bar.advance(1)
    assert "baseline ease of next_item  0/2" in lines


def test_silence_is_counted_over_phases_and_bars(said):
    """Five short waits with nothing to show each: a line comes when all of them together have been silent for too long."""
    reporter, lines = said
    begun = time.perf_counter()
    for _ in range(5):
        with reporter.phase("reading", at_once=False):
            time.sleep(0.02)
        with reporter.bar("rows", 2):
            time.sleep(0.02)
    assert 2 <= len(lines) <= (time.perf_counter() - begun) / 0.05 + 1


def test_a_command_is_never_silent_between_its_phases(monkeypatch, capsys):
    """What no phase reports is told by the command; an open phase keeps its own time."""
    monkeypatch.setattr("genre.progress.EVERY_S", 0.05)
    with reporting(Verbosity.NORMAL), never_silent("genre compare"):
        time.sleep(0.3)
        assert capsys.readouterr().err.splitlines()[0] == "genre compare  0:00:00"
        with Reporter.for_terminal().phase("reading"):
            capsys.readouterr()
            time.sleep(0.3)
            assert set(capsys.readouterr().err.splitlines()) == {"reading  0:00:00"}
    with reporting(Verbosity.QUIET), never_silent("genre compare"):
        time.sleep(0.15)
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_the_time_left_is_that_of_the_whole_job():
    shown = []
    bar = Bar("epoch 1/2", 10, shown.append, 0.0, later=lambda step: {"validation": 5 * step, "test": 3600.0})
    bar.begun -= 10
    bar.advance(5, loss=1.0, tokens=100)
    assert shown and bar.text().endswith("1:00:20 left in all, with validation, test")


def test_silence_is_kept():
    reporter = Reporter.silent()
    with reporter.phase("a"), reporter.bar("b", 1) as bar:
        bar.advance(1)


def test_on_a_terminal_a_phase_is_a_status_that_goes_away():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Reporter.for_terminal(stream).phase("starting"):
        time.sleep(0.05)
    assert "starting" in stream.getvalue()
