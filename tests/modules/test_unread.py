"""The last layer's MLP on the tokens that are read: the same states there, the same gradients, less work."""

import dataclasses

import pytest
import torch

from builders import LIKE, NEXT, recipe, rows_of, stir
from genre.data.sequences.batches import collate
from genre.data.sequences.windows import training_windows
from genre.modules.base.base import Base
from genre.modules.base.fused_layers import GatedMlp
from genre.modules.base.unread import skip_unread
from genre.training.assembly import assemble


@pytest.fixture
def shapes(base, monkeypatch):
    """Rows and tokens that the last layer's MLP is given."""
    found, mlp, forward = [], base.body.layers[-1].mlp, GatedMlp.forward

    def recorded(module, x):
        if module is mlp:
            found.append(tuple(x.shape[:2]))
        return forward(module, x)

    monkeypatch.setattr(GatedMlp, "forward", recorded)
    return found


def embeds_of(base, rows=3, tokens=9):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, tokens, base.hidden_size, generator=draw) * base.embedding_rms


def batch_of(assembly, *tasks):
    windows, _ = training_windows(assembly.data, assembly.train_mask, max_events=16, min_events=2)
    labels = assembly.data.supervise(list(assembly.recipe.tasks))
    return collate(rows_of(assembly, windows[:6]), {name: labels[name] for name in tasks})


@pytest.mark.parametrize(
    "read", [torch.tensor([0, 8, 13, 26]), torch.tensor([[2, 8], [9, 9], [20, 26]])], ids=["some tokens", "of each row"]
)
def test_states_that_are_read_are_the_same(base, shapes, read):
    embeds = embeds_of(base)
    with torch.no_grad():
        whole, some = base.hidden(embeds), base.hidden(embeds, read=read)
    assert shapes == [(3, 9), tuple(read.shape) if read.ndim == 2 else (1, 4)]
    at = read.reshape(-1)
    assert torch.allclose(whole.flatten(0, 1)[at], some.flatten(0, 1)[at], atol=1e-5)
    other = torch.tensor([token for token in range(27) if token not in at.tolist()])
    assert not torch.allclose(whole.flatten(0, 1)[other], some.flatten(0, 1)[other], atol=1e-2)  # it was not computed


def test_the_base_is_as_before_after_a_failure(base):
    mlp = base.body.layers[-1].mlp
    with pytest.raises(IndexError), torch.no_grad():
        base.hidden(embeds_of(base), read=torch.tensor([27]))
    assert not mlp._forward_pre_hooks and not mlp._forward_hooks


def test_gradients_are_the_same(tiny, log, base, shapes):
    assembly = assemble(recipe(tiny, LIKE, NEXT, adapter={"dropout": 0.0}), log, base)
    stir(assembly)
    model, batch = assembly.model.train(), batch_of(assembly, "like")
    assert batch.read_tokens is not None and len(batch.read_tokens) < 0.8 * batch.tokens.numel()
    found = []
    shapes.clear()
    for each in (batch, dataclasses.replace(batch, read_tokens=None)):
        torch.manual_seed(0)
        loss, _ = model(each)
        loss.backward()
        found.append((float(loss.detach()), {name: value.grad for name, value in model.trainable().items()}))
        model.zero_grad()
    assembly.model.release()
    assert shapes == [(1, len(batch.read_tokens)), tuple(batch.tokens.shape)]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, value in found[0][1].items():
        other = found[1][1][name]
        assert (value is None) == (other is None)
        assert value is None or torch.allclose(value, other, rtol=1e-3, atol=1e-6), name


def test_a_batch_names_what_any_of_its_tasks_reads(tiny, log, base):
    assembly = assemble(recipe(tiny, LIKE, NEXT), log, base)
    batch = batch_of(assembly, "like", "next_item")
    assembly.model.release()
    width = batch.tokens.shape[1]
    read = {token for each in batch.reads.values() for token in (each.rows * width + each.token_index).tolist()}
    named = range(batch.tokens.numel()) if batch.read_tokens is None else batch.read_tokens.tolist()
    assert read <= set(named) and (batch.read_tokens is None) == (len(read) > 0.8 * batch.tokens.numel())


def test_an_int8_base_computes_all_tokens(tiny):
    base = Base.load(str(tiny), quantization="int8")
    embeds, read = embeds_of(base), torch.tensor([0])
    with torch.no_grad():
        assert torch.equal(base.hidden(embeds), base.hidden(embeds, read=read))


def test_a_module_of_its_own():
    double = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.eye_(double.weight)
    x = torch.arange(12.0).view(2, 3, 2)
    with skip_unread(double, torch.tensor([1, 5])):
        found = double(x)
    assert found.flatten(0, 1).tolist() == [[0, 0], [2, 3], [0, 0], [0, 0], [0, 0], [10, 11]]
    assert torch.equal(double(x), x)
