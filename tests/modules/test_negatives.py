"""The sampled softmax: all items as negatives are the full softmax, the correction has the right expectation, and a
catalogue of 60,000 items trains a step and is ranked exactly without a table of all scores."""

import math

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import LIKE, NEXT, recipe, stir
from genre.data.sequences.batches import collate
from genre.errors import RecipeError
from genre.evaluation.ranking import CELLS, Ranker, block_size
from genre.modules.losses import Negatives, cross_entropy, sampled_cross_entropy
from genre.modules.reading import compact
from genre.training import fit
from genre.training.assembly import assemble
from genre.training.prediction import predict

DRAW = np.random.default_rng(0)
ITEMS, TARGETS = 12, 5
LOGITS = torch.from_numpy(DRAW.normal(size=(TARGETS, ITEMS)) * 2)
OWN = torch.from_numpy(DRAW.integers(0, ITEMS, size=TARGETS))
COUNTS = DRAW.integers(0, 40, size=ITEMS)


def sampled(drawn, log_count):
    others = LOGITS[:, drawn] - log_count
    return sampled_cross_entropy(LOGITS[torch.arange(TARGETS), OWN], others, OWN[:, None] == drawn)


def test_all_items_as_negatives_are_the_full_softmax():
    drawn, log_count = Negatives(COUNTS, ITEMS).draw()
    assert drawn.tolist() == list(range(ITEMS)) and not log_count.any()
    assert sampled(drawn, log_count).item() == pytest.approx(cross_entropy(LOGITS, OWN).item(), rel=1e-6)


def test_a_target_that_is_drawn_takes_no_part_twice():
    """By hand: item 0 is the target's own and drawn; item 1 counts half."""
    own, others = torch.tensor([1.0]), torch.tensor([[1.0, 2.0 - math.log(2)]])
    value = sampled_cross_entropy(own, others, torch.tensor([[True, False]]))
    assert value.item() == pytest.approx(math.log(math.e + math.e**2 / 2) - 1, rel=1e-6)


def test_nothing_to_average_gives_zero_with_a_gradient():
    own = torch.zeros(0, requires_grad=True)
    value = sampled_cross_entropy(own, torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0 and own.grad is not None


@pytest.mark.parametrize("power", ["corrected", "uncorrected"])
def test_the_corrected_sum_is_the_catalogues_in_expectation(power):
    """Over 4,000 draws of 6 of 12 items; without the correction it is far off."""
    torch.manual_seed(0)
    negatives = Negatives(COUNTS, 6)
    sums = torch.zeros(TARGETS, dtype=torch.float64)
    for _ in range(4000):
        drawn, log_count = negatives.draw()
        terms = torch.exp(LOGITS[:, drawn] - (log_count if power == "corrected" else 0.0))
        sums += terms.masked_fill(OWN[:, None] == drawn, 0).sum(1) / 4000
    exact = torch.exp(LOGITS).sum(1) - torch.exp(LOGITS[torch.arange(TARGETS), OWN])
    error = (sums / exact - 1).abs().max().item()
    assert error < 0.05 if power == "corrected" else error > 0.2


def test_the_loss_nears_the_full_one_as_more_are_drawn():
    torch.manual_seed(0)
    full, errors = cross_entropy(LOGITS, OWN).item(), []
    for size in (2, 11):
        negatives = Negatives(COUNTS, size)
        losses = [sampled(*negatives.draw()).item() for _ in range(200)]
        errors.append(np.abs(np.array(losses) - full).mean())
    assert errors[1] < errors[0] / 2


def test_popular_items_are_drawn_more_often_and_rare_ones_at_times():
    torch.manual_seed(0)
    counts = np.array([0, 1000])
    seen = np.zeros(2)
    for _ in range(3000):
        drawn, _ = Negatives(counts, 1).draw()
        seen[drawn.tolist()] += 1
    assert 0 < seen[0] / 3000 == pytest.approx(1 / (1 + 1001**0.75), rel=0.5)


def test_the_same_random_state_gives_the_same_draw():
    negatives = Negatives(COUNTS, 6)
    state = torch.get_rng_state()
    first = negatives.draw()
    torch.set_rng_state(state)
    again = negatives.draw()
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_codes_become_places_and_padding_stays():
    codes, (history, items) = compact(torch.tensor([[7, 3, -1]]), torch.tensor([3, 9]))
    assert codes.tolist() == [0, 3, 7, 9] and history.tolist() == [[2, 1, -1]] and items.tolist() == [1, 3]


# --- in a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", [True, False])
def test_a_model_that_draws_every_item_has_the_full_loss_and_gradient(base, tiny, log, fuse):
    found = []
    for above in (1, 50_000):
        wanted = recipe(tiny, NEXT, LIKE, encoder={"fuse": fuse, "dropout": 0.0}, train={"sampled": {"above": above}})
        assembly = assemble(wanted, log, base)
        try:
            assert set(assembly.model.negatives) == ({"next_item"} if above == 1 else set())
            stir(assembly)
            rows, _ = assembly.builder.training_rows(assembly.train_mask, None, max_events=16, min_events=2, shift=0.0)
            batch = collate(rows[:5], assembly.builder.data.supervise(list(assembly.recipe.tasks)))
            loss, parts = assembly.model(batch)
            loss.backward()
            gradients = {name: value.grad.clone() for name, value in assembly.model.trainable().items()}
            found.append((loss.item(), parts, gradients))
        finally:
            assembly.model.release()
    (loss, parts, gradients), (full, full_parts, full_gradients) = found
    assert loss == pytest.approx(full, rel=1e-5) and parts["next_item"][1] == full_parts["next_item"][1] > 20
    for name, value in full_gradients.items():
        assert torch.allclose(gradients[name], value, atol=1e-5), name


def test_few_negatives_train_and_resume_bit_for_bit(base, tiny, log, tmp_path):
    from genre.errors import JobError

    def build():
        return assemble(recipe(tiny, NEXT, train={"sampled": {"above": 10, "negatives": 8}, "epochs": 1}), log, base)

    ends = []
    for folder, cut in ((tmp_path / "through", None), (tmp_path / "cut", 4)):
        assembly = build()
        try:
            if cut:
                with pytest.raises(JobError):
                    fit(assembly, folder, stop_at=cut)
                assembly.model.release()
                assembly = build()
            fit(assembly, folder, resume=bool(cut))
            ends.append({name: value.detach().clone() for name, value in assembly.model.trainable().items()})
        finally:
            assembly.model.release()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_recipe_says_when(tiny):
    assert recipe(tiny, NEXT).train.sampled.above == 50_000 and recipe(tiny, NEXT).train.sampled.negatives == 4096
    with pytest.raises(RecipeError, match="unknown key 'train.sampled.over'"):
        recipe(tiny, NEXT, train={"sampled": {"over": 3}})
    with pytest.raises(RecipeError, match="train.sampled.negatives: got 0"):
        recipe(tiny, NEXT, train={"sampled": {"negatives": 0}})


# --- large catalogues ------------------------------------------------------------------------------------------------


def test_blocks_of_scores_are_bounded():
    assert block_size(1682) == 256 and block_size(60_000) == 256 and block_size(1_000_000) == 16 and block_size(10**9) == 1
    assert block_size(1_000_000) * 1_000_000 <= CELLS


def test_sixty_thousand_items_train_a_step_and_are_ranked(base, tiny, log, tmp_path, monkeypatch):
    """Nothing of the size of the catalogue goes through the base's width in a step, and no table of all scores is made."""
    more = pl.DataFrame({"item_id": [f"x{i}" for i in range(60_000)], "title": [""] * 60_000})
    items = pl.concat([log.catalogue.frame, more])
    large = genre.Interactions.from_frame(log.frame.drop("row"), items=items, users=log.users, name="large")
    train = {"sampled": {"negatives": 64}, "epochs": 1}
    wanted = recipe(tiny, NEXT, encoder={"text": False, "collaborative": 0}, data={"limit": 200}, train=train)
    assembly = assemble(wanted, large, base)
    seen, rank = [], Ranker.rank
    try:
        shapes: list = []
        projection = assembly.shared.encoder.project["learned"]
        projection.register_forward_hook(lambda module, given, out: shapes.append((torch.is_grad_enabled(), len(out))))
        monkeypatch.setattr(
            Ranker, "rank", lambda self, events, own, given: seen.append(given.shape) or rank(self, events, own, given)
        )
        fitted = fit(assembly, tmp_path)
        assert fitted.state.step > 0 and 0 <= fitted.state.history[0]["next_item.ndcg@10"] <= 1
        assert max(length for trains, length in shapes if trains) < 1000
        assert seen and all(math.prod(shape) <= CELLS and shape[1] == large.catalogue.size for shape in seen)
        monkeypatch.setattr("genre.training.prediction.block_size", lambda items: 7)
        split = {"max_events": 16, "batch_tokens": 2048}
        pieces = predict(assembly.model, assembly.builder, assembly.split, 1, **split)["next_item"]
        monkeypatch.undo()
        whole = predict(assembly.model, assembly.builder, assembly.split, 1, **split)["next_item"]
        assert np.array_equal(pieces[1], whole[1]) and np.array_equal(pieces[2], whole[2])
    finally:
        assembly.model.release()
