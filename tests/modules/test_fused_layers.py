"""Norms and gated products with gradients written out, against transformers' own."""

import pytest
import torch

from builders import LIKE, recipe
from genre.modules.base.base import Base
from genre.modules.base.fused_layers import Gated, GatedMlp, Normed, RmsNorm, fuse_layers
from genre.modules.base.quiet import quiet
from genre.training.assembly import assemble


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stock(kind="llama"):
    from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 260, "num_attention_heads": 4}
    made = LlamaConfig(**sizes, num_key_value_heads=2) if kind == "llama" else GemmaConfig(**sizes, head_dim=8)
    with quiet():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(made, attn_implementation="sdpa")
    for name, value in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(value, 0.5, 2.0)
    return model.eval().requires_grad_(False)


def test_gradcheck_in_double_precision():
    x, weight = draw(2, 3, 5).requires_grad_(), draw(5, seed=1)
    assert torch.autograd.gradcheck(lambda x: Normed.apply(x, weight, 1e-5), (x,))
    gate, up = draw(2, 3, 4).requires_grad_(), draw(2, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(Gated.apply, (gate, up))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_a_norm_rounds_as_transformers_does(dtype, trained):
    theirs = stock().to(dtype).base_model.norm.requires_grad_(trained)
    x, gradient = (draw(2, 7, 32, seed=seed).to(dtype) for seed in (0, 1))
    found = []
    for norm in (RmsNorm(theirs), theirs):
        given = x.clone().requires_grad_()
        norm(given).backward(gradient)
        found.append((norm(given).detach(), given.grad))
    step = torch.finfo(dtype).eps
    assert (found[0][0] - found[1][0]).abs().max() <= 4 * step and (found[0][1] - found[1][1]).abs().max() <= 8 * step
    assert found[0][0].dtype == found[0][1].dtype == dtype


def test_a_base_and_its_gradients_stay_what_they_are_under_the_same_names():
    model, other = stock(), stock()
    names = {name: value.data_ptr() for name, value in model.named_parameters()}
    fuse_layers(model)
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == names
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(RmsNorm), kinds.count(GatedMlp)) == (5, 2)
    found = []
    for each in (model, other):
        embeds = draw(2, 7, 32).float().requires_grad_()
        hidden = each.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        hidden.square().sum().backward()
        found.append((hidden.detach(), embeds.grad))
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-5)


def test_a_norm_that_trains_gets_its_gradient():
    model = stock()
    fuse_layers(model)
    model.requires_grad_(True)
    model.base_model(inputs_embeds=draw(1, 4, 32).float(), use_cache=False).last_hidden_state.sum().backward()
    assert all(value.grad is not None for name, value in model.named_parameters() if "norm" in name)


def test_parts_of_another_form_stay_as_they_are():
    model = stock("gemma")  # its norm multiplies by 1 + w, its gate is not a SiLU
    before = [type(module) for module in model.modules() if not isinstance(module, torch.nn.Linear)]
    fuse_layers(model)
    assert [type(module) for module in model.modules() if not isinstance(module, torch.nn.Linear)] == before


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_loaded_base_has_them_and_trains_as_without(tiny, log, kind, monkeypatch, tmp_path):
    import genre.modules.base.loading
    from genre.training import fit

    found = []
    for on in (True, False):
        if not on:
            monkeypatch.setattr(genre.modules.base.loading, "fuse_layers", lambda model: None)
        base = Base.load(str(tiny))
        assert any(isinstance(module, RmsNorm) for module in base.model.modules()) == on
        made = assemble(recipe(tiny, LIKE, adapter={"kind": kind}, train={"epochs": 1, "tracker": "none"}), log, base)
        fit(made, tmp_path / f"{on}")
        found.append({name: value.detach().clone() for name, value in made.model.trainable().items()})
        made.model.release()
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=2e-3), name
