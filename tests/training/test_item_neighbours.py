"""Item neighbours from the fit to the engine: whether they help, who decides, and that a version answers as it was measured."""

import numpy as np
import pytest
import torch

from genre.data.splits import TEST, training_events
from genre.distributed import Processes
from genre.engine import Engine, Request
from genre.engine.versions import read_adapter
from genre.errors import RecipeError
from genre.evaluation.ease import ease
from genre.evaluation.metrics.ranking import ndcg
from genre.evaluation.targets import targets
from genre.jobs.encoders import publish_encoder
from genre.jobs.publish import adapter_manifest, write_adapter
from genre.modules.heads.neighbours import ItemNeighbours
from genre.progress import Reporter
from genre.registry import Registry
from genre.registry.manifest import Cost
from genre.training import fit
from genre.training.neighbours import BLENDS, add_neighbours, fit_neighbours
from genre.training.prediction import outputs, predict
from genre.training.validation import validation_metrics
from kinds import log_of_kinds, run_of_kinds

ENCODER = {"encoder": {"taste": 0, "neighbours": 20, "whiten": True}}


@pytest.fixture
def fitted(tiny, tmp_path):
    made = run_of_kinds(tiny, **ENCODER)
    lines: list[str] = []
    fit(made, tmp_path / "run", reporter=Reporter(lines.append))
    yield made, lines
    made.model.release()


def test_neighbours_that_help_are_added_and_the_report_is_what_validation_then_measures(fitted):
    made, lines = fitted
    head = made.model.heads["next_item"]
    assert head.neighbours.items.shape == (90, 20) and all(
        float(blend) in [pytest.approx(each) for each in BLENDS] for blend in head.neighbours.blend
    )
    assert not any("neighbours" in name for name in made.model.trainable())
    after = validation_metrics(made, Processes())["next_item.ndcg@10"]
    made.model.heads["next_item"] = head.with_neighbours(None)
    before = validation_metrics(made, Processes())["next_item.ndcg@10"]
    assert after > before + 0.03
    report = next(line for line in lines if "item neighbours" in line)
    assert report.endswith(f"validation next_item.ndcg@10 {before:.4f} to {after:.4f}")


def test_the_neighbours_are_the_strongest_entries_of_ease(fitted):
    made, _ = fitted
    model = ease(made.log, made.split)
    neighbours = fit_neighbours(made, made.model.soft.index, 20)
    assert float(neighbours.fade[0]) == pytest.approx(model.fade)
    for row, own in enumerate(model.weights):
        best = np.argsort(-np.abs(own), kind="stable")[:20]
        assert neighbours.items[row].tolist() == best.tolist()
        assert neighbours.values[row].tolist() == pytest.approx(own[best].tolist(), abs=1e-3)


def test_items_held_out_of_training_are_found_through_their_nearest_items(tiny, tmp_path):
    split = {"kind": "last_n", "n": 2, "cold_items": 0.2}
    made = run_of_kinds(tiny, log=log_of_kinds(titled=True), data={"split": split}, **ENCODER)
    fit(made, tmp_path / "run")
    head = made.model.heads["next_item"]
    assert head.neighbours.stand_ins == head.spec.stand_ins == 4
    found = targets(made.log, made.split, TEST)
    new = training_events(made.log, made.split.part)[found.item] == 0
    assert new.sum() > 20

    def value():
        asked, ranks, _ = predict(made.model, made.builder, made.split, TEST, max_events=100)["next_item"]
        assert asked.event.tolist() == found.event.tolist()
        return ndcg(ranks[new], 10)

    head.neighbours.blend.copy_(torch.tensor([8.0, 0.0]))  # this text alone would do
    together = value()
    head.neighbours.stand_ins = 0
    assert together > value() + 0.05
    made.model.release()


def test_neighbours_that_do_not_help_are_left_out(tiny, tmp_path):
    made = run_of_kinds(tiny, log=log_of_kinds(told=False), **ENCODER)
    fit(made, tmp_path / "run")
    found = made.model.heads["next_item"]
    before = validation_metrics(made, Processes())["next_item.ndcg@10"]
    made.model.heads["next_item"] = found.with_neighbours(None)
    assert before >= validation_metrics(made, Processes())["next_item.ndcg@10"]
    made.model.release()


@pytest.mark.parametrize("encoder", [{"neighbours": 0, "taste": 0}, {"neighbours": 20, "taste": 0, "whiten": False}])
def test_without_whitening_there_is_no_text_and_with_none_no_neighbours(tiny, encoder):
    made = run_of_kinds(tiny, encoder=encoder)
    made.model.eval()
    list(add_neighbours(made, Processes()))
    own = made.model.heads["next_item"].neighbours
    assert (own is None) if not encoder["neighbours"] else float(own.blend[1]) == 0
    made.model.release()


def test_a_version_with_neighbours_answers_as_it_was_measured(fitted, tmp_path):
    made, _ = fitted
    registry = Registry(tmp_path / "registry")
    (tmp_path / "encoder").mkdir()
    digest, _ = publish_encoder(made, tmp_path / "encoder", registry, Cost())
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", made)
    manifest = adapter_manifest(made, encoder=digest, cost=Cost(), metrics={})
    version = registry.publish(tmp_path / "adapter", manifest)
    log, model = made.log, made.model
    events = np.flatnonzero(log.user_codes == 0)
    measured = {
        int(event): row
        for _, some, scores in outputs(model, made.builder, made.split, TEST, max_events=100, batch_tokens=4096)
        for event, row in zip(some, scores, strict=True)
    }
    model.release()
    kept = read_adapter(registry, version.ref, made.base).heads["next_item"].neighbours
    assert isinstance(kept, ItemNeighbours) and torch.equal(kept.items, model.heads["next_item"].neighbours.items)
    target = int(events[made.split.part[events] == TEST][0])
    history = [{"item_id": log.catalogue.item_ids[log.item_codes[event]], "rating": 5.0} for event in events if event < target]
    engine = Engine(made.base, registry)
    items = tuple(log.catalogue.item_ids)
    asked = Request(version.ref, history=history, candidates=(*items, {"title": "thing 7"}), task="next_item")
    (found,) = engine.score([asked])
    assert found.error is None
    scores = {row.item_id: row.score for row in found.results}
    wanted = dict(zip(items, measured[target].tolist(), strict=True))
    assert {item: scores[item] for item in items} == pytest.approx(wanted, abs=1e-4)
    assert "thing 7" in scores  # an inline item has neighbours by its text


def test_whitening_without_text_is_refused(tiny):
    with pytest.raises(RecipeError, match=r"encoder\.whiten needs encoder\.text"):
        run_of_kinds(tiny, encoder={"whiten": True, "text": False})
