"""`genre report`: the page of one or several runs.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre report runs/like/1
    genre report runs/next_item/1 runs/like/1 --out out/runs.html
"""

from pathlib import Path
from typing import Annotated

import typer

from genre.cli.output import check_file
from genre.errors import InputError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run folder, such as runs/like/1, or several.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page; by default report.html in the run folder.")] = None,
) -> None:
    """Write a page of a run: figures beside the baselines', curve, cost, recipe; one file, light and dark."""
    if out is None and len(runs) > 1:
        raise InputError("several runs need a name for their page", got="no --out", expected="--out FILE")
    page = out or runs[0] / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError("--out is a page", got=page, expected="a name that ends in .html")
    from genre.jobs.report.page import find_runs, write_page

    found = find_runs(runs)
    check_file(page, "--out")
    write_page(found, page)
    print(f"wrote {page}")
