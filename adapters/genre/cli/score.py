"""`genre score`: a file of requests through one engine, or through several.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre score --data ml-100k --input requests.jsonl.gz --output out.jsonl --resume
"""

from typing import Annotated

import typer

from genre.cli.options import (
    BaseOption,
    LanesOption,
    PrecisionOption,
    RegistryOption,
    SeenOption,
    StrictOption,
    check_choice,
    check_lanes,
    check_precision,
    data_option,
    excludes_seen,
)
from genre.cli.output import show_written
from genre.errors import InputError


def score(
    source: Annotated[
        str, typer.Option("--input", metavar="FILE", help="JSON lines of requests, plain or gzip; - is standard input.")
    ],
    output: Annotated[str, typer.Option(metavar="FILE", help="JSON lines of results, in order; - is standard output.")],
    data: Annotated[
        str | None,
        data_option("A data set folder or name; requests with texts or histories need none."),
    ] = None,
    registry: RegistryOption = "registry",
    engine: Annotated[str, typer.Option(help="local: an engine in this process; ray: one per worker.")] = "local",
    workers: Annotated[
        int | None, typer.Option(help="With --engine ray; by default one per GPU, or else one for every two cores.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last row of an unfinished output.")] = False,
    lanes: LanesOption = 16,
    base: BaseOption = None,
    precision: PrecisionOption = None,
    seen: SeenOption = None,
    strict: StrictOption = False,
) -> None:
    """Score a file of requests; a bad row gives an error row, nothing is dropped."""
    check_choice("engine", engine, ("local", "ray"))
    check_lanes(lanes)
    exclude_seen = excludes_seen(seen)
    computed = check_precision(precision)
    if workers is not None and (engine == "local" or workers < 1):
        got = f"{workers} with --engine {engine}"
        raise InputError("--workers cannot be used", got=got, expected="1 or more, with --engine ray")
    from genre.jobs.score.local import Scorer, engine_for, exact_refs, look_ahead, open_users, row_id, write_all
    from genre.jobs.score.on_ray import Plan, answers
    from genre.jobs.score.ray_runtime import need_ray, ray_here
    from genre.jobs.score.requests import RequestFile, chunks
    from genre.jobs.score.results import Results
    from genre.progress import Reporter
    from genre.registry import Registry

    if engine == "ray":
        need_ray()
    named = {"--seen": seen, "--precision": precision}
    settings = {name: value for name, value in named.items() if value is not None} or None
    with RequestFile(source) as file, Results.open(output, resume=resume, settings=settings) as results:
        if engine == "ray":
            file.need_plain()
        if results.complete:
            results.after(file.lines(), row_id)  # refuses the output of another input
        else:
            refs, lines = look_ahead(file.lines(), file.name)
            exact = exact_refs(Registry(registry), results)
            rest = results.after(lines, row_id)
            if engine == "ray":
                plan = Plan.make(
                    source,
                    rest,
                    refs,
                    registry=registry,
                    data=data,
                    base=base,
                    lanes=lanes,
                    workers=workers,
                    exact=exact,
                    exclude_seen=exclude_seen,
                    precision=computed,
                )
                with ray_here(plan.cpus) as reporter:
                    reporter.line(f"{plan.rows} rows over {plan.workers} workers of {plan.threads} threads")
                    write_all(results, answers(plan), reporter, total=results.rows + plan.rows)
            else:
                opened = engine_for(registry, refs, open_users(data), base=base, lanes=lanes, precision=computed)
                scorer = Scorer(opened, exact, exclude_seen=exclude_seen)
                together = chunks(rest, grow=True, done=results.rows)
                write_all(results, map(scorer.answer_lines, together), Reporter.for_terminal())
    show_written(results, strict=strict)
