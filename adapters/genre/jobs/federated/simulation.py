"""Federated training on one machine: each client a data set folder, one base for all of them.

Owns: the clients of a simulation and the order of the job. Ignores: the rounds (`federated.server`), command lines.

    run = simulate(Recipe.read("like.yaml"), {"north": Path("data/north"), "south": Path("data/south")}, registry=registry)
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path

from genre.data.interactions import Interactions
from genre.errors import InputError
from genre.jobs.federated.client import Client
from genre.jobs.federated.options import FederatedOptions, check_federated
from genre.jobs.federated.packets import LocalTransport, Transport
from genre.jobs.federated.publish import FederatedRun, write_run
from genre.jobs.federated.server import federate
from genre.jobs.folders import claim_folder, describe_run, removed_if_refused
from genre.jobs.loading import open_base, open_log
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry


def simulate(
    recipe: Recipe,
    data: Mapping[str, str | Path | Interactions],
    options: FederatedOptions | None = None,
    *,
    registry: Registry,
    base: Base | None = None,
    ranks: Mapping[str, int] | None = None,
    folder: Path | None = None,
    reporter: Reporter | None = None,
) -> FederatedRun:
    """Train a recipe on clients' data sets without putting these together.

    Args:
        recipe: The recipe; its data path is not read.
        data: For each client its data set folder, or its log.
        options: By default 10 rounds of one epoch, in which every client takes part.
        registry: Has the frozen encoder that the recipe names, and gets one that is fitted.
        base: Takes precedence over the recipe's base.
        ranks: Of clients whose low-rank layers have a lower rank than the recipe's.
        folder: The run folder; by default `runs/NAME/N`.
        reporter: Receives progress.

    Raises:
        GenreError: As `federate`.
    """
    options = options or FederatedOptions(clients=len(data), min_clients=len(data))
    reporter = reporter or Reporter.here()
    check_federated(recipe)
    if stray := sorted((ranks or {}).keys() - data.keys()):
        raise InputError("a rank is given for no client", got=", ".join(stray), expected=", ".join(data))
    logs = {name: one if isinstance(one, Interactions) else open_log(str(one)) for name, one in data.items()}
    loaded = base or open_base(recipe.base)
    made = [] if folder is not None and folder.exists() else [folder or claim_folder(recipe.name)]
    root = folder or made[0]
    with removed_if_refused(made):
        describe_run(root, recipe)
        clients = [
            Client(log, name, root / "clients" / name, rank=(ranks or {}).get(name), load=lambda _: loaded)
            for name, log in logs.items()
        ]
        with _transport(clients, options) as transport:
            trained = federate(transport, recipe, options, registry=registry, folder=root, reporter=reporter)
        return write_run(trained, recipe, options, root, registry)


def _transport(clients: Sequence[Client], options: FederatedOptions) -> AbstractContextManager[Transport]:
    """A block with the way to some clients in this process, through Flower where that adds updates up."""
    if not options.secure:
        return nullcontext(LocalTransport(clients))
    if find_spec("flwr") is None:
        what, todo = "secure aggregation needs Flower", "pip install 'genre-adapters[federated]'"
        raise InputError(what, got="no flwr", expected="the extra federated", todo=todo)
    from genre.jobs.federated.flower import local_transport

    return local_transport(clients)
