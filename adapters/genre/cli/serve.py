"""`genre serve`: an HTTP service over one engine.

Owns: arguments, the line printed at the start. Ignores: everything else; the library is imported inside the command.

    genre serve --data ml-100k --adapters like@production --canary like=0.1
"""

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.memory import service_lines
from genre.cli.options import (
    BaseOption,
    LanesOption,
    PrecisionOption,
    QuantizationOption,
    RegistryOption,
    check_choice,
    check_lanes,
    check_precision,
    data_option,
    parse_number,
    parse_size,
)
from genre.cli.shell.completion import complete_refs
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError

if TYPE_CHECKING:
    from genre.progress import Reporter
    from genre.registry import Registry
    from genre.serving.served import ServedLog

LEAST_CACHE = 2**20
"""Bytes of a cache that holds the states of one history at least, on a small base."""


def serve(
    data: Annotated[str | None, data_option("A data set for user_id and titles: a folder, or a packaged name.")] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapters",
            metavar="REF",
            help="name, name@alias or name:version; repeatable; by default all there are.",
            autocompletion=complete_refs,
        ),
    ] = None,
    registry: RegistryOption = "registry",
    host: Annotated[str, typer.Option(help="The address to listen on; only this machine reaches the default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    lanes: LanesOption = 16,
    base: BaseOption = None,
    quantization: QuantizationOption = None,
    precision: PrecisionOption = None,
    canary: Annotated[
        list[str] | None, typer.Option("--canary", metavar="NAME=SHARE", help="Share of a name's traffic for its candidate.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A Host header that is answered; repeatable.")
    ] = None,
    batch_rows: Annotated[int, typer.Option(help="Most rows in a micro-batch.")] = 64,
    batch_tokens: Annotated[int, typer.Option(help="Most tokens in a micro-batch, and in a forward pass.")] = 8192,
    queue_rows: Annotated[int, typer.Option(help="Most rows in the queue; more get 429.")] = 2048,
    call_tokens: Annotated[int, typer.Option(help="Most estimated tokens in a call; more get 413.")] = 2**20,
    timeout: Annotated[float, typer.Option(help="Seconds until a call gets 504.")] = 30.0,
    body_bytes: Annotated[int, typer.Option(help="Most bytes in a body; more get 413.")] = 4 * 2**20,
    drain: Annotated[float, typer.Option(help="Seconds in which a stopping service still accepts calls, not ready.")] = 1.0,
    follow: Annotated[float, typer.Option(help="Seconds between checks of the registry's aliases; 0 never checks.")] = 1.0,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="Keeps what operators load, unload and share across restarts.")
    ] = None,
    served_log: Annotated[
        Path | None,
        typer.Option(
            "--served-log", metavar="FILE", help="Keeps recommended lists and the rewards sent to /v1/feedback (SQLite)."
        ),
    ] = None,
    served_days: Annotated[float, typer.Option(help="Days that the served log keeps; 0 keeps all.")] = 90.0,
    served_bytes: Annotated[int, typer.Option(help="Bytes from which on the served log takes no more lists.")] = 2**31,
    explore: Annotated[
        str | None,
        typer.Option(metavar="KIND=AMOUNT", help="Draw recommended lists: epsilon=0.1, softmax=TEMPERATURE, top-k-sampling=50."),
    ] = None,
    explore_pool: Annotated[int, typer.Option(help="The best so many items that can be drawn.")] = 100,
    history_cache: Annotated[
        str,
        typer.Option(
            "--history-cache", metavar="SIZE", help="Memory for what was computed of histories, such as 2GiB; 0 keeps nothing."
        ),
    ] = "0",
    history_cache_host: Annotated[
        str, typer.Option("--history-cache-host", metavar="SIZE", help="The same in the memory beside a GPU.")
    ] = "0",
    history_cache_disk: Annotated[
        str | None, typer.Option("--history-cache-disk", metavar="DIR:SIZE", help="The same in a folder, gone with the process.")
    ] = None,
    history_cache_storage: Annotated[
        str, typer.Option("--history-cache-storage", help="auto, float32, bfloat16 or int8; auto is as it was computed.")
    ] = "auto",
    history_cache_ttl: Annotated[
        float, typer.Option("--history-cache-ttl", help="Seconds without a call after which a user's states go; 0 never.")
    ] = 3600.0,
    log_rows: Annotated[bool, typer.Option("--log-rows", help="Log the requests: user ids and histories.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the memory it would take, by part; load no weights.")] = False,
    plan: Annotated[str | None, typer.Option("--plan", metavar="DEVICE", help="With --dry-run: cpu or cuda.")] = None,
) -> None:
    """Serve adapters over HTTP. The environment variable GENRE_ADMIN_TOKEN enables the admin calls."""
    try:
        from genre.serving.http.server import bind, run, url_of
    except ModuleNotFoundError as error:
        todo = "pip install 'genre-adapters[serve]'"
        raise InputError("serving needs another package", got=f"no {error.name}", todo=todo) from None
    from genre.serving.served import ServedLog
    from genre.serving.settings import TOKEN_VARIABLE, Settings

    limits = {"batch_rows": batch_rows, "batch_tokens": batch_tokens, "queue_rows": queue_rows, "body_bytes": body_bytes}
    limits["call_tokens"] = call_tokens
    times = {"timeout_s": timeout, "drain_s": drain, "follow_s": follow}
    access = {"host": host, "port": port, "hosts": tuple(name.lower() for name in allow_host or ())}
    shares = dict(parse_number("--canary", text, "NAME=SHARE, such as like=0.1") for text in canary or ())
    access["token"] = os.environ.get(TOKEN_VARIABLE) or None
    lists = {"explore": explore, "explore_pool": explore_pool}
    settings = Settings.make(**access, **limits, **times, **lists, canary=shares, log_rows=log_rows)
    if explore is None:
        refuse_unused(["--explore-pool"], got="no --explore", expected="lists that are drawn")
    if served_log is None:
        refuse_unused(["--served-days", "--served-bytes"], got="no --served-log", expected="a log of what was served")
    check_lanes(lanes)
    check_choice("quantization", quantization, ("none", "int8", "nf4"))
    loads = {"quantization": quantization, "precision": check_precision(precision)}
    states = _history_cache(history_cache, history_cache_host, history_cache_disk, history_cache_storage, history_cache_ttl)
    if states is None:
        unused = ["--history-cache-storage", "--history-cache-ttl"]
        refuse_unused(unused, got="no size of a history cache", expected="--history-cache SIZE")
    check_choice("plan", plan, ("cpu", "cuda"))
    if plan is not None:
        refuse_unused(["--device"], got=f"--plan {plan}", expected="one device to plan for")
    if plan is not None and not dry:
        raise InputError("--plan goes with --dry-run", got=f"--plan {plan} alone", expected="both")
    if dry:
        histories = 0 if states is None else int(states["capacity"])
        options = {"base": base, **loads, "lanes": lanes, "batch_tokens": batch_tokens, "batch_rows": batch_rows}
        _show_memory(registry, adapters or [], data, plan, options | {"histories": histories})
        return
    listener, served = bind(host, port), None
    try:
        if served_log is not None:
            served = ServedLog(served_log, days=served_days or None, most_bytes=served_bytes)
        service = _open(registry, adapters or [], data, base, loads, lanes, settings, state, served, states)
        names = ", ".join(deployment.ref for deployment in service.deployments.public()) or "nothing"
        listener.listen()  # whoever reads the next line may call at once
        print(f"serving {names} at {url_of(listener)}", flush=True)
        run(service, listener)
    finally:
        listener.close()
        if served is not None:
            served.close()


def _open(
    registry: str,
    adapters: list[str],
    data: str | None,
    base: str | None,
    loads: Mapping[str, Any],
    lanes: int,
    settings: Any,
    state: Path | None,
    served: "ServedLog | None" = None,
    states: dict[str, Any] | None = None,
) -> Any:
    """Start a service; what is most likely to fail is checked first."""
    from genre.serving.state import StateFile

    store, refs, others = _versions(registry, adapters)
    first = store.resolve(refs[0])
    kept = None if state is None else StateFile(state)
    from genre.engine import Engine
    from genre.engine.history_store import HistoryStore
    from genre.jobs.loading import load_base, open_log
    from genre.modules.base.precision import MEASURED, measured
    from genre.serving import Service

    progress = _progress()
    with progress.phase("reading the data", at_once=False):
        log = None if data is None else open_log(data)
    with progress.phase(f"loading the base {first.manifest.base.name}", at_once=False):
        loaded = load_base(first.manifest, base, **loads)
    cache = None if states is None else HistoryStore(device=loaded.device, **states)
    engine = Engine(loaded, store, lanes=lanes, data=log, batch_tokens=settings.batch_tokens, history_cache=cache)
    service = Service(engine, settings, state=kept, served=served)
    if cache is not None and engine.passes.histories is None:
        why = "this base's attention cannot go on from states that were kept"
        service.log.write("history cache unused", level="warning", base=loaded.name, why=why)
    if loads.get("precision") == MEASURED and loaded.quantization == "none":
        service.log.write("precision", precision=loaded.precision, why=measured().why)
    for ref, why in others.items():
        service.log.write("not served", level="warning", ref=ref, why=why)
    with progress.phase(f"loading {', '.join(refs)}", at_once=False):
        service.start(refs, found=not adapters)
    return service


def _versions(registry: str, adapters: list[str]) -> tuple["Registry", list[str], dict[str, str]]:
    """The registry, what is to be served of it, and why others are not."""
    from genre.registry import Registry
    from genre.serving.deployments import served_by_default

    if "://" not in registry and not Path(registry).is_dir():
        raise InputError("no such registry", got=registry, expected="a folder that `genre train` has published into")
    store = Registry(registry)
    if adapters:
        return store, list(dict.fromkeys(adapters)), {}
    return store, *served_by_default(store)


def _show_memory(registry: str, adapters: list[str], data: str | None, device: Any, options: dict[str, Any]) -> None:
    """Print the planned memory of the service."""
    from genre.jobs.loading import open_log
    from genre.jobs.memory import plan_service, this_device

    store, refs, _ = _versions(registry, adapters)
    log = None if data is None else open_log(data)
    place = device or this_device()
    print("\n".join(service_lines(plan_service(store, refs, data=log, device=place, **options), place)))


def _history_cache(memory: str, host: str, disk: str | None, storage: str, ttl_s: float) -> dict[str, Any] | None:
    """What the options say of a store of histories' states; None if there is to be none."""
    check_choice("history-cache-storage", storage, ("auto", "float32", "bfloat16", "int8"))
    if not 0 <= ttl_s < math.inf:
        raise InputError("--history-cache-ttl cannot be used", got=ttl_s, expected="seconds, or 0 for no limit")
    folder, _, size = (disk or "").rpartition(":")
    if disk is not None and not folder:
        raise InputError("--history-cache-disk cannot be read", got=repr(disk), expected="DIR:SIZE, such as /var/tmp/genre:20GiB")
    found = {
        "capacity": _cache_size("--history-cache", memory),
        "host": _cache_size("--history-cache-host", host),
        "disk_bytes": _cache_size("--history-cache-disk", size) if folder else 0,
    }
    if not any(found.values()):
        return None
    return {**found, "disk": Path(folder) if found["disk_bytes"] else None, "storage": storage, "ttl_s": ttl_s or None}


def _cache_size(option: str, text: str) -> int:
    size = parse_size(option, text)
    if 0 < size < LEAST_CACHE:
        raise InputError(f"{option} is too small", got=f"{size} bytes", expected="1MiB or more, or 0", todo="name a unit: 2GiB")
    return size


def _progress() -> "Reporter":
    """Progress of the start: a status on a terminal, otherwise lines of the service's log, which may be read by programs."""
    from genre.progress import Reporter, Verbosity, verbosity
    from genre.serving.logs import Log

    if verbosity() is Verbosity.QUIET:
        return Reporter.silent()
    log = Log()
    return Reporter(lambda text: log.write("starting", message=text), live=sys.stderr.isatty())
