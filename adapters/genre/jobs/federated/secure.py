"""Secure aggregation: rounds of Flower's SecAgg+, of which the server learns the weighted mean of updates alone.

Owns: an update as one vector on its way through SecAgg+, and a grid inside this process. Ignores: what an update means.

Masks that cancel in the sum are added to numbers of fixed point: an update, weighted by the client's share of the largest weight,
lies within ± `bound` in 2²² steps. A client whose update does not fit fails, rather than being cut to the bound.
"""

import copy
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from genre.errors import GenreError, InputError, JobError
from genre.jobs.federated.averaging import difference, flat
from genre.jobs.federated.client import Client
from genre.jobs.federated.noise import clipped
from genre.jobs.federated.options import LEVELS, MODULUS
from genre.jobs.federated.packets import Answers, Failure, Packet
from genre.unpromised import start_secure_round

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

SERVER, RUN = 1, 1
"""The server's number, and that of the run, in the grid inside this process."""


class _Node:
    """A node as Flower's strategies name one."""

    def __init__(self, node: int) -> None:
        self.node_id = node


class _Sum:
    """What Flower's workflow asks of a strategy, for one secure round: the questions in, the mean out."""

    def __init__(self, questions: Mapping[int, Packet], weights: Mapping[int, float]) -> None:
        self.questions = questions
        self.weights = weights
        self.mean: np.ndarray | None = None
        self.nodes: list[int] = []

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> list[tuple[Any, Any]]:
        """The question of every node."""
        from flwr.common import FitIns, ndarrays_to_parameters

        found = []
        for node, question in self.questions.items():
            names = sorted(question.arrays)
            facts = question.facts | {"names": names, "weight": int(self.weights[node]), "most": int(max(self.weights.values()))}
            sent = ndarrays_to_parameters([question.arrays[name] for name in names])
            found.append((_Node(node), FitIns(sent, {"json": json.dumps(facts)})))
        return found

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> tuple[None, dict[str, Any]]:
        """Keep the mean, which Flower gives every answer."""
        from flwr.common import parameters_to_ndarrays

        self.nodes = [node.node_id for node, _ in results]
        (self.mean,) = parameters_to_ndarrays(results[0][1].parameters)
        return None, {}


def add_up(
    grid: "Grid", context: "Context", questions: Mapping[int, Packet], weights: Mapping[int, float], *, timeout_s: float
) -> tuple[np.ndarray, Answers]:
    """One round of SecAgg+ over a grid; arguments and result as of `Transport.add_up`.

    Raises:
        JobError: More than a third of the clients failed, whose masks cannot be taken off then.
    """
    from flwr.server import LegacyContext, SimpleClientManager
    from flwr.server.workflow import SecAggPlusWorkflow

    count = len(questions)
    threshold = max(2, math.ceil(2 * count / 3))
    strategy = _Sum(questions, weights)
    workflow = SecAggPlusWorkflow(
        1.0,
        threshold,
        max_weight=float(max(weights.values())),
        clipping_range=float(next(iter(questions.values())).facts["bound"]),
        quantization_range=LEVELS,
        modulus_range=MODULUS,
        timeout=timeout_s,
    )
    legacy = LegacyContext(context, strategy=strategy, client_manager=SimpleClientManager())
    start_secure_round(legacy, int(next(iter(questions.values())).facts["round"]))
    workflow(grid, legacy)
    if strategy.mean is None:
        todo = "look at the clients' logs: an update above the bound fails there"
        raise JobError("secure aggregation ended early", got="too few answers", expected=f"{threshold} of {count}", todo=todo)
    lost = Failure("no masked update; its own log says why")
    answers: Answers = {node: Packet() if node in strategy.nodes else lost for node in questions}
    return strategy.mean.astype(np.float64), answers


def secured(client_of: Callable[["Context"], Client]) -> "ClientApp":
    """A ClientApp that trains for a secure round; to be called behind Flower's modifier."""
    from flwr.client import NumPyClient
    from flwr.clientapp import ClientApp

    class Trainer(NumPyClient):
        """One client for one message."""

        def __init__(self, client: Client) -> None:
            self.client = client

        def fit(self, parameters: list[np.ndarray], config: Mapping[str, Any]) -> tuple[list[np.ndarray], int, dict[str, Any]]:
            """The update of a round as one vector, and its weight."""
            facts = json.loads(str(config["json"]))
            state = dict(zip(facts["names"], parameters, strict=True))
            reply = self.client("train", Packet(facts, state))
            update = flat(difference(state, reply.arrays))
            if facts["clip"] is not None:
                update = clipped(update, float(facts["clip"]))
            weight, most, bound = int(facts["weight"]), int(facts["most"]), float(facts["bound"])
            largest = float(np.abs(update).max(initial=0.0)) * weight / most
            if largest > bound:
                todo = "train fewer epochs in a round, or raise the bound"
                raise InputError(
                    "an update does not fit into SecAgg+", got=f"{largest:g}", expected=f"at most {bound:g}", todo=todo
                )
            return [update], weight, {}

    return ClientApp(client_fn=lambda context: Trainer(client_of(context)).to_client())


class LocalGrid:
    """What is needed of a grid, to ClientApps in this process, which answer one after another.

    Args:
        apps: One per node.

    Attributes:
        context: The server's.
    """

    def __init__(self, apps: Sequence["ClientApp"]) -> None:
        self.apps = dict(enumerate(apps, SERVER + 1))
        self.context, *contexts = (_context(node) for node in (SERVER, *self.apps))
        self.contexts = dict(zip(self.apps, contexts, strict=True))

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self.apps)

    def send_and_receive(self, messages: Iterable["Message"], *, timeout: float | None = None) -> Iterable["Message"]:
        """Let each node answer in turn; what it is sent is a copy."""
        from flwr.app import Error, Message

        replies = []
        for message in messages:
            message.content = copy.deepcopy(message.content)
            node = message.metadata.dst_node_id
            try:
                replies.append(self.apps[node](message, self.contexts[node]))
            except GenreError as error:
                replies.append(Message(Error(code=0, reason=str(error)), reply_to=message))
        return replies


def _context(node: int) -> "Context":
    from flwr.app import Context, RecordDict

    return Context(run_id=RUN, node_id=node, node_config={}, state=RecordDict(), run_config={})
