"""The forms of `genre registry export` that are jobs: vectors, lists of users' best items, MLflow, generated items for vLLM.

Owns: their options and what is printed. Ignores: forms that write a version's files.

    genre registry export next_item@production --to vectors --data data/ml-100k --users --out vectors
    genre registry export next_item@production --to lists --data data/ml-100k --before test --out lists.parquet
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from genre.cli.options import check_choice, data_option
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError

ExportDataOption = Annotated[str | None, data_option("Of vectors and lists: the log with items and users; of vllm: the items.")]
UsersOption = Annotated[bool, typer.Option("--users", help="Of vectors: write the users' vectors too.")]
RankOption = Annotated[
    int | None, typer.Option("--rank", help="Of vectors: dimensions of item neighbours; by default exact, one per item.")
]
BeforeOption = Annotated[
    str | None,
    typer.Option("--before", help="Of vectors and lists: valid or test; histories end before this part of the version's split."),
]
TopOption = Annotated[int | None, typer.Option("--top", help="Of lists: items for each user; 100 by default.")]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", help="Of lists: of the soft labels of a next-item task; larger is flatter.")
]
LicenseOption = Annotated[
    str | None,
    typer.Option("--license", help="Of hub-folder: the licence as the hub spells it; by default that of the base and the data."),
]

_TAKES = {
    "vectors": ("--data", "--users", "--rank", "--before", "--task"),
    "lists": ("--data", "--before", "--task", "--top", "--temperature"),
    "mlflow": (),
    "vllm": ("--data", "--task", "--tar"),
    "hub-folder": ("--license", "--tar"),
}
"""The options of each form beside --out and --base; others take --tar."""


def check_options(to: str, given: Mapping[str, Any]) -> None:
    """Check that every option that is given goes with the form.

    Raises:
        InputError: One does not.
    """
    used = [name for name, value in given.items() if value is not None and value is not False]  # 0 is a value
    foreign = [name for name in used if name not in _TAKES.get(to, ("--tar",))]
    if foreign:
        own = [form for form, takes in _TAKES.items() if foreign[0] in takes]
        expected = f"--to {' or '.join(own)}" if own else f"--to {to} alone"
        raise InputError(f"{foreign[0]} does not go with --to {to}", got=foreign[0], expected=expected, todo="leave it out")
    if to not in ("vectors", "lists", "vllm"):
        refuse_unused(["--data"], got=f"--to {to}", expected="--to vectors, lists or vllm")
    if to in ("vectors", "lists", "mlflow"):
        refuse_unused(["--canaries"], got=f"--to {to}", expected="a form that a server loads")
    if to == "mlflow":
        refuse_unused(["--base"], got=f"--to {to}", expected="a form that is computed from the base")
    check_choice("before", given.get("--before"), ("valid", "test"))


def export_computed(to: str, registry: Any, ref: str, out: str, base: Path | None, given: Mapping[str, Any]) -> str | None:
    """Export in one of the forms here; the line to print, or None for another form."""
    forms: dict[str, Callable[..., str | None]] = {"vectors": _vectors, "lists": _lists, "mlflow": _mlflow, "vllm": _generating}
    return forms[to](registry, ref, out, base, given) if to in forms else None


def _vectors(registry: Any, ref: str, out: str, base: Path | None, given: Mapping[str, Any]) -> str:
    from genre.engine.vectors import product_task
    from genre.jobs.export.vectors import export_vectors
    from genre.progress import Reporter

    version = registry.resolve(ref)
    product_task(version, given["--task"])  # before the data and the base are read
    data = None if given["--data"] is None else _open_log(given["--data"])
    found = export_vectors(
        registry,
        version.ref,
        out,
        base=_load_base(version, base),
        data=data,
        users=given["--users"],
        task=given["--task"],
        rank=given["--rank"],
        before=given["--before"],
        reporter=Reporter.for_terminal(),
    )
    about = found.about
    users = "" if about["users"] is None else f" and {about['users']:,} users"
    lost = "" if about["lost"] is None else f"; rank {about['rank']} loses {about['lost']:.1%} of item neighbours"
    check = about["check"]
    same = f"{check['overlap@10']:.1%} of the engine's best 10 on {check['histories']} histories"
    return f"wrote {out}: {about['items']:,} items{users}, {about['dimensions']} dimensions{lost}; {same}"


def _lists(registry: Any, ref: str, out: str, base: Path | None, given: Mapping[str, Any]) -> str:
    from genre.jobs.export.lists import TOP, check_lists, export_lists
    from genre.progress import Reporter

    if given["--data"] is None:
        raise InputError("lists are of the users of a log", got="no --data", expected="--data DIR")
    version = registry.resolve(ref)
    top = TOP if given["--top"] is None else given["--top"]
    temperature = 1.0 if given["--temperature"] is None else given["--temperature"]
    check_lists(version, Path(out), task=given["--task"], top=top, temperature=temperature)
    found = export_lists(
        registry,
        version.ref,
        out,
        _open_log(given["--data"]),
        base=_load_base(version, base),
        top=top,
        task=given["--task"],
        temperature=temperature,
        before=given["--before"],
        reporter=Reporter.for_terminal(),
    )
    return f"wrote {out}: {found['user_id'].n_unique():,} users, {len(found):,} items in their lists"


def _mlflow(registry: Any, ref: str, out: str, base: Path | None, given: Mapping[str, Any]) -> str:
    from genre.jobs.export.mlflow import export_mlflow

    found = export_mlflow(registry, ref, out)
    aliases = f" ({', '.join(found.aliases)})" if found.aliases else ""
    before = "" if found.new else ", there before"
    return f"run {found.run_id}, version {found.version} of registered model {found.model}{aliases}{before}"


def _generating(registry: Any, ref: str, out: str, base: Path | None, given: Mapping[str, Any]) -> str | None:
    """Of adapters that generate items; None for another, which is a form that writes a version's files."""
    version = registry.resolve(ref)
    if not any(task.get("head") == "generate" for task in version.manifest.tasks):
        refuse_unused(["--data", "--task"], got=f"--to vllm of {version.ref}", expected="an adapter that generates items")
        return None
    from genre.jobs.export.generating import export_generating
    from genre.modules.base.source import find
    from genre.registry.export.archive import pack

    folder = base or find(version.manifest.base.name, fetch=False)
    data = None if given["--data"] is None else _open_log(given["--data"])
    asked = {"data": data, "task": given["--task"], "canaries": given["--canaries"]}
    difference = export_generating(registry, version, out, folder, **asked)
    if given["--tar"]:
        pack(Path(out), Path(out).with_name(Path(out).name + ".tar"))
    archive = f" and {Path(out).name}.tar" if given["--tar"] else ""
    return f"wrote {out}{archive}; probabilities of stock PEFT and of genre differ by at most {difference:.1e}"


def _open_log(path: str) -> Any:
    from genre.jobs.loading import open_log

    return open_log(path)


def _load_base(version: Any, base: Path | None) -> Any:
    from genre.jobs.loading import load_base

    return load_base(version.manifest, None if base is None else str(base))
