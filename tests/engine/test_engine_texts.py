"""Texts through the engine: equal to the scoring pass, mixed in one batch, swapped, and refused one by one."""

import numpy as np
import pytest
import torch

import genre
from fakes import make_encoder_base, planted_texts
from genre.engine import Request
from genre.engine.versions import read_adapter
from genre.jobs.loading import restore
from genre.recipe import Recipe
from genre.training.prediction import predict

GOOD = {"name": "good", "kind": "text", "label": "recommended"}
STARS = {"name": "stars", "kind": "text", "label": "rating", "loss": "cross_entropy"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two text adapters on one encoder: `joint` with both tasks, `good` with one."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("engine-texts")
    make_encoder_base(folder / "bert")
    texts, registry = planted_texts(groups=40), genre.Registry(folder / "registry")
    for name, tasks in (("joint", [GOOD, STARS]), ("good", [GOOD])):
        raw = {
            "name": name,
            "data": {"path": "planted", "split": {"kind": "group", "valid": 0.15, "test": 0.2}},
            "base": {"name": str(folder / "bert")},
            "sequence": {"text": ["title", "review"], "max_tokens": 64},
            "tasks": tasks,
            "train": {"epochs": 1, "batch_tokens": 1024, "learning_rate": 5e-3, "dropout": 0.0, "tracker": "none"},
        }
        registry.publish(genre.train(Recipe.parse(raw), log=texts, registry=registry, folder=folder / name))
    return folder / "bert", texts, registry


@pytest.fixture
def engine(world):
    base, _, registry = world
    with genre.Engine(genre.Base.load(str(base)), registry, lanes=2, batch_tokens=256) as opened:
        yield opened


def rows_of(texts, places):
    return [{"text_id": texts.text_ids[i], **texts.frame.select("title", "review").row(int(i), named=True)} for i in places]


def test_the_engine_scores_as_the_scoring_pass_does(world, engine):
    folder, texts, registry = world
    base = genre.Base.load(str(folder))
    model, builder, split = restore(read_adapter(registry, "joint", base), texts, base)
    found = predict(model, builder, split, 2, max_events=0, batch_tokens=512)
    model.release()
    for task in ("good", "stars"):
        targets, scores, _ = found[task]
        (answer,) = engine.score([Request("joint", task=task, texts=rows_of(texts, targets.event))])
        assert [row.text_id for row in answer.results] == [texts.text_ids[i] for i in targets.event]
        if task == "good":
            assert np.allclose([row.score for row in answer.results], scores, atol=1e-5)
        else:
            assert np.allclose([list(row.classes.values()) for row in answer.results], scores, atol=1e-5)
            assert np.allclose([row.score for row in answer.results], scores @ np.array([1.0, 3.0, 5.0]), atol=1e-4)


def test_a_mixed_batch_equals_one_adapter_at_a_time(world, engine):
    _, texts, _ = world
    requests = [Request(name, task="good", texts=rows_of(texts, [i, i + 1])) for i in range(6) for name in ("joint", "good")]
    together = engine.score(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = engine.score([request])
        assert np.allclose([r.score for r in answer.results], [r.score for r in alone.results], atol=1e-5)
    assert abs(together[0].results[0].score - together[1].results[0].score) > 1e-6


def test_the_best_texts_and_the_json_row(world, engine):
    _, texts, _ = world
    rows = rows_of(texts, range(8))
    every, some = engine.score([Request("good", texts=rows), Request("good", texts=rows, k=3)])
    wanted = sorted(every.results, key=lambda row: -row.score)[:3]
    assert [row.text_id for row in some.results] == [row.text_id for row in wanted]
    asked = Request.from_json({"id": 7, "adapter": "joint", "task": "stars", "texts": [{"review": "XX ++"}]})
    (answer,) = engine.score([asked])
    (row,) = answer.to_json()["results"]
    assert answer.to_json()["id"] == "7" and row["text_id"] == "0" and set(row["classes"]) == {"1", "3", "5"}
    assert sum(row["classes"].values()) == pytest.approx(1)


def test_a_swap_changes_what_a_name_means(world, engine):
    _, texts, _ = world
    asked = [Request("good", texts=rows_of(texts, [0, 1]))]
    (before,) = engine.score(asked)
    digest = engine.swap("good", "joint")
    (after,) = engine.score([Request("good", task="good", texts=rows_of(texts, [0, 1]))])
    assert after.digest == digest != before.digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"texts": [{"body": "x"}]}, "a text has an unknown column: got body; expected title, review"),
        ({"texts": [{"title": " "}]}, "a text has no words"),
        ({"texts": ["x"]}, "texts[0] cannot be used: got 'x'; expected an object"),
        ({"texts": [{"title": ["x"]}]}, "texts[0].title cannot be used: got ['x']; expected a text"),
        ({"texts": [{"title": "x"}], "history": []}, "history does not go with texts"),
        ({"texts": "x"}, "texts cannot be used: got 'x'; expected a list"),
        ({"history": [], "k": 3}, "good reads labelled texts: got no texts; expected texts with title, review"),
    ],
)
def test_a_bad_request_fails_alone(world, engine, fields, message):
    _, texts, _ = world
    bad, good = engine.score([{"adapter": "good", **fields}, Request("good", texts=rows_of(texts, [0]))])
    assert message in bad.error and good.error is None and len(good.results) == 1
