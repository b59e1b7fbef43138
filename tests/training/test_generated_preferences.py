"""Losses that compare generated items: against scores of the whole catalogue, what is drawn, what is learnt, what is refused."""

import dataclasses
import itertools

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import NEXT, PRIVACY, recipe, stir, weights
from genre.data.interactions import Interactions
from genre.data.sequences.code_branches import CodeBranches
from genre.errors import InterruptedJobError, RecipeError
from genre.jobs.federated.options import check_federated
from genre.jobs.memory import plan_run
from genre.modules.losses import group_relative_items, softmax_dpo
from genre.modules.reference import evaluating
from genre.tasks import Group, Preference, Task
from genre.training import drawing, fit
from genre.training.assembly import assemble
from genre.training.epochs import plan_epoch
from genre.training.generating import generated_scores
from genre.training.logged import training_labels
from genre.training.micro_batches import count_targets, shares
from genre.training.simultaneous import check_together
from kinds import LISTED, own_kind, preferred, scores_of

GENERATE = NEXT | {"head": "generate", "metrics": ["ndcg@10"]}
DPO = GENERATE | {"loss": "softmax_dpo"}
GROUPS = GENERATE | {"loss": "group_relative"}
SECTIONS = {
    "encoder": {"codes": {"levels": 2, "size": 3, "places": 12}, "dropout": 0.0},
    "data": {"split": {"kind": "last_n", "n": 1}},
    "sequence": {"instruction": "User:"},
}
TRAIN = {"epochs": 6, "learning_rate": 1e-2, "early_stop": None}


@pytest.fixture
def make(base, tiny, clicked):
    """Assembles a recipe on the test's own base; the next one takes the place of the one before."""
    made = []

    def make(*tasks, of=clicked, train=(), **sections):
        if made:
            made.pop().release()
        assembly = assemble(recipe(tiny, *tasks, **{**SECTIONS, **sections}, train={**TRAIN, **dict(train)}), of, base)
        made.append(assembly.model)
        return assembly

    yield make
    for model in made:
        model.release()


def first_rows(assembly, count=6):
    labels = training_labels(assembly.builder.data, assembly.recipe.tasks)
    planned = plan_epoch(assembly, labels, 0)
    return [row for rows in planned.batches for row in rows][:count], planned.labels


def batch_of(model, rows, labels, tokens=4096):
    (batch,) = drawing.step_batches(model, rows, labels, tokens)
    return batch


def exact(model, rows, batch, hidden):
    """(n, N) log-probabilities of every item at the batch's targets, by searches that keep everything."""
    reads = batch.reads["next_item"]
    found = generated_scores(model, "next_item", rows, reads, hidden, seen=None, beam=None, batch_tokens=4096)
    return torch.from_numpy(found)


def task_of(source, **more):
    section = {"source": source, "negatives": 4, "beta": 0.7, **more}
    return GROUPS if source == "group" else DPO | {"preference": section}


@pytest.mark.parametrize("source", ["popularity", "uniform", "batch", "pairs", "policy", "group"])
@torch.no_grad()
def test_what_is_compared_has_its_probability_and_the_loss_is_the_plain_formula(make, clicked, source):
    assembly = make(task_of(source))
    model = assembly.model.eval()
    rows, labels = first_rows(assembly)
    torch.manual_seed(0)
    known = None
    for step in range(2):  # at the reference, and away from it
        batch = batch_of(model, rows, labels)
        reads, before = batch.reads["next_item"], model.reference.hidden(model, batch)
        scores, drawn = exact(model, rows, batch, model.hidden(batch)), reads.drawn_items
        known = scores if known is None else known
        assert torch.allclose(scores.exp().sum(-1), torch.ones(len(scores)), atol=1e-5)
        loss, (own, *given) = model._loss_of("next_item", model.hidden(batch), batch, None, before)
        table = torch.where(drawn < 0, reads.labels[:, None], drawn)
        wanted = scores.gather(1, table)
        assert torch.equal(drawn[:, 0], reads.labels)
        if source == "group":
            assert own.shape == (len(drawn), 16) and torch.allclose(own, wanted[:, 1:], atol=1e-4)
            assert torch.allclose(given[0], known.gather(1, table)[:, 1:], atol=1e-4)
            for event, target, items, hits, counts in zip(reads.events, reads.labels, drawn[:, 1:], *given[1:], strict=True):
                earlier = clicked.item_codes[
                    (clicked.user_codes == clicked.user_codes[event]) & (np.arange(len(clicked)) < int(event))
                ]
                assert torch.equal(hits, items == target)
                assert torch.equal(counts, hits | ~torch.isin(items, torch.from_numpy(earlier)))
        else:
            assert torch.allclose(own, wanted, atol=1e-4) and torch.allclose(given[1], known.gather(1, table), atol=1e-4)
            rejected = torch.where(given[2] < 0, -1, drawn.gather(1, given[2].clamp_min(0)))
            check_rejected(clicked, assembly.train_mask, source, reads, rejected)
            plain = softmax_dpo(scores, reads.labels, known, rejected, beta=0.7)
            assert float(loss(own, *given)) == pytest.approx(float(plain), abs=1e-4)
            if step == 0:
                some = (rejected >= 0).sum(-1)
                assert float(plain) == pytest.approx(float((1.0 + some[some > 0]).log().mean()), abs=1e-4)
        assert float(model(batch)[0]) == pytest.approx(float(loss(own, *given)), abs=1e-5)
        stir(assembly)
        model.soft.codes.vectors.weight.mul_(2)


def check_rejected(log, train, source, reads, rejected):
    """Rejected items are of their source, never the target nor, where they are drawn, of its history."""
    assert (rejected >= 0).float().mean() > 0.3
    for event, target, row in zip(reads.events.tolist(), reads.labels.tolist(), rejected.tolist(), strict=True):
        own = [item for item in row if item >= 0]
        assert target not in own
        if source == "pairs":
            assert sorted(own) == sorted(log.catalogue.codes(log.column("rejected")[event].split()).tolist())
            continue
        earlier = (log.user_codes == log.user_codes[event]) & ((np.arange(len(log)) < event) | ((source == "batch") & train))
        assert not set(own) & set(log.item_codes[earlier].tolist())
        assert source != "policy" or len(set(own)) == len(own)


@torch.no_grad()
def test_items_are_drawn_from_the_policy_as_it_is_now_with_the_probability_of_their_exact_score(make):
    assembly = make(task_of("group"), train={"dropout": 0.5})
    stir(assembly)
    model = assembly.model.train()
    model.soft.codes.vectors.weight.mul_(2)
    rows, labels = first_rows(assembly, 2)
    rows = [dataclasses.replace(rows[0], targets=np.zeros_like(rows[0].targets)), rows[1]]  # a row without a target
    relative = dataclasses.replace(model.relative["next_item"], wanted=Group(size=1024, length=1))
    model.relative["next_item"] = relative
    torch.manual_seed(1)
    batch = batch_of(model, rows, labels)
    assert model.training and model.heads["next_item"].training
    with evaluating(model):
        scores = exact(model, rows, batch, model.hidden(batch))
    found = torch.stack([torch.bincount(own[1:], minlength=LISTED) for own in batch.reads["next_item"].drawn_items]) / 1024
    assert len(scores) == int(rows[1].targets.sum()) and scores.exp().max() > 0.2
    assert (found - scores.exp()).abs().max() < 4 * 0.5 / 32  # four deviations of a share of 1024 draws


def test_gradients_reach_the_adapter_and_the_codes_that_train_and_nothing_else(make, clicked, tiny):
    for task in (DPO, GROUPS):
        assembly = make(task)
        rows, labels = first_rows(assembly)
        stir(assembly, size=0.05)
        model = assembly.model.train()
        model(batch_of(model, rows, labels))[0].backward()
        codes = model.soft.codes.vectors.weight
        assert codes.grad.any() and all(layer.lora_B.grad.any() for layer in model.layers.values())
        assert all(value.grad is None for value in model.reference.soft.encoder.parameters())
        assert all(value.grad is None for name, value in model.base.model.named_parameters() if "lora_" not in name)
        shared = dataclasses.replace(assembly.shared, digest="published")
        shared.encoder.eval().requires_grad_(False).zero_grad()
        model.release()
        wanted = recipe(tiny, task, **SECTIONS | {"encoder": SECTIONS["encoder"] | {"use": "auto"}}, train=TRAIN)
        second = assemble(wanted, clicked, assembly.base, shared)
        try:
            stir(second, size=0.05)
            second.model(batch_of(second.model, rows, labels))[0].backward()
            assert all(layer.lora_B.grad.any() for layer in second.model.layers.values())
            assert shared.encoder.codes.vectors.weight.grad is None
        finally:
            second.model.release()


def test_the_reference_stays_and_a_preference_is_learnt_from_impressions(make, shown, tmp_path):
    task = DPO | {"label": "click > 0", "preference": {"source": "impressions"}, "seen": "kept"}
    assembly = make(task, of=shown, train={"batch_tokens": 256})
    rows, labels = first_rows(assembly)
    model = assembly.model.eval()
    chosen = np.sort(np.concatenate([row.events[shown.column("click")[row.events] == 1] for row in rows]))

    def reference():
        batch = batch_of(model, rows, labels)
        reads = batch.reads["next_item"]
        assert np.array_equal(np.sort(reads.events), chosen)
        return model.reference.code_losses("next_item", model.reference.hidden(model, batch), reads, model.trie)

    start, before = reference(), preferred(shown, scores_of(assembly))
    fit(assembly, tmp_path)
    assert torch.allclose(reference(), start, atol=1e-5)
    after = preferred(shown, scores_of(assembly))
    assert after > 0.9 > before + 0.2, (before, after)


def test_a_policy_gradient_raises_the_reward(make, clicked, tmp_path):
    """The next item is of the user's kind: half of the catalogue, less what the user had."""
    assembly = make(GROUPS | {"group": {"size": 8, "kl": 0.01}}, train={"epochs": 4, "batch_tokens": 1024})
    before = own_kind(clicked, scores_of(assembly))
    fit(assembly, tmp_path)
    after = own_kind(clicked, scores_of(assembly))
    assert after > before + 0.15, (before, after)


def test_a_resumed_run_of_both_losses_is_bit_equal(make, tmp_path):
    tasks, train = (task_of("popularity"), GROUPS | {"name": "other", "group": {"size": 4}}), {"epochs": 1, "dropout": 0.1}
    whole = make(*tasks, train=train)
    fit(whole, tmp_path / "whole")
    wanted = weights(whole)
    with pytest.raises(InterruptedJobError):
        fit(make(*tasks, train=train), tmp_path / "cut", stop_at=2)
    again = make(*tasks, train=train)
    fit(again, tmp_path / "cut", resume=True)
    assert again.model.reference is not None and wanted.keys() == weights(again).keys()
    assert all(torch.equal(value, wanted[name]) for name, value in weights(again).items())


def test_steps_have_room_for_what_is_drawn_and_a_row_with_more_is_read_several_times(make):
    assembly = make(task_of("group"), train={"batch_tokens": 80})
    model, labels = assembly.model.eval(), training_labels(assembly.builder.data, assembly.recipe.tasks)
    rows, _ = assembly.builder.training_rows(assembly.train_mask, max_events=16, min_events=2)
    parts, usual = drawing.planned_rows(model, rows, labels, 80)
    assert len(parts) > len(rows) and usual.max() <= 80
    drawn = drawing.with_drawn_items(model, parts, labels, 80)
    assert 0.4 < sum(map(len, drawn)) / usual.sum() <= 1.1  # some are drawn twice
    targets = [np.concatenate([row.events[row.targets] for row in some]) for some in (parts, rows)]
    assert np.array_equal(*map(np.sort, targets)) and len(np.unique(targets[0])) == len(targets[0])
    with pytest.raises(
        RecipeError, match=r"'next_item' does not fit into a step with what .*: got .* tokens .*lower group\.size"
    ):
        drawing.planned_rows(model, rows, labels, 20)


def test_a_step_for_which_more_was_drawn_than_planned_is_split_and_means_the_same(make):
    assembly = make(task_of("pairs"))
    model = assembly.model.eval()
    rows, labels = first_rows(assembly)
    whole, targets = batch_of(model, rows, labels), count_targets(rows, labels)
    few = max(map(len, drawing.with_drawn_items(model, rows, labels, 4096))) * 2
    batches = list(drawing.step_batches(model, rows, labels, few))
    assert len(batches) == 3 and all(batch.tokens.numel() <= few for batch in batches)
    share = [shares({"next_item": len(batch.reads["next_item"].labels)}, targets) for batch in batches]
    total = sum(model(batch, own)[0] for batch, own in zip(batches, share, strict=True))
    assert float(total.detach()) == pytest.approx(float(model(whole)[0].detach()), abs=1e-5)


def test_alike_items_share_a_branch_and_the_targets_own_is_used_again(make):
    assembly = make(task_of("popularity"))
    (row, *_), _ = first_rows(assembly, 1)
    trie, own = assembly.model.trie, int(row.item_codes[2])
    deep = [item for item in range(LISTED) if item != own and trie.lengths(np.array([item]))[0] > 1][:2]
    longer = CodeBranches(trie).compare(row, "next_item", np.array([2]), np.array([[own, deep[0], deep[1], deep[0], -1]]))
    assert len(longer) - len(row) == trie.lengths(np.array(deep)).sum() - 2
    found = longer.drawn["next_item"]
    assert found.starts[2, 1] == found.starts[2, 3] == len(row) and found.starts[2, 0] == found.starts[2, 4] == row.code_starts[2]
    assert (found.items[[0, 1, 3]] == -1).all()


def test_a_batch_without_a_target_costs_nothing(make):
    """Of cross-entropy too, where its mean over no target would be no number."""
    for task in (GENERATE, DPO, GROUPS, task_of("pairs")):
        assembly = make(task)
        (row, *_), labels = first_rows(assembly, 1)
        empty = [dataclasses.replace(row, targets=np.zeros_like(row.targets))]
        loss, _ = assembly.model(batch_of(assembly.model, empty, labels))
        loss.backward()
        assert loss.item() == 0


def test_cold_items_of_a_pair_are_no_rejected_ones(make, clicked):
    cold = pl.DataFrame({"item_id": ["new"], "title": ["a new thing"]})
    frame = clicked.frame.drop("row").with_columns(pl.col("rejected") + " new")
    log = Interactions.from_frame(frame, items=pl.concat([clicked.catalogue.frame.select(cold.columns), cold]), name="clicked")
    assembly = make(task_of("pairs"), of=log, encoder={**SECTIONS["encoder"], "min_events": 1})
    assert len(assembly.model.trie) == LISTED
    rows, labels = first_rows(assembly)
    batch = batch_of(assembly.model, rows, labels)
    assert ((batch.reads["next_item"].drawn_items >= 0).sum(-1) == 3).all()
    assert torch.isfinite(assembly.model(batch)[0])


def test_the_expected_gradient_over_all_groups_is_that_of_the_reward_and_of_the_divergence():
    """Groups of two of four items, all 16 by their probability; the last item may not be answered with."""
    draw = torch.Generator().manual_seed(0)
    logits, before = torch.randn(2, 4, generator=draw, dtype=torch.float64)
    reference, target, left = before.log_softmax(-1), 1, 3
    chance = logits.softmax(-1)
    groups = torch.tensor(list(itertools.product(range(4), repeat=2)))
    weight = chance[groups].prod(-1)

    def ours(z, kl):
        share, counts = z.log_softmax(-1), groups < left
        each = [
            group_relative_items(*(part[None] for part in (share[one], reference[one], one == target, there)), kl=kl)
            for one, there in zip(groups, counts, strict=True)
        ]
        return (weight * torch.stack(each)).sum()

    def wanted(z):
        """-A log π' of the two items, π' over what may be answered with; a group with one such item has no advantage."""
        share, total = z[:left].log_softmax(-1), z.new_zeros(())
        for one, chances in zip(groups.tolist(), weight, strict=True):
            if all(item < left for item in one) and (one[0] == target) != (one[1] == target):
                total = total - chances * sum((1 if item == target else -1) * share[item] for item in one) / 2
        return total

    def gradient(loss):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    _, found = gradient(lambda z: ours(z, 0.0))
    _, expected = gradient(wanted)
    assert expected.norm() > 0.05 and torch.allclose(found, expected, atol=1e-6)
    (value, found), (without, less) = gradient(lambda z: ours(z, 0.4)), gradient(lambda z: ours(z, 0.0))
    assert float(value - without) == pytest.approx(0.4 * float((chance * (chance.log() - reference)).sum()), abs=1e-6)
    _, expected = gradient(lambda z: 0.4 * (reference.exp() * (reference - z.log_softmax(-1))).sum())
    assert torch.allclose(found - less, expected, atol=1e-6)


def test_sections_have_defaults_of_their_own_and_say_so(tiny):
    codes = {"encoder": {"codes": {}}}
    shown, groups = recipe(tiny, DPO, **codes), recipe(tiny, GROUPS | {"group": {"size": 4}}, **codes)
    assert shown.tasks[0].preference == Preference(negatives=4) and "negatives: 4" in shown.dump()
    assert groups.tasks[0].group == Group(size=4, length=1) and "length: 1" in groups.dump()
    assert genre.Recipe.parse(shown.model_dump(mode="json")) == shown
    assert Task(**GROUPS, group=Group(size=3)).group.length == 1
    assert Task(**NEXT, loss="group_relative").group.length == 10
    assert Task(**DPO, preference=None).preference.negatives == 4


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            GROUPS | {"group": {"length": 10}},
            r"length 10 is for head 'catalogue': .* set it to 1, or leave it out, .*group\.size",
        ),
        (GROUPS | {"group": {"size": 1}}, "size: got 1"),
        (GROUPS | {"group": 5}, "group"),
        (DPO | {"preference": {"negative": 4}}, "did you mean 'negatives'"),
        (DPO | {"group": {}}, "group is for loss group_relative"),
        (DPO | {"preference": {"source": "impressions"}}, "needs a label"),
        (GENERATE | {"loss": "dr"}, "not 'dr'; head 'catalogue' takes it"),
    ],
)
def test_wrong_tasks(tiny, task, message):
    with pytest.raises(RecipeError, match=message):
        recipe(tiny, task, encoder={"codes": {}})


@pytest.mark.parametrize("task", [DPO, GROUPS], ids=["softmax_dpo", "group_relative"])
def test_what_does_not_go_with_it(tiny, make, clicked, task):
    loss = task["loss"]
    with pytest.raises(RecipeError, match=f"loss {loss} has the base as it was for its reference"):
        recipe(tiny, task, **SECTIONS, adapter={"kind": "full"})
    private = {"encoder": {"use": "encoder-planted"}, "sequence": {"feedback": "none"}, "train": {"privacy": PRIVACY}}
    private |= {"data": SECTIONS["data"]}
    with pytest.raises(RecipeError, match=f"train.privacy: loss {loss} of task next_item"):
        recipe(tiny, task, **private)
    with pytest.raises(RecipeError, match=f"keep no reference: got loss {loss} of task next_item"):
        check_federated(recipe(tiny, task, **SECTIONS))
    with pytest.raises(RecipeError, match=f"cannot train beside others: tasks.loss: got {loss}"):
        check_together([recipe(tiny, task, **SECTIONS), recipe(tiny, NEXT, name="other")])
    if loss == "softmax_dpo":
        with pytest.raises(RecipeError, match="asks for too many items: got 12; expected fewer than the 12 items"):
            make(task | {"preference": {"negatives": 12}})
    assert plan_run(recipe(tiny, task, **SECTIONS), data=clicked, device="cpu").step > 0
