"""`genre audit`: what rewritten titles and fake profiles gain.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre audit like@production --data data/shop
    genre audit next_item@latest --data ml-100k --text-only --target 242 --out out/audit
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genre.cli.options import BaseOption, DataOption, RegistryOption, TaskOption, ref_argument
from genre.cli.output import console, make_table
from genre.errors import InputError, fault_of_file
from genre.files import check_writable

if TYPE_CHECKING:
    from genre.jobs.audit.report import AuditReport, Standing


def audit(
    ref: Annotated[str, ref_argument("name, name@alias or name:version of an adapter that reads a log.")],
    data: DataOption,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Gets audit.json and audit.html; by default runs/NAME/audit.")
    ] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Rewrite titles only; nothing is trained.")] = False,
    profiles_only: Annotated[bool, typer.Option("--profiles-only", help="Inject users and train again only.")] = False,
    task: TaskOption = None,
    users: Annotated[int, typer.Option(help="Users whose lists are measured.")] = 100,
    targets: Annotated[int, typer.Option(help="Items to push, drawn among the rarer ones.")] = 5,
    target: Annotated[list[str] | None, typer.Option(metavar="ITEM", help="An item to push, by id; repeatable.")] = None,
    suffixes: Annotated[Path | None, typer.Option(metavar="FILE", help="Suffixes for titles, one a line.")] = None,
    words: Annotated[int, typer.Option(help="Words that each greedy step chooses from.")] = 30,
    share: Annotated[list[float] | None, typer.Option(help="Injected users as a share of the real ones; repeatable.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="random, average or bandwagon; repeatable; all by default.")] = None,
    seed: Annotated[int, typer.Option(help="Draws users, targets and profiles.")] = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="For all retrainings: train.KEY, data.limit or data.max_events; repeatable."
        ),
    ] = None,
    registry: RegistryOption = "registry",
    base: BaseOption = None,
) -> None:
    """Measure what rewritten titles and fake profiles gain an item: a report as JSON and as a page."""
    if text_only and profiles_only:
        raise InputError("two options exclude each other", got="--text-only and --profiles-only", expected="one of them")
    only = "--text-only" if text_only else "--profiles-only"
    others: dict[str, object] = (
        {"--share": share, "--attack": attack, "--set": overrides} if text_only else {"--suffixes": suffixes}
    )
    unused = [option for option, value in others.items() if value]
    if unused and (text_only or profiles_only):
        todo = f"leave {unused[0]} out"
        raise InputError(f"{unused[0]} has no effect here", got=only, expected="an option of the attack that is made", todo=todo)
    from genre.jobs.audit.options import ATTACKS, SUFFIXES, AuditOptions

    options = AuditOptions(
        checks=("text",) if text_only else ("profiles",) if profiles_only else ("text", "profiles"),
        task=task,
        users=users,
        targets=targets,
        items=tuple(target or ()),
        suffixes=SUFFIXES if suffixes is None else _read_suffixes(suffixes),
        words=words,
        shares=tuple(share or AuditOptions.shares),
        attacks=tuple(attack or ATTACKS),
        seed=seed,
        overrides=tuple(overrides or ()),
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
    report = run_audit(store, ref, log, options, base=base, folder=folder, command=command, reporter=Reporter.for_terminal())
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


def _cells(standing: "Standing") -> tuple[str, str]:
    return f"{standing.exposure:.4f}", f"{standing.score:.4f}"
