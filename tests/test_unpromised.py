"""Calls that libraries do not promise still do what `genre.unpromised` needs of them."""

import torch

from genre.modules.base.base import Base
from genre.unpromised import checkpointed, execution_device


def test_layers_run_through_the_given_function_and_their_parts_stay_in_evaluation(base):
    layers, calls, modes = list(base.body.layers), [], set()

    def checkpoint(function, *inputs):
        calls.append(len(inputs))
        modes.update(module.training for layer in layers for module in layer.modules() if module not in layers)
        return function(*inputs)

    embeds = torch.randn(1, 3, base.hidden_size)
    wanted = base.hidden(embeds)
    with checkpointed(layers, checkpoint):
        assert all(layer.training and layer.gradient_checkpointing for layer in layers)
        got = base.hidden(embeds.requires_grad_())
    assert torch.equal(got, wanted) and calls == [1] * len(layers) and modes == {False}
    base.hidden(embeds)
    assert len(calls) == len(layers) and not any(layer.training or layer.gradient_checkpointing for layer in layers)


def test_accelerate_keeps_the_device_of_offloaded_modules_in_their_hook(base, tiny, tmp_path):
    places = {
        "model.embed_tokens": "cpu",
        "model.layers": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    offloaded = Base.load(str(tiny), device_map=places, offload_folder=tmp_path / "offload")
    linear = offloaded.body.layers[0].self_attn.q_proj
    assert linear.weight.is_meta and torch.device(execution_device(linear)) == torch.device("cpu")
    assert execution_device(base.body.layers[0].self_attn.q_proj) is None
