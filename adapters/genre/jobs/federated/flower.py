"""The Flower app: a ServerApp and a ClientApp around the server and the clients of federated training.

Owns: packets as Flower's messages, the transport over a grid, the settings of a run and of a node. Ignores: rounds and training.
This module and `secure` are the ones that import `flwr` (extra `federated`), when they are called.

    # app.py of a Flower app
    from genre.jobs.federated.flower import make_client_app, make_server_app
    server, client = make_server_app(__file__), make_client_app()

A packet is a ConfigRecord with one JSON text and an ArrayRecord; Flower writes arrays with NumPy's own format, pickles refused.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genre.errors import GenreError, InputError
from genre.jobs.federated.client import Client
from genre.jobs.federated.options import FederatedOptions
from genre.jobs.federated.packets import Answers, Failure, Packet
from genre.jobs.federated.publish import write_run
from genre.jobs.federated.secure import RUN, SERVER, LocalGrid, add_up, secured
from genre.jobs.federated.server import federate
from genre.jobs.folders import claim_folder, describe_run
from genre.jobs.loading import open_log
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.unpromised import flower_task

if TYPE_CHECKING:
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

KINDS = {
    "describe": "query.describe",
    "start": "query.start",
    "files": "query.files",
    "train": "train.round",
    "evaluate": "evaluate.part",
}
"""Flower's type of message for each kind of question."""
FACTS, ARRAYS, FAULT = "facts", "arrays", "fault"
"""The names of a packet's records, and the key of an error that a client tells in its answer."""

RUN_CONFIG: dict[str, Any] = {
    "recipe": "",
    "registry": "registry",
    "folder": "",
    "alias": "candidate",
    "set": "",
    "rounds": 10,
    "epochs": 1,
    "clients": 2,
    "min-clients": 2,
    "wait-s": 300.0,
    "timeout-s": 3600.0,
    "freeze-a": False,
    "secure": False,
    "noise": 0.0,
    "clip": 1.0,
    "delta": 0.0,
    "bound": 2.0,
    "data": "",
}
"""The keys of a run's configuration, `[tool.flwr.app.config]`, and their defaults."""


def to_records(packet: Packet) -> "RecordDict":
    """A packet as Flower's records."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    arrays = ArrayRecord({name: Array(np.asarray(value)) for name, value in packet.arrays.items()})
    return RecordDict({FACTS: ConfigRecord({"json": json.dumps(packet.facts)}), ARRAYS: arrays})


def from_records(records: "RecordDict") -> Packet:
    """The packet in Flower's records."""
    arrays = {name: value.numpy() for name, value in records.array_records[ARRAYS].items()}
    return Packet(json.loads(str(records.config_records[FACTS]["json"])), arrays)


class GridTransport:
    """The clients that a Flower grid reaches.

    Args:
        grid: Flower's.
        context: The ServerApp's.
        timeout_s: Most seconds to wait for the answers to a question.
    """

    def __init__(self, grid: "Grid", context: "Context", *, timeout_s: float = 3600.0) -> None:
        self.grid = grid
        self.context = context
        self.timeout_s = timeout_s

    def nodes(self) -> list[int]:
        """The connected nodes."""
        return sorted(self.grid.get_node_ids())

    def ask(self, kind: str, questions: Mapping[int, Packet]) -> Answers:
        """Ask some nodes at once, and wait for their answers."""
        from flwr.app import Message

        messages = [
            Message(content=to_records(each), dst_node_id=node, message_type=KINDS[kind]) for node, each in questions.items()
        ]
        found: Answers = {node: Failure(f"no answer within {self.timeout_s:g} s") for node in questions}
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout_s):
            found[reply.metadata.src_node_id] = _answer(reply)
        return found

    def add_up(self, questions: Mapping[int, Packet], weights: Mapping[int, float]) -> tuple[Any, Answers]:
        """Let clients train, and learn only the weighted mean of their updates, by SecAgg+."""
        return add_up(self.grid, self.context, questions, weights, timeout_s=self.timeout_s)


def _itself(client: Client, context: "Context") -> Client:
    return client


def _answer(reply: "Message") -> Packet | Failure:
    if reply.has_error():
        return Failure(f"{reply.error.reason or 'no reason given'} (Flower's code {reply.error.code})")
    packet = from_records(reply.content)
    return Failure(str(packet.facts[FAULT])) if FAULT in packet.facts else packet


def app_of(client_of: Callable[["Context"], Client]) -> "ClientApp":
    """Make a ClientApp that answers as a client does; a secure round passes Flower's own modifier.

    Args:
        client_of: The client of a context; called for every message, each of which may find a new process.
    """
    from flwr.client.mod import secaggplus_mod
    from flwr.clientapp import ClientApp

    app = ClientApp()
    for kind, own in KINDS.items():
        category, _, action = own.partition(".")
        getattr(app, category)(action)(partial(_tell, kind, client_of))
    app.train(mods=[secaggplus_mod])(secured(client_of))
    return app


def _tell(kind: str, client_of: Callable[["Context"], Client], message: "Message", context: "Context") -> "Message":
    """A client's answer to a message."""
    from flwr.app import Message

    try:
        answer = client_of(context)(kind, from_records(message.content))
    except GenreError as error:
        answer = Packet({FAULT: str(error)})
    return Message(to_records(answer), reply_to=message)


def _reporter() -> Reporter:
    """A reporter that writes to Flower's log."""
    from logging import INFO

    from flwr.common import log

    return Reporter(lambda text: log(INFO, text))


def make_client_app(settings: Mapping[str, Any] | None = None) -> "ClientApp":
    """Make the ClientApp of a Flower app.

    A node's configuration (`flower-supernode --node-config`) names its data set folder `data`, and may name `name`, `folder`,
    `rank` and `base`. In Flower's simulation the run's `data` has the folders of all nodes, with commas.

    Args:
        settings: Take precedence over the run's configuration.
    """
    kept: dict[str, Client] = {}

    def client_of(context: "Context") -> Client:
        run, node = {**context.run_config, **(settings or {})}, context.node_config
        data = str(node.get("data") or folder_of(str(run.get("data") or ""), node))
        if data not in kept:
            name = str(node.get("name") or Path(data).resolve().name)
            folder = Path(str(node.get("folder") or Path("runs") / "federated" / name))
            rank, base = node.get("rank"), node.get("base")
            kept[data] = Client(
                open_log(data),
                name,
                folder,
                rank=None if rank is None else int(rank),
                base=None if base is None else str(base),
                reporter=_reporter(),
            )
        return kept[data]

    return app_of(client_of)


def folder_of(folders: str, node: Mapping[str, Any]) -> str:
    """The folder of a node of a simulation."""
    each = [folder for folder in folders.split(",") if folder]
    index = node.get("partition-id")
    if index is None or not each:
        got = "neither data in the node's configuration nor in the run's"
        raise InputError("this node has no data", got=got, todo="""start it with --node-config 'data="DIR" name="NAME"'""")
    if int(index) >= len(each):
        raise InputError("data names fewer folders than there are nodes", got=len(each), expected=node.get("num-partitions"))
    return each[int(index)]


def run_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run, with defaults.

    Raises:
        InputError: A key is unknown, a value is of another type, or no recipe is named.
    """
    if stray := sorted(given.keys() - RUN_CONFIG.keys()):
        raise InputError("no such key in the run's configuration", got=", ".join(stray), expected=", ".join(RUN_CONFIG))
    for key, value in given.items():
        default = RUN_CONFIG[key]
        fits = isinstance(value, type(default)) or (isinstance(default, float) and type(value) is int)
        if not fits or (type(default) is int and isinstance(value, bool)):
            expected = f"{type(default).__name__}, such as {json.dumps(default)}"
            raise InputError(f"{key} in the run's configuration", got=repr(value), expected=expected)
    if not given.get("recipe"):
        raise InputError("the run names no recipe", got="", todo="""flwr run . --run-config 'recipe="like.yaml"'""")
    return RUN_CONFIG | dict(given)


def make_server_app(beside: str | Path = ".", settings: Mapping[str, Any] | None = None) -> "ServerApp":
    """Make the ServerApp of a Flower app.

    Args:
        beside: A file of the Flower app; a relative `recipe` is looked up in its folder.
        settings: Take precedence over the run's configuration, whose keys are those of `RUN_CONFIG`.
    """
    from flwr.serverapp import ServerApp

    app = ServerApp()

    def main(grid: "Grid", context: "Context") -> None:
        given = run_config({**context.run_config, **(settings or {})})
        place = Path(beside)
        recipe = Recipe.read((place.parent if place.is_file() else place) / str(given["recipe"]), str(given["set"]).split())
        options = FederatedOptions(
            rounds=given["rounds"],
            epochs=given["epochs"],
            freeze_a=given["freeze-a"],
            secure=given["secure"],
            noise=float(given["noise"]),
            clip=float(given["clip"]),
            delta=float(given["delta"]) or None,
            min_clients=given["min-clients"],
            clients=given["clients"],
            wait_s=float(given["wait-s"]),
            bound=float(given["bound"]),
        )
        registry = Registry(str(given["registry"]))
        registry.check_writable(recipe.name)
        root = Path(str(given["folder"])) if given["folder"] else claim_folder(recipe.name)
        describe_run(root, recipe)
        transport = GridTransport(grid, context, timeout_s=float(given["timeout-s"]))
        reporter = _reporter()
        trained = federate(transport, recipe, options, registry=registry, folder=root, reporter=reporter)
        run = write_run(trained, recipe, options, root, registry)
        published = registry.publish(run, alias=str(given["alias"]))
        reporter.line(f"published {published.ref} as {given['alias']} and latest; run folder {root}")

    app.main()(main)
    return app


@contextmanager
def local_transport(clients: Sequence[Client]) -> Iterator[GridTransport]:
    """A block with a transport to clients in this process that goes through Flower's messages, and so has SecAgg+."""
    grid = LocalGrid([app_of(partial(_itself, client)) for client in clients])
    with flower_task(SERVER, RUN):
        yield GridTransport(grid, grid.context)
