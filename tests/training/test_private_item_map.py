"""The item map of private runs: bounds, noise, the start at neighbours by text, what it learns, resuming."""

import numpy as np
import pytest
import torch

from builders import LIKE, NEXT, private_recipe
from genre.errors import JobError, RecipeError
from genre.modules.heads.gaussian_process import View
from genre.progress import Reporter
from genre.training import Loop
from genre.training.assembly import assemble
from genre.training.parts import mapped_heads, text_map
from genre.training.private import item_map
from genre.training.private.item_map import CLIP, STEPS, Targets, clipped_sum, fit_map, targets_of
from genre.training.private.noise import Noise

pytest.importorskip("opacus", reason="the extra privacy")
MAPPED = {"privacy": {"item_map": 0.5}, "encoder": {"whiten": True}}


@pytest.fixture
def assembly(base, tiny, log):
    made = assemble(private_recipe(tiny, NEXT, **MAPPED), log, base)
    yield made
    made.model.release()


@pytest.fixture
def unit(assembly):
    return torch.nn.functional.normalize(assembly.model.soft.every(), dim=-1)


def one_user(some: Targets, user: int) -> Targets:
    """The targets of one of some users."""
    each = some.weights.shape[0] // len(some.items)
    return Targets(some.weights[user * each : (user + 1) * each], some.items[user : user + 1])


def test_what_users_add_is_each_users_clipped_gradient(assembly, unit):
    """Against autograd through the softmax over the catalogue, user by user."""
    (some,), drawn, whole = targets_of(assembly), torch.arange(len(unit)), 0
    found = text_map(unit.shape[1]) + 0.1
    for user in range(len(some.items)):
        own = one_user(some, user)
        weights = found.clone().requires_grad_()
        there = own.items[0] >= 0
        scores = own.histories(unit)[0][there] @ weights @ unit.t()
        torch.nn.functional.cross_entropy(scores, own.items[0][there]).backward()
        gradient = weights.grad * min(1.0, CLIP / float(weights.grad.norm()))
        torch.testing.assert_close(clipped_sum(own, found, unit, drawn), gradient, rtol=1e-4, atol=1e-6)
        whole = whole + gradient
    torch.testing.assert_close(clipped_sum(some, found, unit, drawn), whole, rtol=1e-4, atol=1e-5)


def test_histories_are_those_of_the_head(assembly, unit):
    (some,) = targets_of(assembly)
    log, trained = assembly.log, np.flatnonzero(assembly.train_mask)
    own = [log.item_codes[event] for event in trained if log.user_codes[event] == log.user_codes[trained[0]]]
    assert some.items[0].tolist() == own[-4:], "the latest of the training part"
    before = unit[torch.tensor(own[:-1][-assembly.recipe.data.max_events :])]
    expected = []
    for fade in (0.5, 0.9, 1.0):
        weights = fade ** torch.arange(len(before) - 1, -1, -1)
        expected.append((weights / weights.sum()) @ before)
    torch.testing.assert_close(some.histories(unit)[0, -1], torch.cat(expected))


def test_a_head_scores_by_the_map_and_starts_at_neighbours_by_text(assembly, unit):
    (head,) = mapped_heads(assembly.model).values()
    assert not head.key.weight.requires_grad and not head.memory.weight.requires_grad and head.query.weight.requires_grad
    found = torch.randn(3 * unit.shape[1], unit.shape[1], generator=torch.Generator().manual_seed(0))
    head.take_map(found)
    vectors = assembly.model.soft.every()
    history = torch.tensor([[2, 0, 3]])
    one = torch.zeros(1, dtype=torch.long)
    view = View(head.tables(vectors), history, torch.zeros_like(history), one, one + 3, one)
    scores = head(torch.randn(1, unit.shape[1]), view)
    asked = []
    for fade in head.decays:
        weights = fade ** torch.arange(2, -1, -1)
        asked.append((weights / weights.sum()) @ unit[history[0]])
    torch.testing.assert_close(scores[0], torch.cat(asked) @ found @ unit.t(), rtol=1e-3, atol=1e-3)


def test_without_noise_the_map_learns_what_follows_what(assembly, unit):
    loose = fit_map(assembly, Noise(1), 1e-9)
    (some,) = targets_of(assembly)
    there = some.items >= 0

    def loss(found):
        return float(torch.nn.functional.cross_entropy((some.histories(unit) @ found @ unit.t())[there], some.items[there]))

    assert loss(loose) < loss(text_map(unit.shape[1])) - 0.05


def test_noise_blurs_a_number_of_the_map_as_far_as_it_may(assembly, unit):
    """Whatever the noise is: the pace is less where there is more of it."""
    for sigma in (100.0, 1000.0):
        moved = fit_map(assembly, Noise(1), sigma) - text_map(unit.shape[1])
        assert 0.5 * item_map.BLUR < float(moved.std()) < 1.1 * item_map.BLUR


def test_every_step_is_released_with_the_noise_that_was_accounted_for(assembly, monkeypatch):
    asked, release = [], Noise.release

    def watched(self, total, *, clip, sigma):
        asked.append((clip, sigma))
        return release(self, total, clip=clip, sigma=sigma)

    monkeypatch.setattr(Noise, "release", watched)
    fit_map(assembly, Noise(1), 3.5)
    assert asked == [(CLIP, 3.5)] * STEPS


def test_a_part_that_is_too_long_stops(assembly, unit, monkeypatch):
    (some,) = targets_of(assembly)
    true, calls = item_map.norms, []

    def short(histories, errors):
        calls.append(1)
        return true(histories, errors) * (0.01 if len(calls) == 1 else 1.0)

    monkeypatch.setattr(item_map, "norms", short)
    with pytest.raises(JobError, match="not as private as accounted for: a clipped norm"):
        clipped_sum(some, text_map(unit.shape[1]) * 100, unit, torch.arange(len(unit)))


def test_a_resumed_run_has_the_map_that_it_began_with(assembly, tmp_path):
    loop = Loop(assembly, tmp_path / "run", Reporter.silent())
    plan = loop.private.plan
    assert plan.map_sigma and plan.map_steps == STEPS and plan.spent(plan.steps) <= plan.epsilon
    loop.private.begin()
    loop.save()
    (head,) = mapped_heads(assembly.model).values()
    kept = head.memory.weight.clone()
    assert not torch.equal(kept, torch.cat([part.t() for part in text_map(head.spec.width).split(head.spec.width)]))
    torch.nn.init.zeros_(head.memory.weight)
    again = Loop(assembly, tmp_path / "run", Reporter.silent())
    again.restore()
    assert torch.equal(head.memory.weight, kept)


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ([NEXT], {"privacy": {"item_map": 0.5}}, "item_map starts at neighbours by text; set encoder.whiten"),
        ([LIKE], MAPPED, "item_map is of next_item tasks"),
        ([NEXT], {**MAPPED, "privacy": {"item_map": 0.5, "statistics": 0.5}}, "take all of epsilon"),
    ],
)
def test_recipes_that_a_map_does_not_go_with_are_refused(tiny, tasks, options, message):
    with pytest.raises(RecipeError, match=message):
        private_recipe(tiny, *tasks, **options)
