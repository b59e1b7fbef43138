"""`genre recommend`: for a user, for all users, or for somebody known by a few titles.

Owns: arguments and printing. Ignores: scores; the library is imported inside the command.

    genre recommend next_item@production --data ml-100k --liked "Toy Story" --liked "Aladdin" --liked "Lion King" -k 5
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.options import (
    BaseOption,
    DataOption,
    JsonOption,
    PrecisionOption,
    RefArgument,
    RegistryOption,
    SeenOption,
    StrictOption,
    TaskOption,
    check_precision,
    excludes_seen,
)
from genre.cli.output import check_file, show_list, show_written, write_result
from genre.errors import InputError, visible

if TYPE_CHECKING:
    from genre.data.catalogue import Titles
    from genre.data.interactions import Interactions
    from genre.data.sequences.layout import FeedbackVocabulary
    from genre.engine import Engine, Request
    from genre.jobs.score.results import Results


Opening = dict[str, Any]
"""How the engine is opened: `base` and `precision` of `open_engine`."""


def recommend(
    ref: RefArgument,
    data: DataOption,
    user: Annotated[str | None, typer.Option("--user", help="A user of the data set.")] = None,
    liked: Annotated[
        list[str] | None,
        typer.Option(
            "--liked",
            metavar="TITLE",
            help="Instead of a user: a title (or item_id) that was liked; repeatable, oldest first.",
        ),
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Every user, to --output.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Of --all-users: JSON lines, a line per user; or by its suffix .parquet or .csv a table with titles, a row per "
            "user and item. - is standard output.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last user of an unfinished output.")] = False,
    k: Annotated[int, typer.Option("-k", help="The number of items.")] = 10,
    task: TaskOption = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="CONDITION", help="Only these items: 'in_stock == true', 'released within 30 days of 2024-05-01'."
        ),
    ] = None,
    diversity: Annotated[float, typer.Option(min=0, max=1, help="From 0, the best items, to 1, the most diverse ones.")] = 0.0,
    beam: Annotated[int | None, typer.Option(min=1, help="The width of the search of a task that generates items.")] = None,
    seen: SeenOption = None,
    strict: StrictOption = False,
    registry: RegistryOption = "registry",
    base: BaseOption = None,
    precision: PrecisionOption = None,
    json_file: JsonOption = None,
) -> None:
    """Recommend for one user, for somebody who liked a few titles, or for all users."""
    given = {"--user": user is not None, "--liked": bool(liked), "--all-users": all_users}
    if sum(given.values()) != 1:
        got = " and ".join(name for name, there in given.items() if there) or "neither"
        raise InputError("name one user or all", got=got, expected="--user ID, --liked TITLE or --all-users --output F")
    if all_users and output is None:
        raise InputError(
            "--all-users needs a file", got="no --output", expected="--output F", todo="name a .jsonl, .parquet or .csv file"
        )
    if not all_users and (output is not None or resume):
        raise InputError("--output and --resume go with --all-users", got="one user", todo="give --json FILE instead")
    if strict and not all_users:
        raise InputError("--strict goes with --all-users", got="one user", expected="--all-users --output F")
    if all_users and json_file is not None:
        raise InputError("--json goes with one user", got="--all-users", expected="--output F")
    if k < 1:
        raise InputError("-k is too small", got=k, expected="1 or more")
    check_file(json_file, "--json")
    exclude_seen = excludes_seen(seen)
    opening: Opening = {"base": base, "precision": check_precision(precision)}
    from genre.data.catalogue import Titles
    from genre.engine import Request
    from genre.jobs.loading import open_log
    from genre.jobs.score.local import open_engine

    asked = Request(ref, history=[], k=k, task=task, where=where, diversity=diversity, beam=beam, exclude_seen=exclude_seen)
    if output is not None:
        _all(asked, data, output, registry, opening, resume=resume, strict=strict)
        return
    log = open_log(data)
    _check_where(asked, log)
    titles = Titles(log.catalogue)
    found = [titles.find(title) for title in liked or ()]
    if user is not None:
        log.user_code(user)
    engine = open_engine(registry, [ref], log, **opening)
    _one(engine, asked, titles, user=user, liked=found, json_file=json_file)


def _check_where(asked: "Request", log: "Interactions") -> None:
    """Refuse a condition that cannot be evaluated, before a base is loaded."""
    from genre.engine.filters import Condition

    for text in asked.where or ():
        Condition.read(text).met(log.catalogue.frame)


def _one(
    engine: "Engine", asked: "Request", titles: "Titles", *, user: str | None, liked: list[str], json_file: Path | None
) -> None:
    from dataclasses import replace

    if user is not None:
        request = replace(asked, history=None, user_id=user)
    else:
        loaded, *_ = engine.read_by(asked)
        best = _best(loaded.layout.feedback)
        request = replace(asked, history=[{"item_id": item, **best} for item in liked])
        for item in liked:
            print(visible(f"liked: {titles.of(item)} ({item})"))
    response = engine.score([request])[0]
    if response.error is not None:
        raise InputError(response.error)
    show_list(asked.adapter, response, dict(zip(titles.catalogue.item_ids, titles.titles, strict=True)))
    write_result(json_file, response.to_json())


def _best(feedback: "FeedbackVocabulary | None") -> dict[str, Any]:
    """The feedback of something that was liked: the highest number; a word is not known."""
    if feedback is None:
        return {}
    return {feedback.column: None if isinstance(feedback.values[0], str) else max(feedback.values)}


def _all(asked: "Request", data: str, output: str, registry: str, opening: Opening, *, resume: bool, strict: bool) -> None:
    from genre.jobs.loading import open_log
    from genre.jobs.score.tables import check_table, is_table, lines_of, write_table

    if not is_table(output):
        show_written(_all_lines(asked, data, output, registry, opening, resume=resume), strict=strict)
        return
    table = Path(output)
    check_file(table, "--output")
    if table.exists():
        if not resume:
            raise InputError("the file exists", got=table, expected="a new file", todo="name another with --output")
        check_table(table, asked.adapter, open_log(data).user_ids)
        print(f"{table} is complete")
        return
    lines = lines_of(table)
    results = _all_lines(asked, data, str(lines), registry, opening, resume=resume)
    write_table(lines, table, open_log(data).catalogue)
    lines.unlink()
    results.path = table
    show_written(results, strict=strict)


def _all_lines(asked: "Request", data: str, output: str, registry: str, opening: Opening, *, resume: bool) -> "Results":
    """Answer every user in a line; return the output, closed."""
    from dataclasses import replace

    from genre.jobs.loading import open_log
    from genre.jobs.score.local import Scorer, exact_refs, open_engine, write_all
    from genre.jobs.score.requests import chunks
    from genre.jobs.score.results import Results
    from genre.progress import Reporter
    from genre.registry import Registry

    settings = {"-k": asked.k, "--task": asked.task, "--where": asked.where or [], "--diversity": asked.diversity}
    settings |= {} if opening["precision"] == "auto" else {"--precision": opening["precision"]}
    settings |= {} if asked.beam is None else {"--beam": asked.beam}
    settings |= {} if asked.exclude_seen is None else {"--seen": "masked" if asked.exclude_seen else "kept"}
    with Results.open(output, resume=resume, settings=settings) as results:
        if others := results.digests.keys() - {asked.adapter}:
            raise InputError("the output is of another adapter", got=min(others), expected=asked.adapter)
        log = open_log(data)
        requests = (replace(asked, history=None, user_id=user, id=user) for user in log.user_ids)
        rest = results.after(requests, lambda request: request.id)
        if not results.complete:
            _check_where(asked, log)
            exact = exact_refs(Registry(registry), results)
            scorer = Scorer(open_engine(registry, [asked.adapter], log, **opening), exact)
            together = chunks(rest, grow=True, done=results.rows)
            write_all(results, map(scorer.answer, together), Reporter.for_terminal(), total=len(log.user_ids))
    return results
