"""`genre audit`: what rewritten titles and fake profiles gain, and what a version tells about its users.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre audit like@production --data data/shop
    genre audit next_item@latest --data ml-100k --text-only --target 242 --out out/audit
    genre audit like@production --data data/shop --privacy
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genre.cli.options import BaseOption, DataOption, RegistryOption, TaskOption, ref_argument
from genre.cli.output import console, make_table
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError, fault_of_file
from genre.files import check_writable

if TYPE_CHECKING:
    from genre.jobs.audit.report import AuditReport, Standing

_OF_TITLES = ("--suffixes", "--words")
_OF_PROFILES = ("--share", "--attack")
_OF_PRIVACY = ("--shadows", "--canaries", "--delta", "--record")
_FOREIGN = {
    "--text-only": (*_OF_PROFILES, "--set", *_OF_PRIVACY),
    "--profiles-only": (*_OF_TITLES, *_OF_PRIVACY),
    "--privacy": (*_OF_TITLES, "--target", "--targets", *_OF_PROFILES),
    "no --privacy": _OF_PRIVACY,
}
"""The options that have no effect on the attacks that are made."""


def audit(
    ref: Annotated[str, ref_argument("name, name@alias or name:version of an adapter that reads a log.")],
    data: DataOption,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Gets audit.json and audit.html; by default runs/NAME/audit.")
    ] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Rewrite titles only; nothing is trained.")] = False,
    profiles_only: Annotated[bool, typer.Option("--profiles-only", help="Inject users and train again only.")] = False,
    privacy: Annotated[bool, typer.Option("--privacy", help="Attack the users' privacy instead of pushing items.")] = False,
    task: TaskOption = None,
    users: Annotated[
        int | None, typer.Option(help="Users whose lists are measured, 100; or with --privacy who are attacked, 1,000.")
    ] = None,
    targets: Annotated[int, typer.Option(help="Items to push, drawn among the rarer ones.")] = 5,
    target: Annotated[list[str] | None, typer.Option(metavar="ITEM", help="An item to push, by id; repeatable.")] = None,
    suffixes: Annotated[Path | None, typer.Option(metavar="FILE", help="Suffixes for titles, one a line.")] = None,
    words: Annotated[int, typer.Option(help="Words that each greedy step chooses from.")] = 30,
    share: Annotated[list[float] | None, typer.Option(help="Injected users as a share of the real ones; repeatable.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="random, average or bandwagon; repeatable; all by default.")] = None,
    shadows: Annotated[
        int | None, typer.Option(help="With --privacy: adapters that membership is attacked with, an even number; 4.")
    ] = None,
    canaries: Annotated[
        int | None, typer.Option(help="With --privacy: made-up users, half of them inserted, that bound epsilon; 200.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="With --privacy: the delta beside epsilon; 1 / (10 times the users).")
    ] = None,
    record: Annotated[
        bool, typer.Option(help="With --privacy: write the report beside the version, as registry show reads it.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Draws users, targets, profiles, halves and canaries.")] = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="For all retrainings: train.KEY, data.limit or data.max_events; repeatable."
        ),
    ] = None,
    registry: RegistryOption = "registry",
    base: BaseOption = None,
) -> None:
    """Measure what rewritten titles and fake profiles gain an item, or what a version tells of its users."""
    kinds = {"--text-only": text_only, "--profiles-only": profiles_only, "--privacy": privacy}
    chosen = [option for option, given in kinds.items() if given]
    if len(chosen) > 1:
        raise InputError("two options exclude each other", got=" and ".join(chosen), expected="one of them")
    only = chosen[0] if chosen else "no --privacy"
    refuse_unused(_FOREIGN[only], got=only, expected="an option of the attack that is made")
    if target:
        refuse_unused(["--targets"], got="--target", expected="items that are drawn")
    from genre.jobs.audit.options import ATTACKS, PRIVACY, PUSHES, SUFFIXES, AuditOptions

    options = AuditOptions(
        checks=("text",) if text_only else ("profiles",) if profiles_only else PRIVACY if privacy else PUSHES,
        task=task,
        users=users if users is not None else 1000 if privacy else AuditOptions.users,
        targets=targets,
        items=tuple(target or ()),
        suffixes=SUFFIXES if suffixes is None else _read_suffixes(suffixes),
        words=words,
        shares=tuple(share or AuditOptions.shares),
        attacks=tuple(attack or ATTACKS),
        seed=seed,
        overrides=tuple(overrides or ()),
        shadows=AuditOptions.shadows if shadows is None else shadows,
        canaries=AuditOptions.canaries if canaries is None else canaries,
        delta=delta,
    )
    options.check()
    from genre.jobs.audit.job import PAGE
    from genre.jobs.audit.job import audit as run_audit
    from genre.jobs.loading import open_log
    from genre.progress import Reporter
    from genre.registry import Registry

    store = Registry(registry)
    version = store.resolve(ref)
    folder = out or Path("runs") / version.name / "audit"
    check_writable(folder / PAGE, "--out")
    log, command = open_log(data), shlex.join(["genre", *sys.argv[1:]])
    report = run_audit(
        store,
        ref,
        log,
        options,
        base=base,
        folder=folder,
        command=command,
        record=privacy and record,
        reporter=Reporter.for_terminal(),
    )
    _show(report)
    print(f"wrote {folder / PAGE}")


def _read_suffixes(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--suffixes {file} cannot be read", got=fault_of_file(error), expected="a text, a suffix a line"
        ) from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not 1 <= len(found) <= 1000:
        raise InputError(f"--suffixes {file}", got=f"{len(found):,} suffixes", expected="1 to 1,000, one a line")
    return found


def _show(report: "AuditReport") -> None:
    text, profiles = report.checks.text, report.checks.profiles
    if text is not None and text.before is not None and text.suffixes is not None and text.greedy is not None:
        table = make_table(
            f"titles rewritten ({text.item} items)", {"title": "left", "exposure@10": "right", "mean score": "right"}
        )
        rows = {"as it is": text.before, "best suffix": text.suffixes, "greedy words": text.greedy}
        for name, standing in rows.items():
            table.add_row(name, *_cells(standing))
        console().print(table)
    elif text is not None:
        print("titles rewritten: the version reads no text of items")
    if profiles is not None:
        columns = {"log": "left", "users": "right", "exposure@10": "right", "mean score": "right", "named": "right"}
        table = make_table("fake profiles, trained again", columns | {"named, spread": "right"})
        table.add_row("version as published", "", *_cells(profiles.published), "", "")
        table.add_row("none injected", "0", *_cells(profiles.clean), "", "")
        for each in profiles.attacks:
            named = f"{each.named_burst.fakes}", f"{each.named_spread.fakes}"
            table.add_row(f"{each.attack}, {each.share:.1%}", str(each.users), *_cells(each.standing), *named)
        console().print(table)
    _show_privacy(report)


def _show_privacy(report: "AuditReport") -> None:
    from genre.jobs.audit.report import privacy_lines

    for line in privacy_lines(report):
        print(line)


def _cells(standing: "Standing") -> tuple[str, str]:
    return f"{standing.exposure:.4f}", f"{standing.score:.4f}"
