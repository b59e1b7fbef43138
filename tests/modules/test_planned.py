"""A base on `meta` against the base itself: its weights' bytes, and what its passes take."""

import pytest
import torch

from architectures import CAUSAL, config_of, write_model
from genre.errors import BaseModelError
from genre.modules.base.base import Base
from genre.modules.base.planned import PlannedBase
from genre.modules.live_tensors import LiveTensors


def held(model):
    """Bytes of a loaded model, with the scales of its quantized weights."""
    found = {id(each): each.nbytes for each in (*model.parameters(), *model.buffers())}
    for value in model.parameters():
        if (state := getattr(value, "quant_state", None)) is not None:
            found |= {id(each): each.nbytes for each in (state.absmax, state.code)}
        if (scales := getattr(value, "SCB", None)) is not None:
            found[id(scales)] = scales.nbytes
    return sum(found.values())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_lives_is_counted_once_and_until_it_ends(device):
    weight, x = (torch.empty(100, size, device=device, requires_grad=size == 100) for size in (100, 1000))
    with LiveTensors() as live:
        live.forget([weight, x])
        y = weight.t() @ x  # a view of what was there before takes nothing
        assert (live.now, live.peak) == (400_000, 400_000)
        z = y.relu().sum()
        z.backward()
        del y, z
        assert live.now == 40_000  # the gradient
        assert 800_000 < live.peak < 1_300_000
        before = live.peak
        for _ in range(3):
            torch.ones(100, 100, device=device).add(1)
        assert live.peak == before


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("name", ["Llama with biases, tied", "Gemma 3 (alternating)", "GPT-NeoX (Pythia)"])
def test_its_weights_take_what_the_loaded_ones_take(name, quantization, tmp_path):
    folder = write_model(tmp_path / "base", config_of(*CAUSAL[name]))
    base = Base.load(str(folder), quantization=quantization, depth=3)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    planned = PlannedBase.read(str(folder), quantization=quantization, depth=3)
    assert planned.weight_bytes == pytest.approx(held(base.model), rel=0.01)
    assert planned.depth == base.depth and planned.full_depth == base.full_depth


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", [name for name in CAUSAL if "liding" not in name])
def test_a_pass_takes_what_the_real_one_takes(name, checkpoint, tmp_path):
    """Within 10 %; the real one's kernels choose for themselves, and masks of windows are as large as states at this size."""
    folder = write_model(tmp_path / "base", config_of(*CAUSAL[name]))
    base, planned = Base.load(str(folder)), PlannedBase.read(str(folder))
    embeds = torch.randn(16, 16, 32, requires_grad=True)
    with LiveTensors() as live:
        live.forget([*base.model.parameters(), *base.model.buffers(), embeds])
        hidden = base.hidden(embeds, checkpoint=checkpoint)
        hidden.backward(torch.empty_like(hidden))
    assert planned.plan(16, 16, train=True, checkpoint=checkpoint).peak == pytest.approx(live.peak, rel=0.1)


def test_what_follows_from_values_is_refused():
    """As products of experts do with torch 2.13, whose sizes are the choice of a router."""
    base = PlannedBase.of("choosy", config_of("Qwen3Config", {"num_hidden_layers": 1, "hidden_size": 32}), depth=1)
    base.body.register_forward_pre_hook(lambda module, given, named: named["inputs_embeds"].sum().item(), with_kwargs=True)
    with pytest.raises(BaseModelError, match="the memory of a pass of base 'choosy' cannot be planned: got"):
        base.plan(1, 8, train=False)
