"""`genre federated`: train one recipe on several clients' data sets without putting these together.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre federated like.yaml --client data/north --client data/south --rounds 10
"""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from genre.cli.options import AliasOption, JsonOption, RegistryOption, SetOption, parse_number
from genre.cli.output import check_file, show_metrics, write_result
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError


def federated(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file; its data path is not read.")],
    clients: Annotated[
        list[str],
        typer.Option("--client", metavar="DIR", help="A client's data set folder; its name is the client's. Repeatable."),
    ],
    rounds: Annotated[int, typer.Option(help="Rounds of local training and averaging.")] = 10,
    epochs: Annotated[int, typer.Option(help="Epochs of local training in a round.")] = 1,
    ranks: Annotated[
        list[str] | None, typer.Option("--rank", metavar="NAME=K", help="A client's own, lower rank. Repeatable.")
    ] = None,
    min_clients: Annotated[
        int | None, typer.Option(help="A round with fewer answers ends the run; by default two thirds of the clients.")
    ] = None,
    freeze_a: Annotated[bool, typer.Option("--freeze-a", help="Train B alone, of one random A that all clients share.")] = False,
    secure: Annotated[bool, typer.Option("--secure", help="SecAgg+: the server learns sums alone; needs --freeze-a.")] = False,
    noise: Annotated[float, typer.Option(help="Client-level noise, in units of --clip; needs --freeze-a.")] = 0.0,
    clip: Annotated[float, typer.Option(help="With --noise: the greatest length of a client's update.")] = 1.0,
    delta: Annotated[float | None, typer.Option(help="With --noise: of the epsilon; by default 1 / (10 clients).")] = None,
    overrides: SetOption = None,
    registry: RegistryOption = "registry",
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/NAME/N.")] = None,
    alias: AliasOption = "candidate",
    json_file: JsonOption = None,
) -> None:
    """Train a recipe on several clients' data sets: only low-rank factors and heads go between them (a simulation)."""
    named = _named(clients)
    given = dict(parse_number("--rank", text, "NAME=K, such as north=4") for text in ranks or [])
    if odd := {name: value for name, value in given.items() if value % 1}:
        raise InputError("--rank", got=odd, expected="a whole number")
    if not noise:
        refuse_unused(["--clip"], got="no --noise", expected="a run with noise")
    check_file(json_file, "--json")
    if out is not None and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise InputError("--out holds other files", got=out, expected="a new folder")
    from genre.jobs.federated.options import FederatedOptions
    from genre.jobs.federated.publish import NOTE
    from genre.jobs.federated.simulation import simulate
    from genre.progress import Reporter
    from genre.recipe import Recipe
    from genre.registry import Registry
    from genre.registry.names import check_name

    check_name(alias, "alias")
    wanted = Recipe.read(recipe, overrides or [])
    least = -(-2 * len(named) // 3) if min_clients is None else min_clients
    options = FederatedOptions(
        rounds=rounds,
        epochs=epochs,
        freeze_a=freeze_a,
        secure=secure,
        noise=noise,
        clip=clip,
        delta=delta,
        min_clients=least,
        clients=len(named),
    )
    store = Registry(registry)
    store.check_writable(wanted.name)
    ranked = {name: int(value) for name, value in given.items()}
    reporter = Reporter.for_terminal()
    run = simulate(wanted, named, options, registry=store, ranks=ranked, folder=out, reporter=reporter)
    published = store.publish(run, alias=alias)
    print(f"published {published.ref} as {alias} and latest; run folder {run.root}", flush=True)
    show_metrics({task: {"adapter": own, "baselines": {}} for task, own in run.metrics.items()})
    told = run.manifest.notes[NOTE]
    result = {"ref": published.ref, "digest": published.digest, "run": str(run.root), "metrics": run.metrics, NOTE: told}
    write_result(json_file, result | {"encoder": run.encoder})


def _named(clients: list[str]) -> dict[str, str]:
    """Data set folders by the clients' names, which are those of the folders."""
    names = [Path(each).resolve().name for each in clients]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        got = ", ".join(each for each, name in zip(clients, names, strict=True) if name == repeated[0])
        raise InputError("two --client folders have the same name", got=got, expected="a name each", todo="rename a folder")
    return dict(zip(names, clients, strict=True))
