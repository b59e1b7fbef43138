"""Private runs: what a step adds and checks, budgets that are reported, resuming, what is refused, what stays off."""

import json

import numpy as np
import pytest
import torch

from builders import LIKE, NEXT, RATING, private_recipe, weights
from genre.errors import InputError, InterruptedJobError, JobError, RecipeError
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.training import Loop, fit
from genre.training.assembly import assemble, assemble_from
from genre.training.private.statistics import bounded_sum, parts_of, total_of
from genre.training.simultaneous import check_together

pytest.importorskip("opacus", reason="the extra privacy")


@pytest.fixture
def make(base, tiny, log):
    """Assembles a private recipe on the test's own base; the next one takes the place of the one before."""
    made = []

    def make(*tasks, events=log, **options):
        if made:
            made.pop().release()
        assembly = assemble(private_recipe(tiny, *tasks, **options), events, base)
        made.append(assembly.model)
        return assembly

    yield make
    for model in made:
        model.release()


@pytest.fixture
def loop_of(make, tmp_path):
    """A loop at its first step, its statistics released and its first epoch drawn."""

    def loop_of(*tasks, **options):
        loop = Loop(make(*tasks, **options), tmp_path / "run", Reporter.silent())
        loop.private.begin()
        loop.batches = loop.plan(0)
        loop.set_training()
        return loop

    return loop_of


def test_a_step_is_the_clipped_sum_of_who_was_drawn_and_noise_of_the_planned_size(loop_of):
    loop = loop_of(LIKE)
    private = loop.private
    found = private.gradient(loop.batches[0], loop.labels, index=0)
    drawn = private.pending[0]
    assert drawn == {int(loop.assembly.log.user_codes[row.events[0]]) for row in loop.batches[0]}
    assert len(found.norms) == len(drawn) and found.largest <= 1.0001 and found.total.norm() <= len(drawn)
    added = torch.cat([value.grad.reshape(-1) for value in private.parameters.values()]) * 20  # times q n
    noise = added - found.total
    assert float(noise.std()) == pytest.approx(private.plan.sigma, rel=5 / np.sqrt(2 * noise.numel()))
    assert {name for name in private.parameters} == set(weights(loop.assembly)) and not any(
        "encoder" in name for name in private.parameters
    )


def test_a_step_that_draws_nobody_counts_and_is_noise(loop_of):
    loop = loop_of(NEXT, LIKE)
    private, before = loop.private, weights(loop.assembly)
    private.pending[0] = frozenset()
    result = loop.step([], 0.1)
    assert (result.tokens, result.loss, private.steps) == (0, 0.0, 1)
    assert all(not torch.equal(before[name], value) for name, value in weights(loop.assembly).items())


def test_epochs_draw_anew_and_never_by_the_recipes_seed(loop_of):
    draws = []
    for _ in range(2):
        loop = loop_of(LIKE)
        draws += loop.private.pending
        loop.plan(1)
        draws += loop.private.pending
    assert len(draws) == 12 and len(set(draws)) == 12


def tampered_users(private, loop):
    loop.batches[0] = loop.batches[0] + [row for row in loop.batches[1] if private.user_of(row) not in private.pending[0]][:1]


def tampered_clip(private, loop):
    true = private.gradients.clipped
    private.gradients.clipped = lambda users, labels, clip: true(users, labels, 3 * clip)


def tampered_sum(private, loop):
    true = private.gradients.clipped
    private.gradients.clipped = lambda users, labels, clip: true(users[1:], labels, clip)


def tampered_noise(private, loop):
    true = private.noise.release
    private.noise.release = lambda total, clip, sigma: true(total, clip=clip, sigma=sigma / 2)


def tampered_parameters(private, loop):
    loop.assembly.shared.encoder.requires_grad_(True)


def tampered_weights(private, loop):
    private.stepped()
    with torch.no_grad():
        next(iter(loop.parameters.values())).add_(1e-3)


def tampered_encoder(private, loop):
    private.stepped()
    loop.assembly.shared.encoder.scale.data.mul_(1.01)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (tampered_users, "the users added are not those drawn"),
        (tampered_clip, "a clipped norm: got .*; expected at most 1"),
        (tampered_sum, "users are missing from the sum"),
        (tampered_noise, "the noise's standard deviation"),
        (tampered_parameters, "tensors train that get no noise"),
        (tampered_weights, "weights were changed outside the steps: got .*lora_A"),
        (tampered_encoder, "weights were changed outside the steps: got .*encoder.scale"),
    ],
)
def test_a_step_whose_state_disagrees_with_the_accounts_stops_the_run(loop_of, tamper, message):
    loop = loop_of(NEXT, train={"learning_rate": 1e-3})
    loop.private.plan.__dict__["clip"] = 1e-2  # so that every gradient is clipped
    if tamper is tampered_clip:
        message = "a clipped norm: got .*; expected at most 0.01"
    tamper(loop.private, loop)
    before = weights(loop.assembly)
    with pytest.raises(JobError, match=f"not as private as accounted for after step .: {message}"):
        loop.step(loop.batches[0], 0.1)
    assert all(torch.equal(value, before[name]) for name, value in weights(loop.assembly).items() if name in before)


def test_a_run_reports_its_budget_and_validates_nothing(make, tmp_path):
    lines = []
    fitted = fit(make(NEXT, LIKE, RATING), tmp_path, reporter=Reporter(lines.append))
    told = [line for line in lines if line.startswith("privacy:")]
    assert "epsilon 8, delta 0.0008, by user: 9 steps draw each of 60 users with probability 0.3333, 20 expected" in told[0]
    assert [line.split(" after ")[1] for line in told[1:]] == ["3 of 9 steps", "6 of 9 steps", "9 of 9 steps"]
    assert "epsilon 7.9" in told[-1] and not any("validation " in line for line in lines)
    assert fitted.state.history == [] and fitted.private.steps == 9
    assert not any(
        key.startswith("valid.") for line in (tmp_path / "log.jsonl").read_text().splitlines() for key in json.loads(line)
    )


def test_a_stopped_run_tells_what_it_spent_and_resumes_without_a_second_release(make, tmp_path):
    lines = []
    first = make(NEXT, RATING)
    with pytest.raises(InterruptedJobError):
        fit(first, tmp_path, stop_at=4, reporter=Reporter(lines.append))
    assert lines[-1].startswith("privacy: epsilon") and lines[-1].endswith("after 4 of 9 steps")
    moments, held = first.model.heads["rating"].moments.clone(), weights(first)
    payload = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert payload["privacy"]["steps"] == 4 and payload["privacy"]["released"].shape == (3, 30)
    again = make(NEXT, RATING)
    loop = Loop(again, tmp_path, Reporter.silent())
    loop.restore()
    assert torch.equal(again.model.heads["rating"].moments, moments)
    assert all(torch.equal(value, held[name]) for name, value in weights(again).items())
    assert torch.equal(loop.private.released, payload["privacy"]["released"])
    loop.run()
    assert loop.private.steps == loop.state.step == 9 and 7.9 < loop.private.plan.spent(9) <= 8


def test_a_checkpoint_of_another_budget_is_refused(make, tmp_path):
    with pytest.raises(InterruptedJobError):
        fit(make(LIKE), tmp_path, stop_at=2)
    with pytest.raises(InputError, match="the checkpoint's budget is another one: got .*'epsilon': 8.0"):
        fit(make(LIKE, privacy={"epsilon": 4}), tmp_path, resume=True)


def test_no_state_of_the_noise_is_kept(make, tmp_path):
    """Whoever has checkpoint and recipe can draw neither the next users nor the next noise."""
    with pytest.raises(InterruptedJobError):
        fit(make(LIKE), tmp_path, stop_at=2)
    runs = []
    for _ in range(2):
        loop = Loop(make(LIKE), tmp_path, Reporter.silent())
        loop.restore()
        loop.plan(0)
        runs.append((list(loop.private.pending), loop.private.noise.normal(3).tolist()))
    assert runs[0][0] != runs[1][0] and runs[0][1] != runs[1][1]


def test_a_seed_of_the_noise_repeats_a_run_and_is_called_not_private(make, tmp_path):
    lines, found = [], []
    for name in ("one", "two"):
        fitted = fit(make(LIKE, privacy={"noise_seed": 5}, epochs=1), tmp_path / name, reporter=Reporter(lines.append))
        found.append(weights(fitted.assembly))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert "NOT private: the noise has a seed" in lines[-1]


def test_a_private_run_learns_what_most_users_have_in_common(make, tmp_path):
    """Ratings that the kinds decide: the noisy item means and steps beat chance on users' later events."""
    from genre.data.splits import TEST
    from genre.evaluation.metrics.by_name import metric
    from genre.training.prediction import predict

    assembly = make(LIKE, epochs=3, train={"learning_rate": 2e-3})
    fit(assembly, tmp_path)
    targets, scores, _ = predict(assembly.model, assembly.builder, assembly.split, TEST, max_events=16)["like"]
    assert metric("auc").function(targets.label, scores) > 0.6


# --- statistics -------------------------------------------------------------------------------------------------------


def test_every_users_part_of_the_statistics_is_bounded(make, log):
    """Without any one user the sum moves by at most the clip, and by exactly that for one with many events."""
    assembly = make(NEXT, LIKE, RATING)
    parts = parts_of(assembly)
    whole, mask = total_of(assembly, parts).double(), assembly.train_mask
    assert [(part.task, part.what) for part in parts][:2] == [("next_item", "counts"), ("like", "counts")] and len(parts) == 5
    for user in (0, 7, 31):
        assembly.train_mask = mask & (log.user_codes != user)
        moved = (whole - total_of(assembly, parts).double()).norm(dim=1)
        assert moved.max() <= 1 + 1e-6 and float(moved[0]) == pytest.approx(1, abs=1e-5)


def test_a_user_with_one_item_many_times_moves_a_sum_by_one(log):
    events = np.flatnonzero(log.user_codes == 3)[:1].repeat(50)
    assert bounded_sum(log, events, np.ones(50)).max() == pytest.approx(1)


def test_without_a_share_for_statistics_none_are_released(make, tmp_path):
    loop = Loop(make(NEXT, privacy={"statistics": 0}), tmp_path, Reporter.silent())
    before = weights(loop.assembly)
    loop.private.begin()
    assert loop.private.released is None and loop.private.plan.statistics_sigma is None
    assert all(torch.equal(value, before[name]) for name, value in weights(loop.assembly).items())


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.split": {"kind": "temporal"}}, "a temporal split cuts where everybody's events say; use last_n or user_ratio"),
        ({"data.hold_out": [{"kind": "temporal"}]}, "a temporal split cuts where everybody's events say"),
        ({"data.split.cold_items": 0.2}, "data.split.cold_items draws by looking at all users"),
        ({"data.split.users": 20}, "data.split.users draws by looking at all users"),
        ({"data.limit": 100}, "data.limit keeps the latest events of all users together"),
        (
            {"tasks.0": {"name": "rating", "kind": "next_item", "head": "generate"}, "encoder.codes": {}},
            "encoder.codes trains vectors of codes with the encoder",
        ),
        ({"encoder.min_events": 3}, "encoder.min_events counts everybody's events of an item"),
        ({"base.quantization": "int8"}, "an int8 base rounds the rows of a batch together"),
        ({"adapter.kind": "full"}, "adapter.kind full has a gradient as large as the base for every user"),
        (
            {"train.privacy.ranges": {}},
            r"train.privacy.ranges lacks the possible labels of task rating, such as rating: \[1, 5\]",
        ),
        ({"train.privacy.ranges": {"rating": [1, 5], "x": [0, 1]}}, "train.privacy.ranges names no task of the recipe: x"),
        ({"train.privacy.ranges": {"rating": [5, 1]}}, "the range of rating is empty: 5 to 1"),
        ({"train.privacy.feedback_values": []}, "train.privacy.feedback_values lists what the feedback column can hold"),
        ({"train.privacy.ranges": {"rating": [1, float("inf")]}}, "the range of rating has no end: 1 to inf"),
        ({"train.privacy.feedback_values": [1, 1]}, "two of the values are the same"),
        ({"train.privacy.feedback_values": [1, float("nan")]}, "one of the values is not finite"),
        ({"train.privacy.feedback_values": [1, float("inf")]}, "one of the values is not finite"),
        ({"train.privacy.delta": 2}, "expected auto, or a probability between 0 and 1"),
        ({"train.privacy.delta": "small"}, "train.privacy.delta"),
        ({"train.privacy.epsilon": 0}, "train.privacy.epsilon"),
        ({"train.privacy.clip": -1}, "train.privacy.clip"),
        ({"train.privacy.unit": "row"}, "train.privacy.unit: got 'row'; expected 'user'"),
        ({"train.privacy.sigma": 1}, "unknown key 'train.privacy.sigma'"),
    ],
)
def test_recipes_that_look_past_the_noise_are_refused(tiny, change, message):
    with pytest.raises(RecipeError, match=message):
        private_recipe(tiny, RATING).with_values(change)


def test_texts_have_no_users_to_protect():
    raw = {"name": "good", "data": {"path": "x"}, "tasks": [{"name": "good", "kind": "text", "label": "good"}]}
    with pytest.raises(RecipeError, match="labelled texts have none"):
        Recipe.parse(raw | {"train": {"privacy": {"epsilon": 1}}})


def test_values_of_another_type_than_the_column_are_refused(make):
    with pytest.raises(RecipeError, match=r"feedback_values: got \['bad', 'good'\]; expected all numbers that rating can be"):
        make(LIKE, privacy={"feedback_values": ["good", "bad"]})


def test_private_recipes_train_alone_and_from_the_start(tiny, log, base, make):
    with pytest.raises(RecipeError, match="train.privacy: got set"):
        check_together([private_recipe(tiny, LIKE), private_recipe(tiny, NEXT)])
    with pytest.raises(RecipeError, match="would spend its budget again"):
        assemble_from(None, private_recipe(tiny, LIKE), log, base, np.ones(len(log), dtype=bool))


def test_neighbours_by_text_stay_with_constants(make, tmp_path):
    lines = []
    fitted = fit(make(NEXT, encoder={"whiten": True, "neighbours": 9}, epochs=1), tmp_path, reporter=Reporter(lines.append))
    found = fitted.assembly.model.heads["next_item"].neighbours
    assert found.blend.tolist() == [0, 2] and found.fade.tolist() == pytest.approx([1, 0.7]) and not found.values.any()
    assert any("item neighbours by text alone" in line for line in lines)


def test_nothing_is_fitted_to_events_and_the_recipe_says_so(make):
    assembly = make(NEXT, RATING, encoder={"taste": 8, "neighbours": 4, "factors": 4})
    used = assembly.recipe.encoder
    assert [used.learned, used.collaborative, used.factors, used.taste, used.neighbours] == [0] * 5
    assert assembly.recipe.train.early_stop is None
    assert assembly.model.heads["rating"].moments.tolist() == [3.0, 1.0]
    assert assembly.builder.layout.feedback.values == (1.0, 2.0, 4.0, 5.0)
    assert set(dict(assembly.shared.encoder.named_buffers())) == {"text_mean", "text_std"}
