"""Tasks that generate items: the loss of a pass against prompts one by one, training, ranks of items, and what is refused."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from builders import LIKE, NEXT, recipe, stir
from fakes import planted_log
from genre.data.interactions import Interactions
from genre.data.sequences.batches import collate
from genre.data.sequences.code_branches import up_to, with_branches
from genre.data.splits import TEST, VALID
from genre.errors import ManifestError, RecipeError
from genre.evaluation.targets import targets
from genre.modules.generation import code_losses
from genre.training import code_start, fit
from genre.training.assembly import Agreed, assemble
from genre.training.fsdp import check_launch
from genre.training.parts import SharedEncoder
from genre.training.prediction import outputs, predict
from kinds import EVENTS, ITEMS, USERS, log_of_kinds

GENERATE = NEXT | {"head": "generate"}
CODES = {"codes": {"levels": 2, "size": 4, "places": 30}}
LAST = {"split": {"kind": "last_n", "n": 1}, "max_events": 16, "path": "planted"}


@pytest.fixture
def make(base, tiny, log):
    """Assembles a recipe with codes on the test's own base; the next one takes the place of the one before."""
    made = []

    def make(*tasks, of=log, **sections):
        if made:
            made.pop().release()
        assembly = assemble(recipe(tiny, *tasks, **({"encoder": CODES} | sections)), of, base)
        made.append(assembly.model)
        return assembly

    yield make
    for model in made:
        model.release()


def one_by_one(model, row, after: int, items: np.ndarray) -> np.ndarray:
    """Log-probabilities of some items after a row's token, each code read off a prompt of its own."""
    codes, table = model.soft.table.codes.numpy(), model.soft.codes
    found = np.zeros(len(items))
    for number, item in enumerate(items):
        for level, code in enumerate(codes[item]):
            prefix = codes[item, :level]
            ways = np.unique(codes[(codes[:, :level] == prefix).all(1), level])
            prompt = up_to(row, after)
            if level:
                tokens = prefix + np.array(table.offsets[:level])
                prompt, _ = with_branches(prompt, np.array([after]), np.array([level]), tokens)
                prompt = dataclasses.replace(prompt, masked_spans=np.zeros_like(prompt.masked_spans))
            state = model.hidden(collate([prompt], {}))[0, -1]
            start = table.offsets[level]
            vectors = table.vectors.weight[start : start + table.sizes[level]] * table.gain / state.shape[-1] ** 0.5
            found[number] += float(torch.log_softmax((vectors @ state)[ways], 0)[np.flatnonzero(ways == code)])
    return found


def stirred(make, **sections):
    """A model whose low-rank layers and codes are not those that it starts with."""
    assembly = make(GENERATE, encoder=CODES | {"dropout": 0.0}, **sections)
    stir(assembly)
    with torch.no_grad():
        assembly.model.soft.codes.vectors.weight.mul_(2)
    return assembly


@pytest.mark.parametrize("sequence", [{}, {"feedback": "none"}, {"item": "text"}])
@torch.no_grad()
def test_one_pass_has_every_targets_loss_as_a_prompt_of_its_own_has_it(make, sequence) -> None:
    assembly = stirred(make, sequence=sequence)
    model = assembly.model.eval()
    rows, _ = assembly.builder.training_rows(assembly.train_mask, max_events=16, min_events=2)
    assert all(len(row) > row.prefix_length for row in rows[:2])
    batch = collate(rows[:2], assembly.builder.data.supervise(assembly.recipe.tasks))
    reads = batch.reads["next_item"]
    losses = code_losses(model.head("next_item"), model.hidden(batch), reads, model.soft, model.trie)
    assert len(losses) == sum(map(len, (row.events for row in rows[:2])))
    for number in range(0, len(losses), 5):
        row, after = rows[int(reads.rows[number])], int(reads.token_index[number])
        wanted = one_by_one(model, row, after, reads.labels[number : number + 1].numpy())
        assert float(losses[number]) == pytest.approx(-float(wanted[0]), abs=1e-4)
    total, parts = model(batch)
    assert float(total) == pytest.approx(float(losses.mean()), abs=1e-5)
    assert parts["next_item"][1] == len(losses)


@torch.no_grad()
def test_a_search_that_keeps_everything_scores_every_item_as_prompts_one_by_one(make) -> None:
    assembly = stirred(make, data=LAST)
    model = assembly.model.eval()
    found = list(outputs(model, assembly.builder, assembly.split, TEST, max_events=16, beam=30))
    events, scores = np.concatenate([each[1] for each in found]), np.concatenate([each[2] for each in found])
    row = assembly.builder.evaluation_rows(assembly.split, TEST, max_events=16)[0]
    own = scores[np.flatnonzero(events == row.events[-1])[0]]
    log, event = assembly.log, int(row.events[-1])
    seen = np.setdiff1d(log.item_codes[log.user_offsets[log.user_codes[event]] : event], log.item_codes[event])
    assert (own[seen] == -np.inf).all()
    left = np.flatnonzero(own > -np.inf)
    assert sorted([*left, *seen]) == list(range(30))
    np.testing.assert_allclose(own[left], one_by_one(model, row, int(row.next_reads[-1]), left), atol=1e-4)


def test_ranks_are_of_items_and_a_target_that_no_beam_reached_ties_with_all_such(make) -> None:
    """Hits on codes would rank the target first wherever another item with its first codes is found."""
    assembly = stirred(make, data=LAST)
    wide, narrow = (
        predict(assembly.model, assembly.builder, assembly.split, TEST, max_events=16, beam=beam)["next_item"] for beam in (30, 2)
    )
    assert (narrow[2][:, 2:] == -1).all()
    log = assembly.log
    before = [set(log.item_codes[log.user_offsets[log.user_codes[event]] : event].tolist()) for event in wide[0].event]
    seen = np.array([len(own - {item}) for own, item in zip(before, wide[0].item.tolist(), strict=True)])
    hit = narrow[1] <= 2
    assert 0 < hit.sum() < len(hit)
    assert (narrow[1][hit] == (narrow[2][hit, 1] == wide[0].item[hit]) + 1).all()
    left = 30 - seen[~hit]
    np.testing.assert_allclose(narrow[1][~hit], 2 + (left - 2 + 1) / 2)
    first = assembly.model.soft.table.codes.numpy()[:, 0]
    same = first[narrow[2][~hit, 0]] == first[wide[0].item[~hit]]
    assert same.any(), "a target whose first code is found, and which is no hit all the same"


def test_the_codes_vectors_train_with_the_first_adapter_and_are_everybodys_after(make, tiny, tmp_path) -> None:
    """Rows of new tokens that stay frozen under LoRA are what published results with such codes had."""
    assembly = make(GENERATE, adapter={"targets": ["q_proj", "k_proj", "v_proj"]}, data=LAST, train={"epochs": 1})
    codes = assembly.model.soft.codes
    before, fixed = codes.vectors.weight.detach().clone(), codes.codes.clone()
    assert "encoder.codes.vectors.weight" in assembly.model.trainable()
    fit(assembly, tmp_path / "first")
    moved = (codes.vectors.weight - before).abs().amax(1)
    used = np.unique(assembly.model.trie.rows[:, 0])
    assert (moved[used] > 1e-3).all()
    assert torch.equal(codes.codes, fixed)
    assert not any("codes" in name for name in assembly.model.heads.state_dict())

    shared = dataclasses.replace(assembly.shared, digest="of the first")
    shared.encoder.eval().requires_grad_(False)
    assembly.model.release()
    frozen = {name: value.clone() for name, value in shared.encoder.state_dict().items()}
    wanted = recipe(tiny, GENERATE, encoder=CODES | {"use": "auto"}, data=LAST, train={"seed": 1, "epochs": 1})
    second = assemble(wanted, assembly.log, assembly.base, shared)
    try:
        assert not any("codes" in name for name in second.model.trainable())
        fit(second, tmp_path / "second")
        assert all(torch.equal(value, frozen[name]) for name, value in shared.encoder.state_dict().items())
        assert second.model.soft.codes is codes
    finally:
        second.model.release()


def test_training_finds_what_is_planted(make, tmp_path) -> None:
    train = {"epochs": 3, "learning_rate": 1e-2, "batch_tokens": 1024}
    assembly = make(GENERATE, of=log_of_kinds(), data=LAST, sequence={"instruction": ""}, train=train)
    fit(assembly, tmp_path / "run")
    ranks = predict(assembly.model, assembly.builder, assembly.split, VALID, max_events=16)["next_item"][1]
    assert len(ranks) == USERS
    assert (ranks <= 10).mean() > 3 * 10 / (ITEMS - EVENTS)


def test_codes_start_at_their_shares_of_the_training_events(make, base, tiny) -> None:
    draw = np.random.default_rng(0)
    often = 1 / np.arange(1, 31)
    rows = [
        (f"u{user}", f"i{item}", 5.0, step)
        for user in range(60)
        for step, item in enumerate(draw.choice(30, 8, p=often / often.sum()))
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(30)], "title": [f"thing {i}" for i in range(30)]})
    log = Interactions.from_frame(frame, items=items, name="skewed")
    losses = []
    for agreed in (None, Agreed(blank=True)):
        assembly = assemble(
            recipe(tiny, GENERATE, encoder=CODES, data=LAST, sequence={"instruction": ""}), log, base, agreed=agreed
        )
        own, _ = assembly.builder.training_rows(assembly.train_mask, max_events=16, min_events=2)
        with torch.no_grad():
            losses.append(float(assembly.model.eval()(collate(own, log.supervise(assembly.recipe.tasks)))[0]))
        assembly.model.release()
    assert losses[0] < losses[1] - 0.2
    assert losses[0] < np.log(30)


def test_codes_start_where_the_bare_base_tells_them_best(make, monkeypatch) -> None:
    losses = {}
    for move in (0.05, 1e-9):  # the second leaves the rows at the codes' shares
        monkeypatch.setattr(code_start, "MOVE", move)
        assembly = make(GENERATE, of=log_of_kinds(), data=LAST, sequence={"instruction": ""})
        rows, _ = assembly.builder.training_rows(assembly.train_mask, max_events=16, min_events=2)
        with torch.no_grad():
            batch = collate(rows, assembly.log.supervise(assembly.recipe.tasks))
            losses[move] = float(assembly.model.eval()(batch)[0])
    assert losses[0.05] < losses[1e-9] - 0.2


def test_cold_items_are_no_negatives_and_are_found_all_the_same(make) -> None:
    assembly = make(
        GENERATE, encoder=CODES | {"min_events": 1}, data=LAST | {"split": {"kind": "last_n", "n": 1, "cold_items": 0.2}}
    )
    model = assembly.model
    assert model.cold is not None
    cold = np.flatnonzero(model.cold.numpy())
    assert len(model.trie) == 30 - len(cold)
    assert len(model.soft.trie) == 30
    _, scores = next(
        (events, scores) for _, events, scores in outputs(model, assembly.builder, assembly.split, TEST, max_events=16)
    )
    assert np.isfinite(scores[:, cold]).any()


def test_what_cannot_generate_is_refused(tiny, make, monkeypatch) -> None:
    with pytest.raises(RecipeError, match=r"'generate' needs encoder\.codes"):
        recipe(tiny, GENERATE)
    with pytest.raises(RecipeError, match="head 'generate' needs an encoder"):
        recipe(tiny, GENERATE, encoder={"use": "none"}, sequence={"item": "text"})
    with pytest.raises(RecipeError, match="does not go with head 'generate'"):
        recipe(tiny, LIKE | {"head": "generate"})
    with pytest.raises(RecipeError, match="beam is for head 'generate'"):
        recipe(tiny, NEXT | {"beam": 5})
    with pytest.raises(RecipeError, match="head_only trains nothing here"):
        recipe(tiny, GENERATE, encoder=CODES, adapter={"kind": "head_only"})
    monkeypatch.setattr("genre.training.fsdp.process_count", lambda: 2)
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="FSDP2 shards does not search"):
        check_launch(recipe(tiny, GENERATE, encoder=CODES))
    with pytest.raises(RecipeError, match="not 'ips'; head 'catalogue' takes it"):
        recipe(tiny, GENERATE | {"loss": "ips"}, encoder=CODES)
    private = {"privacy": {"epsilon": 8, "feedback_values": [1, 2, 3, 4, 5]}}
    with pytest.raises(RecipeError, match="train.privacy: head 'generate'"):
        recipe(tiny, GENERATE, encoder={"use": "encoder-planted"}, data=LAST, train=private)
    plain = make(NEXT, encoder={})
    shared = SharedEncoder(plain.shared.encoder, plain.shared.vocabulary, "published")
    plain.model.release()
    with pytest.raises(ManifestError, match="an encoder without codes"):
        assemble(recipe(tiny, GENERATE, encoder={"use": "encoder-planted"}), plain.log, plain.base, shared)
    assert "beam" not in recipe(tiny, NEXT).dump()
    assert recipe(tiny, GENERATE | {"beam": 7}, encoder=CODES).tasks[0].beam == 7


def test_targets_of_a_part_are_each_ranked_once(make) -> None:
    assembly = make(GENERATE)
    found = predict(assembly.model, assembly.builder, assembly.split, TEST, max_events=16, batch_tokens=200)["next_item"]
    assert found[0].event.tolist() == targets(planted_log(), assembly.split, TEST).event.tolist()
    assert np.isfinite(found[1]).all()
