"""Learning a policy from logged propensities: formulas by hand, a world with a biased log, wrong recipes and logs."""

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import NEXT, recipe
from genre.data.interactions import Interactions
from genre.data.splits import TEST, split
from genre.errors import DataError, RecipeError
from genre.jobs.memory import plan_run
from genre.modules.losses import dr, ips, snips
from genre.training import fit, memory_plan
from genre.training.assembly import assemble
from genre.training.epochs import plan_epoch
from genre.training.logged import training_labels
from genre.training.prediction import outputs

ITEMS = 12
LEARNS = {**NEXT, "loss": "ips", "metrics": ["ndcg@10"]}
QUIET = {"encoder": {"taste": 0}, "data": {"split": {"kind": "last_n", "n": 1}}, "sequence": {"instruction": "User:"}}


def kind_of(name):
    return int(name.removeprefix("u")) % 2


def liking(kind):
    """(N,) the chance of a reward of each item, for a kind of users."""
    return np.where(np.arange(ITEMS) % 2 == kind, 0.8, 0.1)


@pytest.fixture(scope="module")
def world():
    """Users of two kinds; after two items that they like, a policy that does not know them shows eight, mostly items 0 to 2."""
    draw, rows = np.random.default_rng(0), []
    logging = np.where(np.arange(ITEMS) < 3, 0.25, 0.25 / (ITEMS - 3))
    for user in range(80):
        likes = np.flatnonzero(np.arange(ITEMS) % 2 == user % 2)
        for step, item in enumerate(draw.choice(likes, 2, replace=False).tolist()):
            rows.append((f"u{user}", f"i{item}", step, 1, None))
        for step in range(8):
            item = int(draw.choice(ITEMS, p=logging))
            rows.append((f"u{user}", f"i{item}", 2 + step, int(draw.random() < liking(user % 2)[item]), logging[item]))
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "click", "propensity"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(ITEMS)], "title": [f"thing {n % 2} {n}" for n in range(ITEMS)]})
    return Interactions.from_frame(frame, items=items, name="shown")


def value(tiny, log, folder, loss, **logged):
    """The true chance of a reward by the learned softmax, at the last event of every user."""
    task = {
        **LEARNS,
        "loss": loss,
        **({"logged": logged} if logged else {}),
        **({"label": "click > 0"} if loss == "cross_entropy" else {}),
    }
    train = {"epochs": 12, "batch_tokens": 1024, "learning_rate": 1e-2, "early_stop": None}
    base = genre.Base.load(str(tiny))
    made = assemble(recipe(tiny, task, **QUIET, train=train), log, base)
    fit(made, folder)
    found = []
    every = made.model.tasks["next_item"].model_copy(update={"label": None, "loss": "cross_entropy", "logged": None})
    made.model.tasks["next_item"] = every
    for _, events, scores in outputs(made.model, made.builder, made.split, TEST, max_events=16):
        shares = torch.from_numpy(scores).double().softmax(-1).numpy()
        found += [
            share @ liking(kind_of(log.user_ids[log.user_codes[event]])) for event, share in zip(events, shares, strict=True)
        ]
    made.model.release()
    assert len(found) == 80
    return float(np.mean(found))


def test_formulas_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, np.log(3.0)]])
    labels, reward, propensity = torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), torch.tensor([0.25, 0.5])
    given = (logits, labels, reward, propensity)  # weights 2 and 1.5
    assert float(ips(*given, clip=10.0)) == pytest.approx(-(2 * 1 + 1.5 * 2) / 2)
    assert float(ips(*given, clip=1.8)) == pytest.approx(-(1.8 * 1 + 1.5 * 2) / 2)
    assert float(snips(*given, clip=10.0)) == pytest.approx(-(2 * 1 + 1.5 * 2) / 3.5)
    model = torch.tensor([0.5, 1.0])
    whole = [0.5 * 0.5 + 0.5 * 1.0 + 2 * (1 - 0.5), 0.25 * 0.5 + 0.75 * 1.0 + 1.5 * (2 - 1.0)]
    assert float(dr(*given, clip=10.0, model=model)) == pytest.approx(-sum(whole) / 2)
    empty = (logits[:0], labels[:0], reward[:0], propensity[:0])
    assert float(ips(*empty, clip=1.0)) == float(snips(*empty, clip=1.0)) == 0.0


@pytest.mark.parametrize(("loss", "more"), [("ips", 0.1), ("snips", 0.05), ("dr", 0.1)])
def test_a_policy_is_learned_from_a_biased_log(tiny, world, tmp_path, loss, more):
    """The log's own policy earns about .45; what is learned knows whom it shows what."""
    shown = world.frame["propensity"].is_not_null()
    logging = world.frame.filter(shown)["click"].mean()
    learned = value(tiny, world, tmp_path, loss)
    assert learned > logging + more, (learned, logging)


def test_training_learns_from_what_earned_nothing_and_evaluation_does_not(tiny, world):
    made = assemble(recipe(tiny, LEARNS, **QUIET), world, genre.Base.load(str(tiny)))
    try:
        (task,) = made.recipe.tasks
        assert (task.label, task.logged.reward, task.logged.clip) == ("click > 0", "click", 10.0)
        learns, targets = training_labels(world, [task])["next_item"][1], world.labels_of(task)
        known, clicked = world.frame["propensity"].is_not_null().to_numpy(), world.column("click") > 0
        assert np.array_equal(learns >= 0, known) and np.array_equal(targets >= 0, clicked)
        logged = made.model.logged["next_item"]
        train = known & (split(world, made.recipe.data.split).part == 0)
        events = np.flatnonzero(train & (world.item_codes == 0))
        share = world.column("click")[train].mean()
        expected = (world.column("click")[events].sum() + 20 * share) / (len(events) + 20)
        assert float(logged.model[0]) == pytest.approx(expected, abs=1e-6)
    finally:
        made.model.release()


def test_a_memory_plan_learns_from_the_same_events(tiny, world, monkeypatch):
    seen = []
    monkeypatch.setattr(
        memory_plan, "plan_epoch", lambda made, labels, epoch: seen.append(labels) or plan_epoch(made, labels, epoch)
    )
    wanted = recipe(tiny, LEARNS, **QUIET)
    assert plan_run(wanted, data=world, device="cpu").step > 0
    assert np.array_equal(seen[0]["next_item"][1] >= 0, world.frame["propensity"].is_not_null().to_numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "feedback", "head": "binary", "label": "click", "loss": "ips"}, "head 'binary' takes loss log_loss"),
        ({"loss": "cross_entropy", "logged": {}}, "logged is for loss ips, snips, dr"),
        ({"loss": "ips", "logged": {"clip": 0}}, "clip: got 0; expected more than 0"),
        ({"loss": "ips", "logged": {"propensities": "p"}}, "propensities"),
    ],
)
def test_wrong_tasks(tiny, changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(tiny, {**NEXT, **changes})


def test_private_training_refuses_it(tiny):
    sections = {"data": QUIET["data"], "encoder": {"learned": 0, "collaborative": 0}, "sequence": {"feedback": "none"}}
    with pytest.raises(RecipeError, match="loss ips of task next_item reads rewards without a bound"):
        recipe(tiny, LEARNS, **sections, train={"privacy": {"epsilon": 8}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.lit(None, pl.Float64), "task 'next_item' has nothing to learn from: got click and propensity in none of"),
        (pl.lit(1.5), "a propensity of task 'next_item' is none: got propensity 1.5 in row .*; expected above 0, at most 1"),
        (pl.lit("x"), "the propensity of task 'next_item' is text"),
    ],
)
def test_wrong_logs(tiny, world, change, message):
    frame = world.frame.drop("row").with_columns(change.alias("propensity"))
    log = Interactions.from_frame(frame, items=world.catalogue.frame, name="shown")
    with pytest.raises(DataError, match=message):
        assemble(recipe(tiny, LEARNS, **QUIET), log, genre.Base.load(str(tiny)))


def test_a_sampled_catalogue_is_refused(tiny, world):
    with pytest.raises(RecipeError, match="loss ips needs the whole catalogue: got 12 items with train.sampled.above 5"):
        assemble(recipe(tiny, LEARNS, **QUIET, train={"sampled": {"above": 5}}), world, genre.Base.load(str(tiny)))
