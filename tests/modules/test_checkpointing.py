"""Activation checkpointing: the same loss and gradients, through the fused layer, dropout, quantized bases and heads."""

import pytest
import torch

from builders import LIKE, NEXT, recipe, rows_of, stir
from genre.data.sequences.batches import collate
from genre.data.sequences.windows import training_windows
from genre.errors import BaseModelError
from genre.modules.base.base import Base
from genre.training.assembly import assemble


def gradients(assembly, checkpoint):
    model = assembly.model.train()
    model.checkpoint_activations = checkpoint
    windows, _ = training_windows(assembly.log, assembly.train_mask, max_events=16, min_events=2)
    batch = collate(rows_of(assembly, windows[:6]), assembly.builder.data.supervise(list(assembly.recipe.tasks)))
    torch.manual_seed(3)
    loss, _ = model(batch)
    loss.backward()
    found = {name: value.grad.clone() for name, value in model.trainable().items()}
    model.zero_grad()
    return float(loss.detach()), found


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("adapter", [{}, {"dropout": 0.2}], ids=["fused", "with dropout"])
def test_gradients_are_equal(tiny, log, adapter, quantization):
    base = Base.load(str(tiny), quantization=quantization)
    wanted = recipe(tiny, LIKE, NEXT, adapter=adapter, train={"dropout": 0.3})
    assembly = assemble(wanted, log, base)
    stir(assembly)
    assert all(layer.fused == (quantization == "none" and not adapter) for layer in assembly.model.layers.values())
    plain, again = gradients(assembly, False), gradients(assembly, True)
    assembly.model.release()
    assert plain[0] == again[0]
    for name, value in plain[1].items():
        assert torch.allclose(value, again[1][name], rtol=1e-5, atol=1e-7), name
    assert any(value.abs().max() > 0 for name, value in plain[1].items() if name.endswith("lora_A"))


def test_layers_run_again(base, tiny, log):
    assembly = assemble(recipe(tiny, LIKE), log, base)
    layers, calls = base.body.layers, []
    handles = [layer.self_attn.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
    gradients(assembly, False)
    once = len(calls)
    gradients(assembly, True)
    assert once == len(layers) and len(calls) == 3 * once
    for handle in handles:
        handle.remove()
    assert not any(layer.training or layer.gradient_checkpointing for layer in layers)
    assembly.model.release()


def test_nothing_runs_again_in_evaluation(base, tiny, log):
    assembly = assemble(recipe(tiny, LIKE), log, base)
    model, calls = assembly.model.eval(), []
    model.checkpoint_activations = True
    handle = base.body.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    windows, _ = training_windows(log, assembly.train_mask, max_events=16, min_events=2)
    batch = collate(rows_of(assembly, windows[:2]), assembly.builder.data.supervise([assembly.recipe.tasks[0]]))
    model(batch)[0].backward()
    handle.remove()
    model.release()
    assert len(calls) == 1


def test_a_base_without_such_layers_is_refused(base, monkeypatch):
    monkeypatch.setattr(type(base), "body", torch.nn.Linear(2, 2))
    with pytest.raises(
        BaseModelError, match="the layers of base .* cannot be run again: got Linear; .*checkpoint_activations: false"
    ):
        base.hidden(torch.zeros(1, 2, 32), checkpoint=True)
