"""Every call into a library that the library does not promise, in one place; tests/test_unpromised.py fails when one changes.

Owns: these calls, and why no promised one does it. Ignores: who makes them.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any


@contextmanager
def checkpointed(layers: Iterable[Any], checkpoint: Callable[..., Any]) -> Iterator[None]:
    """A block in which some of transformers' `GradientCheckpointingLayer`s run through `checkpoint(function, *inputs)`.

    transformers' own switch (`gradient_checkpointing_enable`, from 5.24 on `activation_checkpointing_enable`) makes the token
    embeddings require gradients as well, for good, and layers that take part must be in training mode, where dropout is on. Here
    a layer alone is in training mode, and not while its function runs; its parts stay in evaluation.
    """

    def still(layer: Any, function: Callable[..., Any], *given: Any) -> Any:
        before, layer.training = layer.training, False  # some layers (OPT) drop out by their own mode
        try:
            return function(*given)
        finally:
            layer.training = before

    def around(layer: Any, function: Callable[..., Any], *given: Any) -> Any:
        return checkpoint(partial(still, layer, function), *given)

    chosen = list(layers)
    for layer in chosen:
        layer._gradient_checkpointing_func = partial(around, layer)
        layer.gradient_checkpointing = True
        layer.training = True
    try:
        yield
    finally:
        for layer in chosen:
            layer.gradient_checkpointing = False
            layer.training = False


def execution_device(module: Any) -> Any:
    """The device on which accelerate lets a module compute; None if it moves nothing of the module.

    `accelerate.utils.align_module_device` says it too, but reads the weight from the disk for it.
    """
    hook: Any = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if getattr(each, "execution_device", None) is not None:
            return each.execution_device
    return None


def onednn_linear(x: Any, weight: Any, bias: Any) -> Any:
    """(n, in) by (out, in) as `torch.nn.functional.linear` without gradients, by oneDNN in float32 too, for which torch asks MKL.

    torch's promised way to oneDNN, `torch.utils.mkldnn`, copies every input and output into another layout.
    """
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


async def close_listeners(server: Any, listeners: Iterable[socket.socket]) -> None:
    """Close the listening sockets of a uvicorn server, after taking the connections that wait in the kernel's queue.

    uvicorn closes a socket with its queue, which resets requests that are on their way, and has no call that takes those first.
    """
    queued = []
    for listener in listeners:
        with suppress(BlockingIOError):
            while True:
                queued.append(listener.accept()[0])
    for each in server.servers:
        each.close()
    states = {"server_state": server.server_state, "app_state": server.lifespan.state}
    protocol = partial(server.config.http_protocol_class, config=server.config, **states)
    for connection in queued:
        connection.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)


@contextmanager
def flower_task(node: int, run: int) -> Iterator[None]:
    """A block in which this thread's process may make Flower's messages, as if it were a task of a run.

    Flower sets this identity when it starts a ServerApp; a message made outside of one is refused. There is no call for a grid
    that is not Flower's own.
    """
    from flwr.supercore.task_identity import TaskIdentity

    before = {name: getattr(TaskIdentity, name) for name in ("_task_id", "_run_id", "_node_id")}
    TaskIdentity.task_id = run
    TaskIdentity.run_id = run
    TaskIdentity.node_id = node
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def start_secure_round(context: Any, number: int) -> None:
    """Write into Flower's `LegacyContext` what `SecAggPlusWorkflow` reads there (mutates it).

    `DefaultWorkflow` does it for whole runs, with an evaluation that is not ours and a thread that takes seconds to end.
    """
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key

    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: number})
    context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord()


def observing(see: Callable[[Any], None]) -> Any:
    """A block in which `see` gets what every PyTorch operator returns, the backward pass of the same thread included.

    Hooks for saved tensors are promised, but do not see what lives between two operators.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Observing(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
            found = function(*given, **(named or {}))
            see(found)
            return found

    return Observing()
