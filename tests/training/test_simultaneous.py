"""Many adapters at once: each run of a group ends as it does alone, whatever the others do."""

import json

import pytest
import torch
from torch import nn

from builders import LIKE, NEXT, RATING, recipe, weights
from fakes import make_base
from genre.data.sequences.batches import collate
from genre.errors import BaseModelError, DivergedError, InterruptedJobError, RecipeError
from genre.modules.base.base import Base
from genre.modules.lora.layer import LoraLinear, PackedLora, PackedSpans
from genre.progress import Reporter
from genre.training import Loop, fit
from genre.training.assembly import assemble
from genre.training.packing import check_packing, packed_hidden, packing
from genre.training.runtime import RandomStream
from genre.training.simultaneous import Member, PendingStep, check_together, fit_together, plan_passes

CLOSE = 1e-4
TRAIN = {"epochs": 2, "dropout": 0.2}
TWO = {"kind": "rslora", "rank": 2, "targets": ["q_proj", "down_proj"]}


def recipes(tiny):
    """Other tasks, seeds, ranks, linears, dropouts, batch sizes; one of them without low-rank layers."""
    return [
        recipe(tiny, LIKE, name="a", train=TRAIN),
        recipe(tiny, RATING, name="b", train={**TRAIN, "seed": 3, "batch_tokens": 300}, adapter={"rank": 3, "dropout": 0.1}),
        recipe(
            tiny,
            NEXT,
            name="c",
            train={**TRAIN, "seed": 1},
            adapter={"kind": "rslora", "rank": 2, "targets": ["q_proj", "down_proj"]},
        ),
        recipe(tiny, LIKE, NEXT, name="d", train=TRAIN, adapter={"kind": "head_only"}, sequence={"item": "both"}),
    ]


def on(tiny, *tasks, base, **sections):
    """A recipe with keys of its base changed."""
    found = recipe(tiny, *tasks, **sections)
    return found.model_copy(update={"base": found.base.model_copy(update=base)})


def far(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def members(wanted, log, base, folder, *, shared=None, resume=False):
    found = []
    for each in wanted:
        assembly = assemble(each, log, base, shared, bare=True)
        found.append(Member(assembly, folder / each.name, RandomStream(base.device), resume))
    return found


def alone(wanted, log, base, folder, shared=None):
    """Each recipe by itself: its weights and its state."""
    found = []
    for each in wanted:
        assembly = assemble(each, log, base, shared)
        try:
            found.append((fit(assembly, folder / each.name).state, weights(assembly)))
        finally:
            assembly.model.release()
    return found


def compare(group, fitted, solo, close=CLOSE):
    for member, one, (state, wanted) in zip(group, fitted, solo, strict=True):
        assert far(weights(member.assembly), wanted) < close
        assert (one.state.step, one.state.epoch, one.state.tokens, one.state.targets) == (
            state.step,
            state.epoch,
            state.tokens,
            state.targets,
        )
        for mine, theirs in zip(one.state.history, state.history, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-3)


# --- the runs of a group ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [100_000, 900, 1], ids=["one pass", "some passes", "one slot a pass"])
def test_each_run_ends_as_it_does_alone(tiny, base, log, tmp_path, tokens):
    wanted = recipes(tiny)
    solo = alone(wanted, log, base, tmp_path / "solo")
    group = members(wanted, log, base, tmp_path / "group")
    frozen = {name: value.clone() for name, value in base.model.state_dict().items()}
    before = base.model.config._attn_implementation
    fitted = fit_together(group, tokens=tokens)
    compare(group, fitted, solo)
    assert len({state.step for state, _ in solo}) > 1  # they do not end in the same round
    now = base.model.state_dict()
    assert now.keys() == frozen.keys() and all(torch.equal(now[name], frozen[name]) for name in frozen)
    assert base.occupied_by is None and base.model.config._attn_implementation == before
    assert not any(value.requires_grad for value in base.model.parameters())


def test_an_early_stop_leaves_the_group(tiny, base, log, tmp_path):
    wanted = [
        recipe(tiny, LIKE, name="a", train={"epochs": 12, "early_stop": 1, "learning_rate": 1e-2}),
        recipe(tiny, RATING, name="b", train={"epochs": 12, "early_stop": None}),
    ]
    solo = alone(wanted, log, base, tmp_path / "solo")
    group = members(wanted, log, base, tmp_path / "group")
    fitted = fit_together(group, tokens=4096)
    assert fitted[0].state.epoch < 12 == fitted[1].state.epoch
    compare(group, fitted, solo)


def test_a_shared_encoder_and_its_vectors_serve_all(tiny, base, log, trained, tmp_path):
    from genre.engine.versions import read_encoder

    shared = read_encoder(trained.registry, trained.registry.resolve("encoder-planted").digest, base)
    wanted = recipes(tiny)[:3]
    solo = alone(wanted, log, base, tmp_path / "solo", shared)
    group = members(wanted, log, base, tmp_path / "group", shared=shared)
    for member in group[1:]:
        member.assembly.model.soft = group[0].assembly.model.soft
    compare(group, fit_together(group), solo)


@pytest.mark.parametrize("stop", [1, 7])
def test_a_group_that_was_cut_goes_on(tiny, base, log, tmp_path, stop):
    wanted = recipes(tiny)
    group = members(wanted, log, base, tmp_path / "through")
    fit_together(group)
    through = [weights(member.assembly) for member in group]
    with pytest.raises(InterruptedJobError) as error:
        fit_together(members(wanted, log, base, tmp_path / "cut"), stop_at=stop)
    assert f"interrupted: a after step {stop}, b after step {stop}" in str(error.value) and base.occupied_by is None
    again = members(wanted, log, base, tmp_path / "cut", resume=True)
    fit_together(again)
    for member, expected in zip(again, through, strict=True):
        assert far(weights(member.assembly), expected) == 0
    lines = [json.loads(line) for line in (tmp_path / "cut" / "b" / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


def test_a_run_goes_on_alone_from_a_group_and_back(tiny, base, log, tmp_path):
    wanted = recipes(tiny)[:2]
    solo = alone(wanted, log, base, tmp_path / "solo")
    with pytest.raises(InterruptedJobError):
        fit_together(members(wanted, log, base, tmp_path), stop_at=3)
    assembly = assemble(wanted[1], log, base)
    try:
        fit(assembly, tmp_path / "b", resume=True)
        assert far(weights(assembly), solo[1][1]) < CLOSE
    finally:
        assembly.model.release()


def test_a_run_that_diverges_leaves_the_others_alone(tiny, base, log, tmp_path, monkeypatch):
    wanted = recipes(tiny)[:3]
    solo = alone(wanted, log, base, tmp_path / "solo")
    update = Loop.update

    def poison(self, *given):
        result = update(self, *given)
        if self.recipe.name == "b" and self.state.step == 4:
            with torch.no_grad():
                self.model.heads["rating"].linear.weight[0, 0] = float("nan")
        return result

    monkeypatch.setattr(Loop, "update", poison)
    lines = []
    group = members(wanted, log, base, tmp_path / "group")
    fitted = fit_together(group, reporter=Reporter(lines.append), tokens=100_000)
    assert isinstance(fitted[1], DivergedError) and "the loss of task 'rating' is not finite" in str(fitted[1])
    assert any(line.startswith("b: failed: the loss of task 'rating'") for line in lines)
    compare([group[0], group[2]], [fitted[0], fitted[2]], [solo[0], solo[2]])
    payload = torch.load(tmp_path / "group" / "b" / "checkpoints" / "last.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in payload["weights"].values())
    assert base.occupied_by is None


def test_an_exploding_gradient_of_one_run_is_named(tiny, base, log, tmp_path):
    group = members(recipes(tiny)[:2], log, base, tmp_path)
    for layer in group[0].assembly.model.layers.values():
        layer.lora_B.register_hook(lambda gradient: gradient * float("inf"))
    fitted = fit_together(group, tokens=100_000)
    assert "a gradient is not finite at step 0" in str(fitted[0]) and "the sequence of row" in str(fitted[0])
    assert fitted[1].state.epoch == 2 and base.occupied_by is None


def test_how_much_was_padding_is_said(tiny, base, log, tmp_path):
    lines = []
    fit_together(members(recipes(tiny)[:2], log, base, tmp_path), reporter=Reporter(lines.append), tokens=100_000)
    assert any(line.startswith("a: epoch 1: validation like.auc") for line in lines)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in "ab"]
    rounds = max(json.loads(lines[-1])["step"] for lines in logs)
    assert lines[-1].startswith(f"{rounds} rounds in {rounds} passes; ") and lines[-1].endswith("tokens were padding")


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantized_bases_train_together(tiny, log, tmp_path, quantization):
    base, low = Base.load(str(tiny), quantization=quantization), {"quantization": quantization}
    wanted = [
        on(tiny, LIKE, base=low, name="a", train={"epochs": 2}),
        on(
            tiny, RATING, base=low, name="b", train={"epochs": 2, "batch_tokens": 300}, adapter={"rank": 3, "targets": ["q_proj"]}
        ),
    ]
    solo = alone(wanted, log, base, tmp_path / "solo")
    group = members(wanted, log, base, tmp_path / "group")
    compare(group, fit_together(group, tokens=100_000), solo, close=1e-3)  # a sum in another order may round otherwise


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["fused", "parts"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_slice_of_the_tokens_gives_what_its_own_layer_gives(dropout, bias):
    """Outputs, gradients of the input and of every update; the third slot has none here."""
    torch.manual_seed(0)
    base = nn.Linear(6, 5, bias=bias).requires_grad_(False)
    own = {0: LoraLinear(base, rank=2, scale=2.0, dropout=dropout), 1: LoraLinear(base, rank=3, scale=0.5)}
    for layer in own.values():
        nn.init.normal_(layer.lora_B)
    spans = ((1, 0, 20), (2, 20, 24), (0, 24, 60))
    streams = {number: RandomStream(torch.device("cpu")) for number in own}
    x, weight = torch.randn(1, 60, 6, requires_grad=True), torch.randn(60, 5)
    wanted, gradients = [], []
    for slot, start, stop in spans:
        torch.manual_seed(slot)
        part = x.detach()[0, start:stop].requires_grad_(True)
        y = own[slot](part) if slot in own else base(part)
        (y * weight[start:stop]).sum().backward()
        wanted.append(y.detach())
        gradients.append(part.grad)
    updates = {slot: (layer.lora_A.grad.clone(), layer.lora_B.grad.clone()) for slot, layer in own.items()}
    for slot, layer in own.items():
        layer.zero_grad()
        torch.manual_seed(slot)
        streams[slot].capture()
    together = PackedLora(base, own, PackedSpans(spans, lambda slot: streams[slot].drawing()))
    y = together(x)
    (y[0] * weight).sum().backward()
    assert torch.allclose(y[0], torch.cat(wanted), atol=1e-5) and torch.allclose(x.grad[0], torch.cat(gradients), atol=1e-5)
    for slot, layer in own.items():
        assert torch.allclose(layer.lora_A.grad, updates[slot][0], atol=1e-5)
        assert torch.allclose(layer.lora_B.grad, updates[slot][1], atol=1e-5)
    assert not [name for name, _ in together.named_parameters() if "lora" in name]


def test_a_stream_draws_what_it_would_draw_alone():
    torch.manual_seed(5)
    wanted = torch.rand(6)
    torch.manual_seed(5)
    stream = RandomStream(torch.device("cpu"))
    found = []
    for _ in range(3):
        torch.rand(11)
        with stream.drawing():
            found.append(torch.rand(2))
    assert torch.equal(torch.cat(found), wanted)


def test_packed_batches_see_themselves_only(base, log, tiny):
    """Three batches of different lengths, one of them with branches, against the base on each alone."""
    assembly = assemble(recipe(tiny, LIKE), log, base, bare=True)
    builder = assembly.builder
    rows, _ = builder.training_rows(assembly.train_mask, None, max_events=16, min_events=2, shift=0.0)
    branched = builder.layout.build(builder.prefix(3), rows[0].item_codes, rows[0].feedback_codes, candidates=rows[1].item_codes)
    batches = [collate(some, {}) for some in (rows[:3], [branched], rows[5:6])]
    embeds = [assembly.model.base.embedding(batch.tokens) for batch in batches]
    wanted = [base.hidden(each, batch.positions, batch.mask) for each, batch in zip(embeds, batches, strict=True)]
    with packing(base):
        got = packed_hidden(base, embeds, batches)
    assert batches[1].mask is not None and all(
        torch.allclose(one, other, atol=1e-5) for one, other in zip(got, wanted, strict=True)
    )


def test_a_sliding_window_is_kept(tmp_path, log):
    from transformers import AutoModelForCausalLM, MistralConfig

    from genre.modules.base.quiet import quiet

    folder = make_base(tmp_path / "mistral")
    config = MistralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=260,
        sliding_window=3,
    )
    with quiet():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    base = Base.load(str(folder))
    check_packing(base)  # rows of seven tokens
    assembly = assemble(recipe(folder, LIKE), log, base, bare=True)
    rows, _ = assembly.builder.training_rows(assembly.train_mask, None, max_events=16, min_events=2, shift=0.0)
    alone = collate(rows[:3], {})
    embeds = base.embedding(alone.tokens)
    with packing(base):
        (got,) = packed_hidden(base, [embeds], [alone])  # a batch by itself goes another way
    assert torch.allclose(got, base.hidden(embeds), atol=1e-5)


def test_a_base_whose_tokens_meet_outside_attention_is_refused(base):
    def blur(module, given, out):
        return (out + out.roll(1, dims=1)) if torch.is_tensor(out) else (out[0] + out[0].roll(1, dims=1), *out[1:])

    before = base.model.config._attn_implementation
    handle = base.body.layers[0].register_forward_hook(blur)
    try:
        with pytest.raises(
            BaseModelError, match="cannot train several adapters at once: got tokens see each other outside its attention"
        ):
            check_packing(base)
    finally:
        handle.remove()
    assert base.model.config._attn_implementation == before
    check_packing(base)


def test_passes_take_what_fits():
    def step(rows, length):
        return PendingStep(None, [range(length)] * rows, 0.0)

    steps = [step(2, 50), step(1, 30), step(3, 10), step(9, 100), step(1, 1)]
    sizes = [[each.size for each in some] for some in plan_passes(steps, 150)]
    assert sizes == [[100, 30], [30], [900], [1]]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"base": {"depth": 1}}, "differs from 'a' in base.depth: got 1; expected all layers"),
        ({"base": {"quantization": "int8"}}, "differs from 'a' in base.quantization: got int8; expected none"),
        ({"base": {"precision": "bfloat16"}}, "differs from 'a' in base.precision: got bfloat16; expected auto"),
        ({"base": {"name": "other"}}, "differs from 'a' in base.name: got other"),
        (
            {"adapter": {"kind": "full"}},
            "recipe 'b' cannot train beside others: adapter.kind: got full; expected lora or rslora or",
        ),
        ({"train": {"accumulate": 2}}, "recipe 'b' cannot train beside others: train.accumulate: got 2; expected 1"),
        ({"train": {"checkpoint_activations": True}}, "cannot train beside others: train.checkpoint_activations: got True"),
        ({"name": "a"}, "two recipes have the same name: got a, a"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_recipes_that_cannot_share_a_base_are_refused(tiny, sections, message):
    with pytest.raises(RecipeError) as error:
        check_together([recipe(tiny, LIKE, name="a"), on(tiny, LIKE, **{"name": "b", "base": {}, **sections})])
    assert message in str(error.value)
