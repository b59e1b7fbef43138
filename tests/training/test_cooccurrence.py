"""The term of a next-item head that is fitted after training: whether it helps, who decides, and who keeps it."""

import numpy as np
import polars as pl
import pytest
import torch

from builders import LIKE, NEXT
from fakes import planted_log
from genre.data.interactions import Interactions
from genre.distributed import Processes
from genre.engine.versions import read_adapter
from genre.jobs.encoders import publish_encoder
from genre.jobs.publish import adapter_manifest, write_adapter
from genre.modules.collaborative import pure_svd
from genre.modules.heads.gaussian_process import to_unit
from genre.progress import Reporter
from genre.registry import Registry
from genre.registry.manifest import Cost
from genre.training import fit
from genre.training.cooccurrence import WEIGHTS, add_cooccurrence, fit_factors
from genre.training.validation import validation_metrics
from kinds import EVENTS, ITEMS, USERS, log_of_kinds, run_of_kinds


def test_a_taste_that_helps_is_added_and_says_what_validation_then_measures(tiny, tmp_path):
    made = run_of_kinds(tiny)
    lines: list[str] = []
    fit(made, tmp_path / "run", reporter=Reporter(lines.append))
    head = made.model.heads["next_item"]
    assert head.taste.shape == (64, 32) and float(head.blend) in [pytest.approx(blend) for blend in WEIGHTS[1:]]
    assert "taste" not in "".join(made.model.trainable())
    after = validation_metrics(made, Processes())["next_item.ndcg@10"]
    made.model.heads["next_item"] = head.with_cooccurrence(None)
    before = validation_metrics(made, Processes())["next_item.ndcg@10"]
    assert after > before + 0.03
    report = next(line for line in lines if "co-occurrence term with weight" in line)
    assert report.endswith(f"validation next_item.ndcg@10 {before:.4f} to {after:.4f}")
    made.model.release()


def test_a_version_keeps_its_taste_and_one_without_it_is_read_as_before(tiny, tmp_path):
    made = run_of_kinds(tiny)
    fit(made, tmp_path / "run")
    registry = Registry(tmp_path / "registry")
    base = made.base
    (tmp_path / "encoder").mkdir()
    digest, _ = publish_encoder(made, tmp_path / "encoder", registry, Cost())
    for name in ("with", "without"):
        if name == "without":
            made.model.heads["next_item"] = made.model.heads["next_item"].with_cooccurrence(None)
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / name, made)
        manifest = adapter_manifest(made, encoder=digest, cost=Cost(), metrics={})
        registry.publish(tmp_path / name, manifest.model_copy(update={"name": name}))
    made.model.release()
    head = read_adapter(registry, "with", base).heads["next_item"]
    assert head.taste.shape == (64, 32) and float(head.blend) > 0
    assert read_adapter(registry, "without", base).heads["next_item"].taste is None


def test_a_taste_that_does_not_help_is_left_out(tiny, tmp_path):
    """Users who take any item at random: whatever counts on top of popularity is noise, and mostly 0 is best."""
    made = run_of_kinds(tiny, log=log_of_kinds(told=False))
    given = made.log
    fit(made, tmp_path / "run")
    head = made.model.heads["next_item"]
    blend = 0.0 if head.blend is None else float(head.blend)
    before = validation_metrics(made, Processes())["next_item.ndcg@10"]
    made.model.heads["next_item"] = head.with_cooccurrence(None)
    assert before >= validation_metrics(made, Processes())["next_item.ndcg@10"]
    harmful = -10 * fit_factors(to_unit(made.model.soft.every()), given, made.train_mask, 8)
    made.model.heads["next_item"] = head.with_cooccurrence(harmful, 1.0)
    list(add_cooccurrence(made, Processes()))
    head = made.model.heads["next_item"]
    assert (0.0 if head.blend is None else float(head.blend)) == blend
    made.model.release()


@pytest.mark.parametrize(
    "sections",
    [
        {"encoder": {"taste": 0}},
        {"encoder": {"fuse": False}},
        {"data": {"split": {"kind": "user_ratio", "valid": 0.0, "test": 0.2}}},
    ],
)
def test_where_there_is_none(tiny, tmp_path, sections):
    made = run_of_kinds(tiny, **sections)
    fit(made, tmp_path / "run")
    assert made.model.heads["next_item"].taste is None and "next_item.taste" not in made.model.heads.state_dict()
    made.model.release()


def test_other_tasks_have_none_and_do_not_stand_in_the_way(tiny, tmp_path):
    made = run_of_kinds(tiny, LIKE, NEXT, log=planted_log(), data={"split": {"kind": "user_ratio", "valid": 0.2, "test": 0.2}})
    fit(made, tmp_path / "run")
    assert not any(name.startswith("like.") and "taste" in name for name in made.model.heads.state_dict())
    made.model.release()


def test_the_fit_sees_training_events_alone_and_its_scale_is_that_of_a_users_scores():
    log = log_of_kinds()
    usable = np.arange(len(log)) % EVENTS < EVENTS - 4
    vectors = to_unit(torch.randn(ITEMS, 128, generator=torch.Generator().manual_seed(0)))  # more dimensions than items: exact
    taste = fit_factors(vectors, log, usable, 16)
    factors, fitted = pure_svd(log, usable, dimensions=16), (vectors @ taste.t()).numpy()
    wanted = factors @ factors.T
    got = fitted @ fitted.T
    assert np.corrcoef(wanted.ravel(), got.ravel())[0, 1] > 0.95
    spreads = []
    for user in range(USERS):
        own = log.item_codes[usable & (log.user_codes == user)]
        spreads.append(np.std(0.95 ** np.arange(len(own))[::-1] @ fitted[own] @ fitted.T))
    assert np.mean(spreads) == pytest.approx(1.0, abs=0.02)
    frame = log.frame.with_columns(pl.when(pl.Series(usable)).then(pl.col("item_id")).otherwise(pl.lit("i0")).alias("item_id"))
    changed = Interactions.from_frame(frame.drop("row"), items=log.catalogue.frame, name="kinds")
    assert torch.equal(fit_factors(vectors, changed, usable, 16), taste)


def test_where_all_targets_are_too_many_some_of_them_choose(tiny, tmp_path, monkeypatch):
    made = run_of_kinds(tiny)
    fit(made, tmp_path / "run")
    (whole,) = list(add_cooccurrence(made, Processes()))
    monkeypatch.setattr("genre.training.cooccurrence.MOST_SCORES", 1)
    (part,) = list(add_cooccurrence(made, Processes()))
    assert part.split(":")[:1] == whole.split(":")[:1] and part != whole
    assert float(made.model.heads["next_item"].blend) > 0
    made.model.release()
