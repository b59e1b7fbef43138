"""Rare labels: some negatives left out of training without bending the probabilities, and means that chance cannot carry away."""

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import recipe
from genre.data.interactions import Interactions
from genre.data.splits import TEST, split
from genre.errors import RecipeError
from genre.evaluation.baselines import feedback_baselines
from genre.evaluation.labels import smoothing, thin_negatives
from genre.evaluation.targets import targets
from genre.modules.losses import log_loss, sampled_log_loss
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.tasks import Task
from genre.training.assembly import assemble
from genre.training.loop import Loop

CLICK = {"name": "click", "kind": "feedback", "label": "click", "metrics": ["log_loss", "auc", "ece"]}
ALONE = {"min_events": 1, "max_events": 2}
TEXT = {"item": "text", "text": ["title"], "instruction": "{side}:", "feedback": "click"}


def rare_log(*, events: int = 3000, items: int = 6, share: float = 0.04, seed: int = 0) -> Interactions:
    """A user per impression; people of side R click three times as often as those of side L."""
    draw = np.random.default_rng(seed)
    side = draw.integers(0, 2, events)
    click = (draw.random(events) < np.where(side == 1, 1.5, 0.5) * share).astype(int)
    frame = pl.DataFrame(
        {
            "user_id": [f"u{i}" for i in range(events)],
            "item_id": [f"i{i}" for i in draw.integers(0, items, events)],
            "click": click,
            "timestamp": 1000 + np.arange(events),
        }
    )
    people = pl.DataFrame({"user_id": [f"u{i}" for i in range(events)], "side": [("L", "R")[s] for s in side]})
    catalogue = pl.DataFrame({"item_id": [f"i{i}" for i in range(items)], "title": [f"thing {i}" for i in range(items)]})
    return Interactions.from_frame(frame, items=catalogue, users=people, name="rare")


def test_the_corrected_loss_has_its_minimum_at_the_whole_logs_logit():
    """1,000 events with 40 clicks; a tenth of the negatives is kept. The best constant logit is that of 40 in 1,000."""
    labels = torch.tensor([1.0] * 40 + [0.0] * 96)
    grid = torch.linspace(-6, 0, 6001)
    losses = torch.stack([sampled_log_loss(z.expand(136), labels, 0.1) for z in grid])
    assert torch.sigmoid(grid[losses.argmin()]) == pytest.approx(0.04, abs=1e-4)
    plain = torch.stack([log_loss(z.expand(136), labels) for z in grid])
    assert torch.sigmoid(grid[plain.argmin()]) == pytest.approx(40 / 136, abs=1e-3)
    assert sampled_log_loss(grid[:136], labels, 1.0) == log_loss(grid[:136], labels)


def test_negatives_are_drawn_anew_and_positives_stay():
    tasks = [Task.model_validate({**CLICK, "keep_negatives": 0.25}), Task.model_validate({**CLICK, "name": "whole"})]
    own = np.array([1.0, 0.0, np.nan, 0.0] * 1000)
    found = [thin_negatives(tasks, {"click": own, "whole": own}, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for each in found:
        assert np.nansum(each["click"]) == 1000 and (each["click"] == 0).sum() == pytest.approx(500, abs=60)
        assert each["whole"] is own
    assert np.array_equal(found[0]["click"], found[1]["click"], equal_nan=True)
    assert not np.array_equal(found[0]["click"], found[2]["click"], equal_nan=True)


def test_an_epoch_reads_what_is_left_alone(base, tiny, tmp_path):
    """Rows are made for the chosen events only, others are chosen in the next epoch, and a resumed epoch chooses the same."""
    log = rare_log(events=400)
    wanted = recipe(tiny, {**CLICK, "keep_negatives": 0.1}, data=ALONE, sequence=TEXT, encoder={"use": "none"})
    assembly = assemble(wanted, log, base)
    try:
        loop = Loop(assembly, tmp_path, Reporter.silent())
        clicks = int(log.column("click")[assembly.train_mask].sum())
        seen = []
        for epoch in (0, 0, 1):
            events = np.concatenate([row.events[row.targets] for rows in loop.plan(epoch) for row in rows])
            assert len(events) < clicks + 0.2 * assembly.train_mask.sum() and assembly.train_mask[events].all()
            assert log.column("click")[events].sum() == clicks
            seen.append(set(events.tolist()))
        assert seen[0] == seen[1] != seen[2]
        loop.close()
    finally:
        assembly.model.release()


def test_a_tenth_of_the_negatives_leaves_probabilities_calibrated(base, tiny, tmp_path):
    """The mean prediction is near the log's share of clicks, not that of what was trained on; the side of a person is learnt."""
    log = rare_log()
    wanted = recipe(
        tiny,
        {**CLICK, "keep_negatives": 0.1},
        data=ALONE,
        sequence=TEXT,
        encoder={"use": "none"},
        train={"epochs": 6, "learning_rate": 1e-2},
    )
    run = genre.train(wanted, log=log, base=base, folder=tmp_path)
    found = pl.read_parquet(tmp_path / "predictions.parquet")
    assert found["score"].mean() == pytest.approx(0.04, abs=0.02)
    assert run.metrics["click"]["ece"]["value"] < 0.05 and run.metrics["click"]["auc"]["n"] == 300


def test_a_rare_label_is_smoothed_more():
    assert smoothing(0.55) == smoothing(0.5) == 5 and smoothing(0.005) == 200 == pytest.approx(smoothing(0.995))
    log = rare_log(events=1000, share=0.01)
    chosen = split(log, recipe("x", CLICK).data.split)
    label = log.column("click")
    found = targets(log, chosen, TEST, label)
    scores = feedback_baselines(log, chosen, label, found, binary=True)["item_mean"]
    known = np.asarray(chosen.part) == 0
    mean = label[known].mean()
    own = known & (log.item_codes == found.item[0])
    assert scores[0] == pytest.approx((label[own].sum() + 1) / (own.sum() + 1 / mean))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_negatives": 0}, "tasks.0.keep_negatives: got 0; expected more than 0"),
        ({"keep_negatives": 1.5}, "tasks.0.keep_negatives: got 1.5; expected at most 1"),
        ({"keep_negatives": "few"}, "tasks.0.keep_negatives: got 'few'; expected .*a number"),
        ({"keep_negatives": 0.1, "head": "scalar", "loss": "mse", "metrics": ["rmse"]}, "keep_negatives is for loss log_loss"),
        ({"keep_negative": 0.1}, "unknown key 'tasks.0.keep_negative'.*did you mean 'keep_negatives'"),
    ],
)
def test_bad_input_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse({"name": "ads", "data": {"path": "data/ads"}, "tasks": [{**CLICK, **changes}]})
