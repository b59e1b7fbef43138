"""Adapters that read labelled texts, served: alone on an encoder, without items and histories."""

import pytest
from serving_fakes import serving

import genre
from fakes import make_encoder_base, planted_texts
from genre.engine import Request
from genre.recipe import Recipe

ROW = {"adapter": "good", "texts": [{"text_id": "a", "review": "the XX ++"}, {"title": "title 1", "review": "a oo"}]}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A client of a service over one text adapter, and its engine."""
    folder = tmp_path_factory.mktemp("serving-texts")
    base, registry = str(make_encoder_base(folder / "bert")), genre.Registry(folder / "registry")
    raw = {
        "name": "good",
        "data": {"path": "planted", "split": {"kind": "group", "valid": 0.15, "test": 0.2}},
        "base": {"name": base},
        "sequence": {"text": ["title", "review"], "max_tokens": 64},
        "tasks": [{"name": "good", "kind": "text", "label": "recommended"}],
        "train": {"epochs": 1, "batch_tokens": 1024, "tracker": "none"},
    }
    run = genre.train(Recipe.parse(raw), log=planted_texts(groups=20), registry=registry, folder=folder / "run")
    registry.publish(run, alias="production")
    with genre.Engine(genre.Base.load(base), registry) as engine, serving(engine, ["good@production"]) as (_, client):
        yield client, engine


@pytest.mark.parametrize("path", ["/v1/score", "/v1/recommend"])
def test_texts_are_scored_as_the_engine_scores_them(texts, path):
    client, engine = texts
    (answer,) = client.post(path, json={"requests": [ROW]}).json()["responses"]
    (wanted,) = engine.score([Request("good@production", texts=ROW["texts"])])
    scores = {row["text_id"]: row["score"] for row in answer["results"]}
    assert scores == pytest.approx({row.text_id: row.score for row in wanted.results}, abs=1e-6) and len(scores) == 2


def test_what_does_not_go_with_texts_fails_alone(texts):
    client, _ = texts
    rows = [
        {"adapter": "good", "history": [], "candidates": ["i0"]},
        {"adapter": "good", "texts": [{"colour": "red"}]},
        {"adapter": "good", "texts": [{"review": "x " * 90}] * 5000},
        ROW,
    ]
    answers = client.post("/v1/score", json={"requests": rows}).json()["responses"]
    told = ["reads labelled texts", "unknown column: got colour", "the request asks for too much at once: got about 320,000"]
    assert all(said in answer["error"] for said, answer in zip(told, answers, strict=False)) and "results" in answers[3]
    (answer,) = client.post("/v1/explain", json={"requests": [{"adapter": "good", "history": [], "item": "i0"}]}).json()[
        "responses"
    ]
    assert "reads labelled texts" in answer["error"]


def test_there_are_no_items_to_look_up_and_the_adapter_is_shown(texts):
    client, _ = texts
    assert client.get("/v1/items", params={"q": "a"}).json() == {"items": []}
    (shown,) = client.get("/v1/adapters").json()["adapters"]
    assert shown["tasks"][0]["kind"] == "text" and shown["feedback"] == {"column": None, "values": None}
