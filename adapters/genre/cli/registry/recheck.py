"""`genre registry promote --recheck`: measure versions again, and print how far their manifests are from it.

Owns: what is measured and printed. Ignores: how, and the bounds.

    measured like:a3f09c12be77 like.auc 0.7102; the manifest says 0.9900
"""

from typing import TYPE_CHECKING

import typer

from genre.errors import InputError

if TYPE_CHECKING:
    from genre.registry import Manifest, Registry, Version


def measure(
    opened: "Registry", version: "Version", alias: str, data: str | None, base: str | None, not_worse: bool
) -> "tuple[dict[str, Manifest], list[str]]":
    """Measure a version again, and the alias's holder where the two are compared.

    Returns:
        By digest the manifest with what was found, and what to note in the journal.

    Raises:
        InputError: There is no data to measure on.
    """
    if data is None:
        raise InputError("--recheck needs data to measure on", expected="--data DIR")
    from genre.jobs.loading import load_base, open_data
    from genre.jobs.recheck import measure_again
    from genre.progress import Reporter

    dataset, loaded = open_data(data, version.manifest.reads), load_base(version.manifest, base)
    pin = opened.pins(version.name).get(alias)
    holders = [opened.open_version(version.name, pin)] if not_worse and pin is not None else []
    measured = {}
    for each in {one.digest: one for one in (version, *holders)}.values():
        measured[each.digest] = measure_again(opened, each, dataset, loaded, reporter=Reporter.for_terminal())
        for task, metrics in measured[each.digest].metrics.items():
            for name, found in metrics.items():
                claimed = each.manifest.metrics.get(task, {}).get(name)
                says = "nothing" if claimed is None else f"{claimed.value:.4f}"
                typer.echo(f"measured {each.ref} {task}.{name} {found.value:.4f}; the manifest says {says}")
    withheld = any(measured[digest].withholds_figures for digest in measured)  # whose journal must not tell the data either
    return measured, ["measured again" if withheld else f"measured again on data {dataset.digest}"]
