"""The time left of a run: what follows an epoch, from the pace of its steps and the validation so far."""

import pytest

import genre
from builders import GOOD, LIKE, recipe, text_recipe
from genre.evaluation import ease
from genre.evaluation.ease import fit_seconds
from genre.progress import Bar, Reporter
from genre.training.assembly import assemble_texts
from genre.training.time_left import TimeLeft


def test_what_follows_an_epoch_is_named_and_adds_up(build):
    assembly = build(LIKE, train={"epochs": 3})
    left = TimeLeft(assembly, test=True, baselines=40.0)
    first = left.later(0, 100)(0.5)
    assert list(first) == ["2 more epochs", "validation", "test", "baselines"]
    assert first["2 more epochs"] == 100 and first["baselines"] == 40 and first["validation"] > first["test"] > 0
    left.validation_s = 6.0
    assert left.later(0, 100)(0.5)["validation"] == 18
    last = left.later(2, 100)(0.5)
    assert list(last) == ["validation", "test", "baselines"] and last["validation"] == 6
    assert last["test"] == pytest.approx(6 * left.test / left.valid)
    alone = TimeLeft(assembly)
    assert list(alone.later(1, 10)(1.0)) == ["1 more epoch", "validation"]


def test_texts_are_counted_by_themselves(text_bases, texts):
    assembly = assemble_texts(text_recipe(text_bases / "llama", GOOD), texts, genre.Base.load(str(text_bases / "llama")))
    left = TimeLeft(assembly, test=True)
    assert (left.train, left.valid, left.test) == tuple(int((assembly.split.part == part).sum()) for part in range(3))
    assembly.model.release()


def test_a_run_shows_the_time_of_all_of_it(tiny, base, log, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Bar, "remind", lambda self: None)
    monkeypatch.setattr("genre.progress.EVERY_S", 1e-6)
    genre.train(recipe(tiny, LIKE), log=log, base=base, folder=tmp_path / "run", reporter=Reporter(shown.append))
    assert any(
        line.startswith("epoch 1/2") and line.endswith("left in all, with 1 more epoch, validation, test") for line in shown
    )
    assert any(line.startswith("epoch 2/2") and line.endswith("left in all, with validation, test") for line in shown)


def test_the_time_of_ease_is_estimated_where_it_counts(build, log, monkeypatch):
    assembly = build(LIKE)
    assert fit_seconds(log, assembly.split) == 0.0
    monkeypatch.setattr(ease, "_SAMPLE", 4)
    assert fit_seconds(log, assembly.split) > 0
