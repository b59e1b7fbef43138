"""Gradients by user: equal to those of each user alone, for every kind of layer, head and row, and clipped together."""

import numpy as np
import pytest
import torch

from builders import LIKE, NEXT, RATING, recipe, stir
from fakes import browsing_log
from genre.data.sequences.batches import collate
from genre.errors import DivergedError, JobError
from genre.modules.base.base import Base
from genre.training.assembly import assemble
from genre.training.micro_batches import count_targets
from genre.training.private.gradients import UserGradients

WORDS = {**LIKE, "head": "verbalizer", "words": ["no", "yes"]}
CLASSES = {
    **RATING,
    "name": "stars",
    "head": "categorical",
    "loss": "cross_entropy",
    "classes": [1.0, 2.0, 4.0, 5.0],
    "metrics": ["accuracy"],
}
SAMPLED = {"sampled": {"above": 10, "negatives": 1000}}
BOUGHT = {"name": "bought", "kind": "feedback", "label": "bought == 1"}


def users_of(assembly, count=9, seed=1):
    """The rows of some users, in an order of their own."""
    builder, data = assembly.builder, assembly.recipe.data
    rows, _ = builder.training_rows(assembly.train_mask, None, max_events=data.max_events, min_events=1, shift=0.4)
    found = {}
    for row in rows:
        found.setdefault(int(assembly.log.user_codes[row.events[0]]), []).append(row)
    return [found[user] for user in np.random.default_rng(seed).permutation(sorted(found))[:count]]


def alone(assembly, rows, labels):
    """The gradient of one user by the model's own losses on that user's rows in one batch, (d,) float64."""
    parameters = list(assembly.model.trainable().values())
    loss, _ = assembly.model(collate(rows, labels).to(assembly.base.device))
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    zeros = (torch.zeros_like(value) for value in parameters)
    return torch.cat([(zero if own is None else own).double().reshape(-1) for own, zero in zip(found, zeros, strict=True)])


@pytest.fixture
def prepare(base, tiny, log):
    """Makes an assembly whose weights are not those of a start, with a frozen encoder."""
    made = []

    def prepare(*tasks, events=log, **sections):
        assembly = assemble(recipe(tiny, *tasks, **sections), events, base)
        made.append(assembly.model)
        stir(assembly)
        for name, head in list(assembly.model.heads.items()):
            if hasattr(head, "with_cooccurrence"):
                assembly.model.heads[name] = head.with_cooccurrence(None)
        if assembly.shared is not None:
            assembly.shared.encoder.requires_grad_(False)
        assembly.model.train()
        return assembly

    yield prepare
    for model in made:
        model.release()


CASES = {
    "binary": ((LIKE,), {}),
    "scalar": ((RATING,), {}),
    "catalogue": ((NEXT,), {}),
    "sampled": ((NEXT,), {"train": SAMPLED}),
    "joint": ((NEXT, LIKE, {**RATING, "weight": 0.3}), {}),
    "classes": ((CLASSES,), {}),
    "words": ((WORDS,), {"sequence": {"item": "text", "max_item_tokens": 6}, "encoder": {"use": "none"}}),
    "head only": ((LIKE,), {"adapter": {"kind": "head_only"}}),
    "no base": ((NEXT,), {"adapter": {"kind": "no_base"}}),
    "one linear": ((LIKE,), {"adapter": {"targets": ["down_proj"], "layers": [1]}}),
    "rslora": ((NEXT,), {"adapter": {"kind": "rslora", "rank": 2, "alpha": 1}}),
    "checkpointed": ((NEXT,), {"train": {"checkpoint_activations": True}}),
    "long rows": ((NEXT,), {"data": {"max_events": 40}}),
}


@pytest.mark.parametrize(("case", "tokens"), [*((case, 10_000) for case in CASES), ("joint", 60), ("sampled", 60)])
def test_gradients_by_user_are_those_of_each_user_alone(prepare, case, tokens):
    """Several windows a user, shared instructions and positions; in one micro-batch, and with users cut into parts."""
    tasks, sections = CASES[case]
    assembly = prepare(*tasks, **{"data": {"max_events": 8}, **sections})
    users, labels = users_of(assembly), assembly.builder.data.supervise(list(assembly.recipe.tasks))
    assert max(map(len, users)) > 1 or case == "long rows"
    own = [alone(assembly, rows, labels) for rows in users]
    norms = torch.stack([each.norm() for each in own])
    clip = float(norms.median())
    gradients = UserGradients(assembly.model, assembly.model.trainable(), tokens=tokens, users=4)
    found = gradients.clipped(users, labels, clip)
    order = np.argsort([max(map(len, rows)) for rows in users], kind="stable")
    torch.testing.assert_close(found.norms, norms[order], rtol=1e-5, atol=0)
    expected = sum(each * min(1, clip / norm) for each, norm in zip(own, norms, strict=True))
    torch.testing.assert_close(found.total.double(), expected, rtol=1e-4, atol=2e-6 * clip)
    assert found.largest == pytest.approx(clip, rel=1e-5) and found.tokens == sum(len(row) for rows in users for row in rows)
    everybody = [row for rows in users for row in rows]
    assert {name: count for name, (_, count) in found.losses.items()} == count_targets(everybody, labels)


def test_impressions_and_users_without_a_target(prepare):
    """Rows with branches; a user without a label adds nothing."""
    log = browsing_log(users=24)
    assembly = prepare(BOUGHT, events=log, sequence={"feedback": "behaviour", "instruction": ""})
    users, labels = users_of(assembly, 12), assembly.builder.data.supervise(list(assembly.recipe.tasks))
    bare = [[row for row in rows] for rows in users]
    mute = {
        name: (slot, np.where(np.isin(np.arange(len(own)), users[0][0].events), np.nan, own))
        for name, (slot, own) in labels.items()
    }
    norms = sorted(float(alone(assembly, rows, mute).norm()) for rows in users)
    found = UserGradients(assembly.model, assembly.model.trainable(), tokens=400).clipped(bare, mute, 1.0)
    assert sorted(found.norms.tolist()) == pytest.approx(norms, rel=1e-5, abs=1e-12)
    assert norms[0] == 0.0 < norms[1]


def test_a_base_in_bfloat16_bounds_what_is_added(tiny, log):
    own = Base.load(str(tiny), dtype=torch.bfloat16)
    assembly = assemble(recipe(tiny, LIKE).with_values({"base.precision": "bfloat16"}), log, own)
    assembly.shared.encoder.requires_grad_(False)
    labels = assembly.builder.data.supervise(list(assembly.recipe.tasks))
    found = UserGradients(assembly.model, assembly.model.trainable(), tokens=500).clipped(users_of(assembly), labels, 1e-3)
    assert found.largest <= 1e-3 * (1 + 1e-6) and found.norms.min() > 1e-3
    assert found.total.dtype == torch.float32 and found.total.norm() <= 9e-3
    assembly.model.release()


def test_the_base_has_its_own_layers_again_after(prepare):
    assembly = prepare(NEXT)
    users, labels = users_of(assembly), assembly.builder.data.supervise(list(assembly.recipe.tasks))
    batch = collate([row for rows in users for row in rows], labels)
    before = assembly.model(batch)[0]
    UserGradients(assembly.model, assembly.model.trainable(), tokens=500).clipped(users, labels, 1.0)
    assert torch.equal(assembly.model(batch)[0], before)
    assert all(parameter.grad is None for parameter in assembly.model.trainable().values())


def test_a_gradient_that_is_not_finite_stops(prepare):
    assembly = prepare(LIKE)
    users, labels = users_of(assembly), assembly.builder.data.supervise(list(assembly.recipe.tasks))
    with torch.no_grad():
        assembly.model.heads["like"].linear.weight.fill_(torch.inf)
    with pytest.raises(DivergedError, match="not finite"):
        UserGradients(assembly.model, assembly.model.trainable(), tokens=500).clipped(users, labels, 1.0)


def test_a_linear_that_mixes_tokens_of_users_is_refused(prepare):
    """A layer that gets other tokens than the batch's would give a user the gradient of another."""
    assembly = prepare(LIKE)
    users, labels = users_of(assembly), assembly.builder.data.supervise(list(assembly.recipe.tasks))
    mlp = assembly.base.body.layers[0].mlp
    handle = mlp.register_forward_pre_hook(lambda module, given: (given[0][:, :-1],))
    other = mlp.register_forward_hook(lambda module, given, found: torch.nn.functional.pad(found, (0, 0, 0, 1)))
    with pytest.raises(JobError, match="cannot be told apart by user"):
        UserGradients(assembly.model, assembly.model.trainable(), tokens=500).clipped(users, labels, 1.0)
    handle.remove()
    other.remove()
