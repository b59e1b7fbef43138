"""Preferences and policy gradients: formulas by brute force, worlds in which a preference is learnt, wrong recipes and logs."""

import itertools
import math

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import NEXT, PRIVACY, recipe
from genre.data.interactions import Interactions
from genre.data.sequences.batches import collate
from genre.errors import DataError, RecipeError
from genre.jobs.federated.options import check_federated
from genre.jobs.memory import plan_run
from genre.modules.lora.layer import attach, detach
from genre.modules.losses import draw_lists, group_relative, softmax_dpo
from genre.training import fit
from genre.training.assembly import assemble
from genre.training.epochs import plan_epoch
from genre.training.logged import training_labels
from genre.training.simultaneous import check_together
from kinds import LISTED, own_kind, preferred, scores_of

QUIET = {"encoder": {"taste": 0}, "data": {"split": {"kind": "last_n", "n": 1}}, "sequence": {"instruction": "User:"}}
DPO = {**NEXT, "loss": "softmax_dpo", "preference": {"negatives": 4}, "metrics": ["ndcg@10"]}
GROUPS = {**NEXT, "loss": "group_relative", "metrics": ["ndcg@10"]}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss, logits):
    """A loss and its gradient by the logits."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    return value.detach(), leaf.grad


def test_one_rejected_item_is_dpo():
    logits, before = drawn(5, 7), drawn(5, 7, seed=1)
    labels, rejected = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([[6], [5], [4], [6], [0]])

    def dpo(z):
        share, reference = z.log_softmax(-1), before.log_softmax(-1)
        gain = [part.gather(1, labels[:, None]) - part.gather(1, rejected) for part in (share, reference)]
        return -torch.nn.functional.logsigmoid(0.3 * (gain[0] - gain[1])).mean()

    expected, wanted = gradient(dpo, logits)
    value, found = gradient(lambda z: softmax_dpo(z, labels, before, rejected, beta=0.3), logits)
    assert torch.allclose(value.double(), expected, atol=1e-6) and torch.allclose(found, wanted, atol=1e-6)


def test_several_rejected_items_are_counted_each_and_minus_one_is_none():
    logits, before = drawn(3, 6), drawn(3, 6, seed=1)
    labels, rejected = torch.tensor([0, 1, 2]), torch.tensor([[1, 2, 5], [3, -1, -1], [-1, -1, -1]])

    def slowly(z):
        total = 0.0
        for row in range(2):  # the third has nothing that was rejected, and takes no part
            share, reference = z[row].log_softmax(-1), before[row].log_softmax(-1)
            gain = [share[i] - reference[i] for i in range(6)]
            others = sum(torch.exp(0.7 * (gain[d] - gain[labels[row]])) for d in rejected[row].tolist() if d >= 0)
            total = total - torch.log(1 / (1 + others))
        return total / 2

    expected, wanted = gradient(slowly, logits)
    value, found = gradient(lambda z: softmax_dpo(z, labels, before, rejected, beta=0.7), logits)
    assert torch.allclose(value.double(), expected, atol=1e-6) and torch.allclose(found, wanted, atol=1e-6)
    assert not found[2].any()


def log_chance(z, one):
    """log of the probability that a list is drawn, by its definition."""
    left, total = set(range(len(z))), z.new_zeros(())
    for item in one:
        total = total + z[item] - torch.logsumexp(z[sorted(left)], 0)
        left.remove(item)
    return total


def gain(reward, target, one):
    place = one.index(target) + 1 if target in one else math.inf
    return {"ndcg": 1 / math.log2(1 + place), "mrr": 1 / place, "hit": float(place < math.inf)}[reward]


@pytest.mark.parametrize("reward", ["ndcg", "mrr", "hit"])
def test_the_expected_gradient_over_all_groups_is_the_analytic_one(reward):
    """Groups of two lists of two among four items: all 144, by their probability, with the whole list's own score function."""
    logits, before, target = drawn(4), drawn(4, seed=1), 2
    lists = list(itertools.permutations(range(4), 2))
    chance = torch.stack([log_chance(logits, one) for one in lists]).exp()
    assert float(chance.sum()) == pytest.approx(1)

    def divergence(z):
        share = z.log_softmax(-1)
        return (share.exp() * (share - before.log_softmax(-1))).sum()

    groups = list(itertools.product(range(len(lists)), repeat=2))
    weights = torch.tensor([float(chance[a] * chance[b]) for a, b in groups])

    def slowly(z):
        own, total = torch.stack([log_chance(z, one) for one in lists]), z.new_zeros(())
        for weight, group in zip(weights, groups, strict=True):
            rewards = np.array([gain(reward, target, lists[one]) for one in group])
            if rewards[0] != rewards[1]:
                advantages = torch.from_numpy((rewards - rewards.mean()) / rewards.std())
                total = total - weight * (advantages * own[list(group)]).mean()
        return total + 0.4 * divergence(z)

    each = torch.tensor([[lists[a], lists[b]] for a, b in groups])

    def ours(z):
        count = len(each)
        rows, references = z.expand(count, -1), before.expand(count, -1)
        total = z.new_zeros(())
        for row in range(count):
            one = slice(row, row + 1)
            value = group_relative(rows[one], torch.tensor([target]), references[one], each[one], reward=reward, kl=0.4)
            total = total + weights[row] * value
        return total

    _, wanted = gradient(slowly, logits)
    _, found = gradient(ours, logits)
    assert wanted.norm() > 0.05 and torch.allclose(found, wanted, atol=1e-5), (found, wanted)
    torch.manual_seed(0)
    leaf, count = logits.float().clone().requires_grad_(), 100_000
    many, labels, references = leaf.expand(count, -1), torch.full((count,), target), before.float().expand(count, -1)
    group_relative(many, labels, references, draw_lists(many, 2, 2), reward=reward, kl=0.4).backward()
    assert torch.allclose(leaf.grad.double(), wanted, atol=6e-3), (leaf.grad, wanted)


def test_lists_are_drawn_from_the_softmax_without_replacement():
    torch.manual_seed(0)
    logits = torch.tensor([[1.0, 0.0, -torch.inf, -1.0]]).repeat(200, 1)
    lists = draw_lists(logits, 100, 2)
    assert lists.shape == (200, 100, 2) and (lists[..., 0] != lists[..., 1]).all() and not (lists == 2).any()
    share = torch.bincount(lists[..., 0].flatten(), minlength=4) / 20_000
    assert torch.allclose(share, logits[0].softmax(-1), atol=0.015)
    assert draw_lists(logits, 1, 9).shape == (200, 1, 4)  # the catalogue is shorter than a list


def test_rewards_that_are_alike_teach_nothing():
    logits, labels = drawn(2, 5).float(), torch.tensor([3, 4])
    lists = torch.tensor([[[0, 1], [1, 2], [2, 0]], [[4, 1], [4, 2], [4, 0]]])  # no hit at all, and a hit at the same place
    value, found = gradient(lambda z: group_relative(z, labels, logits, lists, reward="ndcg", kl=0.0), logits)
    assert value == 0 and not found.any()
    _, found = gradient(lambda z: group_relative(z, labels, logits, lists, reward="ndcg", kl=1.0), logits)
    assert torch.allclose(found, torch.zeros(2, 5), atol=1e-7)  # at the reference the divergence is smallest


def test_excluded_items_and_short_catalogues_leave_gradients_finite():
    logits = torch.tensor([[2.0, 0.5, -torch.inf, 1.0]])
    lists = draw_lists(logits, 8, 4)
    value, found = gradient(lambda z: group_relative(z, torch.tensor([0]), logits, lists, reward="ndcg", kl=0.5), logits)
    assert torch.isfinite(value) and torch.isfinite(found).all() and found[0, 2] == 0


@pytest.mark.parametrize("loss", ["softmax_dpo", "group_relative"])
def test_nothing_to_average_gives_zero_with_a_gradient(loss):
    empty, labels = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.long)
    if loss == "softmax_dpo":
        value = softmax_dpo(empty, labels, empty.detach(), torch.zeros(0, 2, dtype=torch.long), beta=1.0)
    else:
        lists = draw_lists(empty.detach(), 2, 2)
        value = group_relative(empty, labels, empty.detach(), lists, reward="hit", kl=0.1)
    value.backward()
    assert value.item() == 0 and empty.grad is not None


def wanted(tiny, task, **train):
    return recipe(tiny, task, **QUIET, train={"epochs": 6, "learning_rate": 1e-2, "early_stop": None, **train})


def test_a_preference_is_learnt_from_impressions(tiny, shown, tmp_path):
    task = {**DPO, "label": "click > 0", "preference": {"source": "impressions"}}
    made = assemble(wanted(tiny, task), shown, genre.Base.load(str(tiny)))
    try:
        learns = training_labels(shown, made.recipe.tasks)["next_item"][1]
        assert np.array_equal(learns >= 0, shown.column("click") == 1)
        before = preferred(shown, scores_of(made))
        fit(made, tmp_path)
        after = preferred(shown, scores_of(made))
        assert after > 0.9 > before + 0.1, (before, after)
    finally:
        made.model.release()


@pytest.mark.parametrize("source", ["pairs", "popularity", "uniform", "batch", "policy"])
def test_rejected_items_of_every_source(tiny, clicked, source):
    task = {**DPO, "preference": {"source": source, "negatives": 4}}
    made = assemble(wanted(tiny, task), clicked, genre.Base.load(str(tiny)))
    try:
        labels = training_labels(clicked, made.recipe.tasks)
        planned = plan_epoch(made, labels, 0)
        batch, model = collate(planned.batches[0], planned.labels), made.model.train()
        hidden = model.hidden(batch)
        _, (_, targets, before, rejected) = model._loss_of("next_item", hidden, batch, None, model.reference.hidden(model, batch))
        events = batch.reads["next_item"].events.numpy()
        assert rejected.shape == (len(targets), 2 if source == "pairs" else 4) and before.shape[1] == LISTED
        for event, target, row in zip(events.tolist(), targets.tolist(), rejected.tolist(), strict=True):
            own = [item for item in row if item >= 0]
            assert target not in own
            if source == "pairs":
                assert sorted(own) == sorted(clicked.catalogue.codes(clicked.column("rejected")[event].split()).tolist())
            else:
                earlier = (np.arange(len(clicked)) < event) | ((source == "batch") & made.train_mask)
                earlier &= clicked.user_codes == clicked.user_codes[event]
                assert not set(own) & set(clicked.item_codes[earlier].tolist())
        assert (rejected >= 0).float().mean() > 0.3
    finally:
        made.model.release()


def test_the_reference_is_the_model_before_its_first_step(tiny, clicked, tmp_path):
    made = assemble(wanted(tiny, DPO, epochs=2, dropout=0.3), clicked, genre.Base.load(str(tiny)))
    try:
        planned = plan_epoch(made, training_labels(clicked, made.recipe.tasks), 0)
        batch, model = collate(planned.batches[0], planned.labels), made.model

        def outcome():
            return model.reference.output("next_item", model.reference.hidden(model, batch), batch)

        model.eval()
        with torch.no_grad():
            start = model.output("next_item", model.hidden(batch), batch)
            assert torch.equal(outcome(), start)
            detach(model.base.model, model.layers)  # before the first step it is the base without the adapter
            assert torch.allclose(model.output("next_item", model.hidden(batch), batch), start, atol=1e-5)
            attach(model.base.model, model.layers)
        fit(made, tmp_path)
        model.train()
        assert torch.allclose(outcome(), start, atol=1e-6)
        assert model.training and model.heads["next_item"].training
        with torch.no_grad():
            assert not torch.allclose(model.eval().output("next_item", model.hidden(batch), batch), start, atol=1e-3)
        loss, _ = model(batch)
        loss.backward()
        assert all(layer.lora_B.grad is not None for layer in model.layers.values())
    finally:
        made.model.release()


def test_a_policy_gradient_raises_the_reward(tiny, clicked, tmp_path):
    """The next item is of the user's kind: half of the catalogue, less what the user had."""
    task = {**GROUPS, "group": {"size": 8, "length": 3, "kl": 0.01}}
    made = assemble(wanted(tiny, task, batch_tokens=256), clicked, genre.Base.load(str(tiny)))

    def expected():
        return own_kind(clicked, scores_of(made))

    try:
        before = expected()
        fit(made, tmp_path)
        after = expected()
        assert after > before + 0.15, (before, after)
    finally:
        made.model.release()


def test_memory_is_planned_for_the_reference_too(tiny, clicked):
    for task in (DPO, GROUPS):
        assert plan_run(wanted(tiny, task), data=clicked, device="cpu").step > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "softmax_dpo", "preference": {"beta": 0}}, "beta: got 0; expected more than 0"),
        ({"loss": "softmax_dpo", "preference": {"negatives": 0}}, "negatives: got 0"),
        ({"loss": "softmax_dpo", "preference": {"source": "clicks"}}, "source: got 'clicks'"),
        ({"loss": "softmax_dpo", "preference": {"negative": 3}}, "did you mean 'negatives'"),
        ({"loss": "softmax_dpo", "preference": {"source": "impressions"}}, "needs a label, such as label: click > 0"),
        ({"loss": "cross_entropy", "preference": {}}, "preference is for loss softmax_dpo"),
        ({"loss": "softmax_dpo", "group": {}}, "group is for loss group_relative"),
        ({"loss": "group_relative", "group": {"size": 1}}, "size: got 1; expected at least 2"),
        ({"loss": "group_relative", "group": {"kl": -1}}, "kl: got -1"),
        ({"loss": "group_relative", "group": {"reward": "auc"}}, "reward: got 'auc'"),
        ({"kind": "feedback", "head": "binary", "label": "click", "loss": "softmax_dpo"}, "head 'binary' takes loss log_loss"),
    ],
)
def test_wrong_tasks(tiny, changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(tiny, {**NEXT, **changes})


@pytest.mark.parametrize("task", [DPO, GROUPS], ids=["softmax_dpo", "group_relative"])
def test_what_does_not_go_with_it(tiny, clicked, task):
    loss = task["loss"]
    with pytest.raises(RecipeError, match=f"loss {loss} has the base as it was for its reference"):
        recipe(tiny, task, **QUIET, adapter={"kind": "full"})
    sections = {**QUIET, "encoder": {"learned": 0, "collaborative": 0, "taste": 0}, "sequence": {"feedback": "none"}}
    with pytest.raises(RecipeError, match=f"loss {loss} of task next_item draws across users"):
        recipe(tiny, task, **sections, train={"privacy": PRIVACY})
    with pytest.raises(RecipeError, match=f"keep no reference: got loss {loss} of task next_item"):
        check_federated(recipe(tiny, task, **QUIET))
    with pytest.raises(RecipeError, match=f"cannot train beside others: tasks.loss: got {loss}"):
        check_together([recipe(tiny, task, **QUIET), recipe(tiny, NEXT, name="other")])
    with pytest.raises(RecipeError, match=f"loss {loss} needs the whole catalogue: got 12 items"):
        assemble(recipe(tiny, task, **QUIET, train={"sampled": {"above": 5}}), clicked, genre.Base.load(str(tiny)))
    key, section = ("negatives", "preference") if loss == "softmax_dpo" else ("length", "group")
    with pytest.raises(RecipeError, match=f"{section}.{key} asks for too many items: got 12; expected fewer than the 12 items"):
        assemble(recipe(tiny, {**task, section: {key: 12}}, **QUIET), clicked, genre.Base.load(str(tiny)))


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("impressions", {}, "needs impressions: got .*; expected a column 'impression_id'"),
        ("pairs", {"rejected": pl.lit("i1 i99")}, "is unknown: got 'i99' in rejected of row .*; expected an id of the catalogue"),
        ("pairs", {"rejected": pl.col("item_id")}, "is the chosen one: got rejected of row"),
        ("pairs", {"rejected": pl.lit(None, pl.String)}, "has nothing to prefer: got .* none with a rejected item"),
        ("pairs", {"rejected": None}, "the log has no column 'rejected'"),
    ],
)
def test_wrong_logs(tiny, clicked, source, change, message):
    frame = clicked.frame.drop("row").with_columns(pl.lit(1).alias("click"))
    for name, values in change.items():
        frame = frame.drop(name) if values is None else frame.with_columns(values.alias(name))
    log = Interactions.from_frame(frame, items=clicked.catalogue.frame, name="clicked")
    task = {**DPO, "label": "click > 0", "preference": {"source": source}}
    with pytest.raises(DataError, match=message):
        assemble(recipe(tiny, task, **QUIET), log, genre.Base.load(str(tiny)))
