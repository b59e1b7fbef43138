"""Base + encoder + LoRA + heads: branches against full sequences, what trains, bases in 8 and 4 bits."""

import numpy as np
import pytest
import torch

from builders import LIKE, NEXT, RATING, recipe, stir
from fakes import make_base
from genre.data.sequences.batches import collate
from genre.data.sequences.windows import training_windows
from genre.errors import DivergedError
from genre.modules.base.base import Base
from genre.modules.heads.heads import View
from genre.training.assembly import assemble

CLOSE = 1e-4
ITEMS = ["token", "text", "both"]


@pytest.fixture
def build(base, log, tiny):
    """Assembles a model with random weights on the test's own base."""
    made = []

    def build(*tasks, on=base, **sections):
        assembly = assemble(recipe(tiny, *tasks, **sections), log, on)
        stir(assembly)
        assembly.model.eval()
        made.append(assembly.model)
        return assembly

    yield build
    for model in made:
        model.release()


def scores(assembly, task, row, places, items):
    """A feedback task's scores at some places of a row."""
    model = assembly.model
    batch = collate([row], {})
    hidden = model.hidden(batch)
    head, count = model.heads[task], len(places)
    view = None
    if model.soft is not None:
        view = View(
            head.tables(model.soft.items()),
            batch.history_items,
            batch.history_feedback,
            torch.zeros(count, dtype=torch.long),
            torch.full((count,), int(row.history_lengths[-1]) if not len(row.candidates) else len(row.item_codes)),
            torch.as_tensor(np.asarray(items), dtype=torch.long),
        )
    return head.score(head(hidden[0, torch.as_tensor(np.asarray(places), dtype=torch.long)], view))


def full(assembly, events, candidate, groups=None):
    """The row in which a candidate is simply the next event; its feedback slot is never read."""
    builder = assembly.builder
    items = np.append(builder.data.item_codes[events], candidate)
    feedback = np.append(builder.feedback[events], 0)
    groups = None if groups is None else np.append(groups, -1)
    return builder.layout.build(builder.prefix(3), items, feedback, texts=builder.texts, groups=groups)


def branched(assembly, events, candidates, groups=None):
    builder = assembly.builder
    return builder.layout.build(
        builder.prefix(3),
        builder.data.item_codes[events],
        builder.feedback[events],
        texts=builder.texts,
        groups=groups,
        candidates=candidates,
    )


@torch.no_grad()
@pytest.mark.parametrize("shown", [False, True], ids=["plain", "impressions"])
@pytest.mark.parametrize("history", [0, 1, 7])
@pytest.mark.parametrize("item", ITEMS)
def test_a_branch_scores_as_its_own_full_sequence(build, item, history, shown):
    """For every way of writing items, every chunk size, at the positions that the full sequence has."""
    assembly = build(LIKE, sequence={"item": item})
    start = int(assembly.log.user_offsets[3])
    events = np.arange(start, start + history)
    groups = np.array([1, 1, 2, 2, 2, 3, 3])[:history] if shown else None
    candidates = np.array([0, 29, 5, 11, 5])
    wanted = []
    for candidate in candidates:
        row = full(assembly, events, candidate, groups)
        wanted.append(scores(assembly, "like", row, row.item_reads[-1:], [candidate]).item())
        alone = branched(assembly, events, np.array([candidate]), groups)
        length = int(row.item_reads[-1]) + 1
        assert alone.positions.tolist() == row.positions[:length].tolist()
        assert alone.tokens.tolist() == row.tokens[:length].tolist()
    assert len({round(value, 6) for value in wanted}) == 4  # item 5 twice
    for chunk in (1, 2, 3, 5):
        got = []
        for first in range(0, len(candidates), chunk):
            part = candidates[first : first + chunk]
            row = branched(assembly, events, part, groups)
            got += scores(assembly, "like", row, row.candidate_reads, part).tolist()
        assert np.abs(np.array(got) - wanted).max() < CLOSE


@torch.no_grad()
def test_branches_leave_the_history_as_it_is(build):
    assembly = build(LIKE, NEXT)
    start = int(assembly.log.user_offsets[3])
    events = np.arange(start, start + 6)
    plain, many = branched(assembly, events, None), branched(assembly, events, np.arange(20))
    hidden = [assembly.model.hidden(collate([row], {}))[0, : row.prefix_length] for row in (plain, many)]
    assert plain.prefix_length == many.prefix_length == len(plain) and (hidden[0] - hidden[1]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("tasks", "sections", "groups"),
    [
        ([NEXT], {}, {"lora", "heads", "encoder"}),
        ([LIKE], {"adapter": {"kind": "head_only"}}, {"heads", "encoder"}),
        ([LIKE], {"sequence": {"item": "text"}, "encoder": {"use": "none"}}, {"lora", "heads"}),
        ([LIKE], {"adapter": {"targets": ["q_proj"], "layers": [1]}}, {"lora", "heads", "encoder"}),
    ],
    ids=["lora", "head_only", "text", "one linear"],
)
def test_exactly_the_adapters_parameters_train(build, tasks, sections, groups):
    assembly = build(*tasks, **sections)
    names = assembly.model.trainable()
    assert {name.split(".", 1)[0] if not name.endswith(("lora_A", "lora_B")) else "lora" for name in names} == groups
    if sections.get("adapter", {}).get("targets"):
        lora = {name for name in names if "lora_" in name}
        assert lora == {f"model.layers.1.self_attn.q_proj.lora_{part}" for part in "AB"}
    backward(assembly)
    for name, parameter in assembly.base.model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
    for name, parameter in names.items():
        assert parameter.grad is not None, name
    assert not any(name.startswith("base") for name in assembly.model.state_dict())


def backward(assembly):
    """One step's gradients on the first users."""
    windows, _ = training_windows(assembly.log, assembly.train_mask, max_events=8, min_events=2)
    rows = [assembly.builder.row(window) for window in windows[:12]]
    assembly.model.train()
    loss, parts = assembly.model(collate(rows, assembly.builder.data.supervise(list(assembly.model.tasks.values()))))
    loss.backward()
    return loss, {name: (float(value), count) for name, (value, count) in parts.items()}


def test_a_joint_loss_is_the_weighted_sum(build):
    assembly = build(LIKE | {"weight": 2.0}, RATING | {"weight": 0.5}, NEXT)
    loss, parts = backward(assembly)
    assert set(parts) == {"like", "rating", "next_item"}
    assert loss.item() == pytest.approx(2 * parts["like"][0] + 0.5 * parts["rating"][0] + parts["next_item"][0], rel=1e-5)
    assert parts["like"][1] == parts["rating"][1] == parts["next_item"][1] > 50


def test_a_loss_that_is_not_finite_names_its_task(build):
    assembly = build(LIKE, RATING)
    with torch.no_grad():
        assembly.model.heads["rating"].linear.bias.fill_(1e38)
    with pytest.raises(DivergedError) as error:
        backward(assembly)
    assert str(error.value).startswith(
        "the loss of task 'rating' is not finite: got inf; expected a finite loss; 80 of 80 targets: row 0 (user u0, item i20), "
    )


@torch.no_grad()
def test_soft_tokens_stand_where_the_row_says(build):
    from genre.modules.embedding import embed

    assembly = build(LIKE, sequence={"item": "both"})
    row = branched(assembly, np.arange(3), np.array([4]))
    batch = collate([row], {})
    embeds, soft = embed(assembly.base, batch, assembly.model.soft)[0], assembly.model.soft
    plain = assembly.base.embedding(batch.tokens)[0]
    vectors = soft.items()
    for place in range(len(row)):
        if row.items[place] >= 0:
            wanted = vectors[row.items[place]]
        elif row.feedback[place] >= 0:
            wanted = soft.encoder.feedback_vectors(torch.tensor([row.feedback[place]]))[0]
        else:
            wanted = plain[place]
        assert torch.equal(embeds[place], wanted)
    assert (row.items >= 0).sum() == 4 and (row.feedback >= 0).sum() == 3


# --- bitsandbytes ----------------------------------------------------------------------------------------------------

TOLERANCE = {"int8": 0.05, "nf4": 0.4}  # relative error of hidden states on random weights, which are the hard case
SAME_WAY = {"int8": 0.95, "nf4": 0.5}  # cosine of gradients; nf4 without a gradient of its own gives .24
# In evaluation mode bitsandbytes repacks nf4 weights for CPUs with AVX512-BF16, and that kernel has no gradient.
BITS = ["int8", "nf4"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """bitsandbytes' blocks want widths that 64 divides."""
    return make_base(tmp_path_factory.mktemp("wide") / "base", width=64)


@torch.no_grad()
@pytest.mark.parametrize("quantization", TOLERANCE)
def test_a_quantized_base_is_near_and_keeps_its_fingerprint(wide, quantization):
    plain, small = Base.load(str(wide)), Base.load(str(wide), quantization=quantization)
    assert small.fingerprint == plain.fingerprint and small.quantization == quantization
    ids = torch.randint(3, 250, (2, 30), generator=torch.Generator().manual_seed(0))
    wanted, got = (each.hidden(each.embedding(ids)) for each in (plain, small))
    assert 1e-4 < ((got - wanted).norm() / wanted.norm()).item() < TOLERANCE[quantization]


@pytest.mark.parametrize("quantization", BITS)
def test_a_quantized_base_trains_the_adapter_alone(build, wide, quantization):
    small = Base.load(str(wide), quantization=quantization)
    assembly = build(LIKE, NEXT, on=small)
    assert all(not layer.fused for layer in assembly.model.layers.values())
    loss, _ = backward(assembly)
    assert torch.isfinite(loss)
    for name, parameter in small.model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
    assert all(torch.isfinite(parameter.grad).all() for parameter in assembly.model.trainable().values())


@pytest.mark.parametrize("quantization", BITS)
def test_gradients_through_a_quantized_base_point_the_same_way(build, wide, quantization):
    """Of the low-rank layers of the first layer, whose gradients come through everything above."""
    found = {}
    for kind in ("none", quantization):
        assembly = build(LIKE, on=Base.load(str(wide), quantization=kind))
        with torch.no_grad():
            assembly.model.hidden(collate([branched(assembly, np.arange(3), None)], {}))  # as a validation would
        backward(assembly)
        found[kind] = torch.cat([p.grad.flatten() for n, p in assembly.model.lora_parameters() if "layers.0" in n])
    assert torch.cosine_similarity(found["none"], found[quantization], 0) > SAME_WAY[quantization]


@torch.no_grad()
@pytest.mark.parametrize("quantization", TOLERANCE)
def test_an_adapter_scores_alike_on_a_quantized_base(build, wide, quantization):
    """The same adapter and the same encoder; only the base's precision differs."""
    found, soft = {}, None
    for kind in ("none", quantization):
        assembly = build(LIKE, on=Base.load(str(wide), quantization=kind))
        assembly.model.soft = soft = soft or assembly.model.soft
        row = branched(assembly, np.arange(8), np.arange(20))
        found[kind] = scores(assembly, "like", row, row.candidate_reads, np.arange(20))
    assert 0 < (found[quantization] - found["none"]).abs().mean() < TOLERANCE[quantization] / 2
