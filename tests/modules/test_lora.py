"""The low-rank layer: gradients against PEFT and against plain autograd, PEFT's files in and out."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import LIKE, recipe, stir
from genre.errors import BaseModelError, InputError, ManifestError
from genre.jobs.publish import write_adapter
from genre.modules.base.base import Base
from genre.modules.base.quiet import quiet
from genre.modules.lora.layer import LoraLinear, attach, detach, find_linears, from_peft, peft_config, to_peft
from genre.training.assembly import assemble

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(*, rank=3, scale=1.7, bias=False, dropout=0.0):
    torch.manual_seed(0)
    linear = torch.nn.Linear(12, 10, bias=bias).requires_grad_(False)
    made = LoraLinear(linear, rank=rank, scale=scale, dropout=dropout)
    with torch.no_grad():
        made.lora_B.copy_(draw(10, rank, seed=1))
    return made


def gradients(forward, x, a, b, gradient):
    x, a, b = (value.detach().clone().requires_grad_() for value in (x, a, b))
    y = forward(x, a, b)
    y.backward(gradient)
    return y.detach(), x.grad, a.grad, b.grad


@pytest.mark.parametrize("bias", [False, True])
def test_fused_output_and_gradients_equal_plain_autograd(bias):
    made, x, gradient = layer(bias=bias), draw(2, 9, 12, seed=2), draw(2, 9, 10, seed=3)
    assert made.fused and x.shape[:-1].numel() >= 4 * made.rank  # or the plain form would be compared with itself
    base = made.base

    def plain(x, a, b):
        return torch.nn.functional.linear(x, base.weight, base.bias) + 1.7 * (x @ a.t() @ b.t())

    wanted = gradients(plain, x, made.lora_A, made.lora_B, gradient)
    mine = x.clone().requires_grad_()
    y = made(mine)
    assert type(y.grad_fn).__name__ == "FusedLoraBackward"
    y.backward(gradient)
    for got, want in zip((y.detach(), mine.grad, made.lora_A.grad, made.lora_B.grad), wanted, strict=True):
        assert torch.allclose(got, want, atol=2e-5)
    assert base.weight.grad is None


def test_gradcheck_in_double_precision():
    from genre.modules.lora.products import FusedLora

    x, weight, a, b = draw(5, 6).double(), draw(4, 6, seed=1).double(), draw(2, 6, seed=2).double(), draw(4, 2, seed=3).double()
    for value in (x, a, b):
        value.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a, b: FusedLora.apply(x, weight, None, [(0, 5, 0, 0.5)], a, b), (x, a, b))


def test_gradcheck_of_the_update_added_to_a_product():
    from genre.modules.lora.products import AddUpdate

    y, x, a, b = draw(2, 5, 4).double(), draw(2, 5, 6, seed=1).double(), draw(3, 6, seed=2).double(), draw(4, 3, seed=3).double()
    for value in (y, x, a, b):
        value.requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: AddUpdate.apply(*given, 0.5), (y, x, a, b))
    wanted = y + 0.5 * x @ a.t() @ b.t()
    assert torch.allclose(AddUpdate.apply(y, x, a, b, 0.5), wanted)


@pytest.mark.parametrize("dropout", [0.0, 0.5], ids=["few tokens", "dropout"])
def test_the_plain_form_has_the_gradients_of_plain_autograd(dropout):
    made, x, gradient = layer(dropout=dropout), draw(9, 12, seed=2), draw(9, 10, seed=3)
    made.fused = False
    own = x.clone().requires_grad_()
    torch.manual_seed(5)
    made(own).backward(gradient)

    def plain(x, a, b):
        torch.manual_seed(5)
        return made.base(x) + 1.7 * (made.dropout(x) @ a.t() @ b.t())

    _, *wanted = gradients(plain, x, made.lora_A, made.lora_B, gradient)
    for got, want in zip((own.grad, made.lora_A.grad, made.lora_B.grad), wanted, strict=True):
        assert torch.allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_output_and_gradients_equal_pefts_layer(rslora):
    with quiet():
        from peft import LoraConfig
        from peft.tuners.lora import Linear

    made = layer(rank=4, scale=16 / math.sqrt(4) if rslora else 16 / 4)
    with quiet():
        config = LoraConfig(r=4, lora_alpha=16, use_rslora=rslora)
        theirs = Linear(made.base, "default", config=config, r=4, lora_alpha=16, use_rslora=rslora)
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(made.lora_A)
        theirs.lora_B["default"].weight.copy_(made.lora_B)
    x, gradient = draw(3, 8, 12, seed=4), draw(3, 8, 10, seed=5)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, wanted = made(mine), theirs(other)
    y.backward(gradient)
    wanted.backward(gradient)
    assert torch.allclose(y, wanted, atol=1e-5)
    assert torch.allclose(mine.grad, other.grad, atol=1e-5)
    assert torch.allclose(made.lora_A.grad, theirs.lora_A["default"].weight.grad, atol=1e-4)
    assert torch.allclose(made.lora_B.grad, theirs.lora_B["default"].weight.grad, atol=1e-4)


def test_few_tokens_take_the_plain_form_with_the_same_result():
    made, x = layer(rank=3), draw(13, 12)
    assert torch.allclose(made(x), torch.cat([made(row[None]) for row in x]), atol=1e-6)
    assert type(made(x).grad_fn).__name__ == "FusedLoraBackward"
    assert type(made(x[:1]).grad_fn).__name__ != "FusedLoraBackward"


def test_dropout_is_on_the_updates_input_only():
    made, x = layer(dropout=0.5), draw(40, 12)
    assert not made.fused
    made.train()
    torch.manual_seed(0)
    once, twice = made(x), made(x)
    assert not torch.equal(once, twice)
    made.eval()
    with torch.no_grad():
        assert torch.allclose(made(x), layer()(x), atol=1e-5)
        made.lora_B.zero_()
        made.train()
        assert torch.equal(made(x), made.base(x))


def test_a_new_layer_is_the_base(base):
    """B starts at 0: the fused product's weight is then the base's own."""
    ids = torch.randint(3, 250, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bare = base.hidden(base.embedding(ids))
        names = find_linears(base.model, "all-linear")
        layers = {name: LoraLinear(base.model.get_submodule(name), rank=4, scale=2.0) for name in names}
        attach(base.model, layers)
        adapted = base.hidden(base.embedding(ids))
        detach(base.model, layers)
        again = base.hidden(base.embedding(ids))
    assert len(names) == 14 and torch.equal(adapted, bare) and torch.equal(again, bare)
    assert all(type(base.model.get_submodule(name)) is torch.nn.Linear for name in names)


# --- which linears ---------------------------------------------------------------------------------------------------


def test_targets_and_layers_choose_linears(base):
    every = find_linears(base.model, "all-linear")
    assert {name.rsplit(".", 1)[-1] for name in every} == set(LINEARS) and "lm_head" not in every
    assert find_linears(base.model, ("q_proj", "v_proj"), (-1,)) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    assert find_linears(base.model, "all-linear", (0,)) == every[:7]


def test_a_target_or_layer_that_is_not_there_is_refused(base):
    with pytest.raises(BaseModelError) as error:
        find_linears(base.model, ("q_proj", "qkv"))
    expected = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    assert str(error.value) == f"adapter.targets names no linear of the base: got ['qkv']; expected {expected}"
    with pytest.raises(BaseModelError, match=r"layers that the base does not have: got \[2\]; expected 0 to 1"):
        find_linears(base.model, "all-linear", (0, 2))


# --- PEFT's files ----------------------------------------------------------------------------------------------------


def test_weights_come_back_bit_equal(tmp_path):
    layers = {"model.layers.0.self_attn.q_proj": layer(rank=3), "model.layers.1.mlp.up_proj": layer(rank=3)}
    config = peft_config(layers, base="tiny", rank=3, alpha=6.0, rslora=True)
    save_file(to_peft(layers), tmp_path / "adapter_model.safetensors")
    again = from_peft(json.loads(json.dumps(config)), load_file(tmp_path / "adapter_model.safetensors"))
    assert again.keys() == layers.keys()
    for name, (a, b, scale) in again.items():
        assert torch.equal(a, layers[name].lora_A) and torch.equal(b, layers[name].lora_B)
        assert scale == pytest.approx(6 / math.sqrt(3))


def test_rank_and_alpha_patterns_are_read_as_peft_reads_them():
    config = {
        "r": 2,
        "lora_alpha": 4,
        "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\..*": 5},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 12},
    }
    expected = {
        "model.layers.0.self_attn.q_proj": (3, 12 / 3),
        "model.layers.1.self_attn.q_proj": (3, 4 / 3),
        "model.layers.1.mlp.up_proj": (5, 4 / 5),
        "model.layers.0.mlp.up_proj": (2, 4 / 2),
    }
    weights = {}
    for name, (rank, _) in expected.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = draw(rank, 6)
        weights[f"base_model.model.{name}.lora_B.weight"] = draw(7, rank)
    found = from_peft(config, weights)
    assert {name: (a.shape[0], scale) for name, (a, _, scale) in found.items()} == expected


A, B = "base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({A: draw(2, 4)}, "adapter weights of x do not fit together: got {'lora_A': (2, 4)}"),
        ({A: draw(2, 4), B: draw(5, 3)}, "adapter weights of x do not fit together: got {'lora_A': (2, 4), 'lora_B': (5, 3)}"),
        ({A: draw(3, 4), B: draw(5, 3)}, "rank of x: got 3; expected 2"),
        ({"x.weight": draw(2, 4)}, "an adapter weight is not LoRA's: got x.weight; expected ….lora_A.weight or ….lora_B.weight"),
    ],
    ids=["half", "shapes", "rank", "name"],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ManifestError) as error:
        from_peft({"r": 2, "lora_alpha": 4}, weights)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "adapter",
    [{}, {"kind": "rslora", "rank": 4, "alpha": 8}, {"targets": ["q_proj", "down_proj"], "layers": [1]}],
    ids=["all", "rslora", "some"],
)
def test_a_saved_adapter_in_stock_peft_gives_the_same_hidden_states(base, log, tiny, tmp_path, adapter):
    with quiet():
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

    assembly = assemble(recipe(tiny, LIKE, adapter=adapter), log, base)
    stir(assembly)
    ids = torch.randint(3, 250, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = base.hidden(base.embedding(ids))
    write_adapter(tmp_path / "version", assembly)
    assembly.model.release()
    with quiet(), torch.no_grad():
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), tmp_path / "version").eval()
        wanted = theirs(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        bare = base.hidden(base.embedding(ids))
    assert (ours - wanted).abs().max() < 1e-4 and (ours - bare).abs().max() > 1e-2


# --- putting on and taking off -----------------------------------------------------------------------------------------


def test_one_base_carries_one_adapters_model_at_a_time(base, log, tiny):
    first = assemble(recipe(tiny, LIKE), log, base)
    with pytest.raises(InputError) as error:
        assemble(recipe(tiny, LIKE), log, base)
    assert str(error.value).startswith("the base already carries adapters: got one adapter's model; expected a bare base; close ")
    first.model.release()
    assemble(recipe(tiny, LIKE), log, base).model.release()
    assert base.occupied_by is None


def test_a_reduced_base_keeps_its_name_and_fingerprint(tiny):
    whole, half = Base.load(str(tiny)), Base.load(str(tiny), depth=1)
    assert (whole.depth, half.depth, half.full_depth) == (2, 1, 2) and whole.fingerprint == half.fingerprint
    assert len(find_linears(half.model, "all-linear")) == 7
    with pytest.raises(BaseModelError, match="depth is out of range: got 3; expected 1 to 2 for base"):
        Base.load(str(tiny), depth=3)
