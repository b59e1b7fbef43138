"""Calls that libraries do not promise still do what `genre.unpromised` needs of them."""

import asyncio
import contextlib
import socket

import pytest
import torch
import uvicorn

from genre.modules.base.base import Base
from genre.unpromised import checkpointed, close_listeners, execution_device, flower_task, onednn_linear, start_secure_round


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


def test_connections_that_wait_when_uvicorn_closes_its_sockets_are_answered():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    class Ours(uvicorn.Server):
        async def shutdown(self, sockets=None):
            with socket.create_connection(listener.getsockname()) as client:  # nobody accepts: the loop is busy here
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                await close_listeners(self, [listener])
                self.answer = await asyncio.to_thread(client.recv, 100)
            await super().shutdown(sockets)

        @contextlib.contextmanager
        def capture_signals(self):
            yield

    listener = socket.create_server(("127.0.0.1", 0))
    server = Ours(uvicorn.Config(app, http="h11", lifespan="off", log_config=None))
    server.should_exit = True
    asyncio.run(server.serve(sockets=[listener]))
    assert server.answer.startswith(b"HTTP/1.1 204")


def test_flower_makes_messages_inside_a_block_and_reads_the_round_of_a_secure_context():
    pytest.importorskip("flwr", reason="the extra federated")
    from flwr.app import Context, Message, RecordDict
    from flwr.server import LegacyContext
    from flwr.server.workflow import SecAggPlusWorkflow

    with pytest.raises(RuntimeError):
        Message(content=RecordDict(), dst_node_id=2, message_type="query.any")
    with flower_task(1, 7):
        message = Message(content=RecordDict(), dst_node_id=2, message_type="query.any")
    assert (message.metadata.src_node_id, message.metadata.run_id) == (1, 7)
    with pytest.raises(RuntimeError):
        Message(content=RecordDict(), dst_node_id=2, message_type="query.any")

    class Asked:
        def configure_fit(self, number, parameters, manager):
            self.number = number
            return []

    class Nobody:
        def num_available(self):
            return 0

    strategy = Asked()
    context = LegacyContext(Context(7, 1, {}, RecordDict(), {}), strategy=strategy, client_manager=Nobody())
    start_secure_round(context, 5)
    SecAggPlusWorkflow(1.0, 2)(None, context)
    assert strategy.number == 5


def test_onednn_multiplies_in_float32_what_torch_leaves_to_mkl():
    x, weight, bias = torch.randn(9, 40), torch.randn(30, 40), torch.randn(30)
    for added in (None, bias):
        assert torch.allclose(onednn_linear(x, weight, added), torch.nn.functional.linear(x, weight, added), atol=1e-5)
