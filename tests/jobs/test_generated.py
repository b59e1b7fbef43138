"""A generate adapter from training to answers: publish, load, evaluate, merge, refresh, int8, lists, the service's estimate."""

import shutil

import numpy as np
import polars as pl
import pytest

import genre
from builders import NEXT, recipe
from genre.data.interactions import Interactions
from genre.data.splits import TEST
from genre.engine import Engine, Request
from genre.engine.vectors import product_task
from genre.engine.versions import read_adapter
from genre.errors import ManifestError, RegistryError
from genre.jobs.audit.subject import task_of
from genre.jobs.evaluate import evaluate
from genre.jobs.loading import restore
from genre.jobs.refresh.job import refresh
from genre.serving.estimates import PER_PREFIX, TokenEstimate
from genre.training.prediction import predict

GENERATE = NEXT | {"head": "generate", "beam": 20, "metrics": ["ndcg@10", "hr@10"]}
SECTIONS = {"encoder": {"codes": {"levels": 2, "size": 4, "places": 30}}, "train": {"epochs": 1}, "data": {"max_events": 32}}


@pytest.fixture(scope="module")
def grown(log):
    """The log, and the part of it that the adapter was trained on."""
    old = log.frame.filter(pl.col("timestamp") < log.frame["timestamp"].quantile(0.7)).drop("row")
    return log, Interactions.from_frame(old, items=log.catalogue.frame, users=log.users, name="planted")


@pytest.fixture(scope="module")
def published(tiny, grown, tmp_path_factory):
    """A registry, an adapter that generates in it, and its folder."""
    folder = tmp_path_factory.mktemp("generated")
    registry, base = genre.Registry(folder / "registry"), genre.Base.load(str(tiny))
    wanted, options = recipe(tiny, GENERATE, **SECTIONS), {"registry": registry, "folder": folder / "run", "baselines": "none"}
    run = genre.train(wanted, log=grown[1], base=base, **options)
    return registry, registry.publish(run, alias=("latest", "production")), folder / "registry"


def test_a_published_version_ranks_as_its_run_did(published, base, grown) -> None:
    registry, version, _ = published
    assert version.manifest.tasks[0]["head"] == "generate"
    assert version.manifest.tasks[0]["beam"] == 20
    assert not (registry.fetch(version) / "heads.safetensors").exists()
    found = evaluate(registry, version.ref, grown[1], base, baselines="none")["tasks"]["next_item"]["adapter"]
    assert found["ndcg@10"]["value"] == pytest.approx(version.manifest.metrics["next_item"]["ndcg@10"].value, abs=1e-6)


def test_the_engine_ranks_as_evaluation_does(published, base, grown) -> None:
    log = grown[1]
    registry, version, _ = published
    model, builder, split = restore(read_adapter(registry, version.ref, base), log, base)
    targets, _, top = predict(model, builder, split, TEST, max_events=32)["next_item"]
    model.release()
    last = [i for i, event in enumerate(targets.event.tolist()) if event + 1 in log.user_offsets][:5]
    with Engine(base, registry, data=log) as engine:
        for number in last:
            event, user = int(targets.event[number]), log.user_ids[int(targets.user[number])]
            past = log.history(user)[:-1]
            (answer,) = engine.score(
                [Request("next_item", history=past, k=10, user=log.users.row(log.user_code(user), named=True))]
            )
            items = [log.catalogue.code(each.item_id) for each in answer.results]
            if log.item_codes[event] not in [log.catalogue.code(one["item_id"]) for one in past]:
                assert items == top[number, : len(items)].tolist()


def test_an_int8_base_generates(published, tiny, log) -> None:
    registry, _, _ = published
    base = genre.Base.load(str(tiny), quantization="int8")
    with Engine(base, registry) as engine:
        ask = Request("next_item", history=log.history("u1")[:6], k=30, beam=30, exclude_seen=False)
        (answer,) = engine.score([ask])
    assert answer.error is None
    assert sum(np.exp([each.score for each in answer.results])) == pytest.approx(1, abs=1e-3)


def test_a_refresh_goes_on_from_it(published, base, grown, tmp_path) -> None:
    registry = genre.Registry(shutil.copytree(published[2], tmp_path / "registry"))
    result = refresh(registry, "next_item", grown[0], base=base, folder=tmp_path / "refresh")
    made = registry.resolve(result.version.ref if result.version else "next_item")
    assert made.manifest.encoder == published[1].manifest.encoder
    with Engine(base, registry) as engine:
        (answer,) = engine.score([Request(made.ref, history=[], k=3)])
    assert len(answer.results) == 3


def test_what_needs_a_score_of_every_item_says_so(published, base, log) -> None:
    registry, version, _ = published
    with pytest.raises(RegistryError, match="generates items"):
        product_task(version)
    with pytest.raises(ManifestError, match="generates items"):
        task_of(read_adapter(registry, version.ref, base), None)


def test_the_service_weighs_beams(published, log) -> None:
    _, version, _ = published
    estimate = TokenEstimate.of(version.manifest, 1000)
    narrow, wide = (estimate.tokens(Request("next_item", history=[], k=3, beam=beam), 0) for beam in (None, 220))
    assert wide - narrow == PER_PREFIX * 200
