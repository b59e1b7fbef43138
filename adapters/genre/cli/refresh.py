"""`genre refresh`: train a published version on newer events.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre refresh like@production --data data/shop --replay 0.2
    genre refresh like@production --data data/shop --without 196
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from genre.cli.options import BaseOption, JsonOption, RegistryOption, data_option, ref_argument
from genre.cli.output import check_file, write_result
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError

_OF_OLD_WEIGHTS = ("--replay", "--valid", "--test", "--encoder-due")
"""Options of a refresh that goes on from the old weights."""


def refresh(
    ref: Annotated[str, ref_argument("name@alias or name, which the new version may take over; or name:version.")],
    data: Annotated[str, data_option("A data set folder with the old events and the new ones.")],
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
    from genre.jobs.loading import open_log
    from genre.jobs.refresh.job import refresh as run_refresh
    from genre.jobs.refresh.plan import RefreshOptions
    from genre.progress import Reporter
    from genre.registry import Registry

    options = RefreshOptions(replay, valid, test, tolerance, encoder_due, tuple(overrides or ()), data)
    options.check()
    store = Registry(registry)
    store.resolve(ref)
    reporter, anew = Reporter.for_terminal(), bool(without) or from_start
    if anew:
        from genre.jobs.refresh.without import refresh_without

        asked: dict[str, Any] = {"overrides": options.overrides, "path": data, "tolerance": tolerance, "folder": out}
        users = list(dict.fromkeys(without or ()))
        done = refresh_without(store, ref, open_log(data, trains=True), users, base=base, reporter=reporter, **asked)
    else:
        done = run_refresh(store, ref, open_log(data, trains=True), options, base=base, folder=out, reporter=reporter)
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
