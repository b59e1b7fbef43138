"""`genre refresh`: train a published version on newer events.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre refresh like@production --data data/shop --replay 0.2
    genre refresh like@production --data data/shop --without 196
    genre refresh like@production --served served.sqlite --gate off-policy
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from genre.cli.options import (
    DATA_VARIABLE,
    BaseOption,
    JsonOption,
    RegistryOption,
    check_choice,
    data_option,
    ref_argument,
)
from genre.cli.output import check_file, write_result
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError

_OF_OLD_WEIGHTS = ("--served", "--replay", "--valid", "--test", "--encoder-due")
"""Options of a refresh that goes on from the old weights."""
_OF_SERVED = ("--settle", "--reward", "--joined", "--gate")
_OF_GATE = ("--estimator", "--explore", "--explore-pool", "--places", "--least-lists")


def refresh(
    ref: Annotated[str, ref_argument("name@alias or name, which the new version may take over; or name:version.")],
    data: Annotated[
        str | None,
        data_option("A data set with the old events and the new ones; with --served by default the one it was trained on."),
    ] = None,
    replay: Annotated[float, typer.Option(help="Share of old events among the training events.")] = 0.2,
    test: Annotated[float, typer.Option(help="Share of the new events, the latest, for the test of both versions.")] = 0.3,
    valid: Annotated[float, typer.Option(help="Share of the new events, just before those, for choosing the best epoch.")] = 0.1,
    tolerance: Annotated[float, typer.Option(help="The loss that still counts as not worse.")] = 0.01,
    encoder_due: Annotated[
        float, typer.Option("--encoder-due", help="Report that a new encoder is due above this share of unknown items.")
    ] = 0.2,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="train.KEY=VALUE", help="Override a key of train; repeatable.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="USER", help="Train from the start, on the log without this user; repeatable."),
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Train from the start, on the log as it is after users were forgotten in it.")
    ] = False,
    served: Annotated[
        list[Path] | None,
        typer.Option("--served", metavar="FILE", help="A log of genre serve --served-log, or a folder of such; repeatable."),
    ] = None,
    settle: Annotated[
        float, typer.Option(help="Of --served: lists younger than so many seconds wait for the next refresh.")
    ] = 3600.0,
    reward: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Of --served: the data set's column that rewards are; by default click and reward."),
    ] = None,
    joined: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of --served: where data set and lists are kept together; by default DATA-served."),
    ] = None,
    gate: Annotated[str, typer.Option(help="What decides: metrics, or off-policy (of --served).")] = "metrics",
    estimator: Annotated[str, typer.Option(help="Of --gate off-policy: snips or dr.")] = "snips",
    explore: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY", help="Of --gate off-policy: how both versions draw lists; by default as most of the log was drawn."
        ),
    ] = None,
    pool: Annotated[
        int, typer.Option("--explore-pool", help="Of --gate off-policy: the best so many items that they draw from.")
    ] = 100,
    places: Annotated[
        int | None, typer.Option(help="Of --gate off-policy: only the first so many places of a list; by default all.")
    ] = None,
    least: Annotated[
        int, typer.Option("--least-lists", help="Of --gate off-policy: the equal lists that weights must be worth.")
    ] = 100,
    registry: RegistryOption = "registry",
    base: BaseOption = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default the next runs/NAME/N.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Train a version on newer events, or from the start without some users; promote the new one if it is not worse."""
    check_file(json_file, "--json")
    if out is not None and out.exists() and (out.is_file() or any(out.iterdir())):
        raise InputError("--out is taken", got=out, expected="a new folder, or an empty one")
    if without or from_start:
        got = "--without" if without else "--from-start"
        refuse_unused(_OF_OLD_WEIGHTS, got=got, expected="a refresh that goes on from the old weights")
    check_choice("gate", gate, ("metrics", "off-policy"))
    if not served:
        refuse_unused(_OF_SERVED, got="no --served", expected="a refresh from a served log")
    if gate != "off-policy":
        refuse_unused(_OF_GATE, got=f"--gate {gate}", expected="--gate off-policy")
    if not served and data is None:
        got = f"neither --data nor {DATA_VARIABLE}"
        raise InputError("no data set is named", got=got, expected="--data DIR, or --served FILE")
    from genre.jobs.loading import open_log
    from genre.jobs.refresh.feedback import Feedback, ServedOptions
    from genre.jobs.refresh.job import refresh as run_refresh
    from genre.jobs.refresh.plan import RefreshOptions
    from genre.jobs.refresh.policy_gate import PolicyGate
    from genre.jobs.refresh.without import refresh_without
    from genre.progress import Reporter
    from genre.registry import Registry

    options = RefreshOptions(replay, valid, test, tolerance, encoder_due, tuple(overrides or ()), data)
    options.check()
    store = Registry(registry)
    store.resolve(ref)
    run: dict[str, Any] = {"base": base, "folder": out, "reporter": Reporter.for_terminal()}
    if served:
        policy = PolicyGate(estimator, explore, pool, places, least) if gate == "off-policy" else None
        chosen = ServedOptions(tuple(served), settle, reward, joined, policy)
        done = run_refresh(store, ref, Feedback.read(store, ref, chosen, data), options, **run)
    elif without or from_start:
        run |= {"overrides": options.overrides, "path": data, "tolerance": tolerance}
        done = refresh_without(store, ref, open_log(str(data), trains=True), list(dict.fromkeys(without or ())), **run)
    else:
        done = run_refresh(store, ref, open_log(str(data), trains=True), options, **run)
    show(done.report)
    write_result(json_file, done.report)


def show(report: dict[str, Any]) -> None:
    """Print the comparison, whether an encoder is due, and the decision."""
    for line in report.get("compared", ()):
        print(line)
    encoder = report.get("encoder")
    if encoder and encoder["due"]:
        print(
            f"a new encoder is due: {encoder['events']:.0%} of the new events and {encoder['items']:.0%} of the catalogue are on "
            f"items that it does not know (threshold {encoder['threshold']:.0%}); fit one with genre train --set encoder.use=fit"
        )
    print(report["why"])
