"""`genre serve`: an HTTP service over one engine.

Owns: options, their checks, what is said when it begins. Ignores: everything else; the library is imported inside.

    genre serve --data ml-100k --adapters like@production --canary like=0.1
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from genre.errors import InputError


def serve(
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR", help="A data set for user_id and titles: a folder, or a packaged name.")
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapters", metavar="REF", help="name, name@alias or name:version; repeatable; by default all there are."),
    ] = None,
    registry: Annotated[str, typer.Option("--registry", metavar="DIR", help="A folder or any fsspec URL.")] = "registry",
    host: Annotated[str, typer.Option(help="The address to listen on; only this machine reaches the default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    lanes: Annotated[int, typer.Option(help="Adapters that are resident at once.")] = 16,
    base: Annotated[str | None, typer.Option("--base", help="Where the base is; found by its name by default.")] = None,
    quantization: Annotated[str | None, typer.Option(help="none, int8 or nf4, if not the one it was trained on.")] = None,
    canary: Annotated[
        list[str] | None, typer.Option("--canary", metavar="NAME=SHARE", help="Share of a name's traffic for its candidate.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A Host header that is answered; repeatable.")
    ] = None,
    batch_rows: Annotated[int, typer.Option(help="Rows of a micro-batch at most.")] = 64,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a micro-batch, and of a forward pass, at most.")] = 8192,
    queue_rows: Annotated[int, typer.Option(help="Rows that wait at most; more get 429.")] = 2048,
    timeout: Annotated[float, typer.Option(help="Seconds until a call gets 504.")] = 30.0,
    body_bytes: Annotated[int, typer.Option(help="Bytes of a body at most; more get 413.")] = 4 * 2**20,
    drain: Annotated[float, typer.Option(help="Seconds a stopping service still accepts while /readyz says 503.")] = 1.0,
    follow: Annotated[float, typer.Option(help="Seconds between looks at the registry's aliases; 0 never looks.")] = 1.0,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="Keeps over a restart what operators load, unload and share.")
    ] = None,
    log_rows: Annotated[bool, typer.Option("--log-rows", help="Log what was asked: user ids and histories.")] = False,
) -> None:
    """Serve adapters over HTTP. The environment's GENRE_ADMIN_TOKEN switches the admin calls on."""
    try:
        from genre.serving.server import bind, run, url_of
    except ModuleNotFoundError as error:
        todo = "pip install 'genre-adapters[serve]'"
        raise InputError("serving needs another package", got=f"no {error.name}", todo=todo) from None
    from genre.serving.settings import TOKEN_VARIABLE, Settings

    settings = Settings.make(
        host=host, port=port, hosts=tuple(name.lower() for name in allow_host or ()), canary=dict(map(_share, canary or ())),
        batch_rows=batch_rows, batch_tokens=batch_tokens, queue_rows=queue_rows, timeout_s=timeout, body_bytes=body_bytes,
        drain_s=drain, follow_s=follow, log_rows=log_rows, token=os.environ.get(TOKEN_VARIABLE) or None,
    )  # fmt: skip
    if lanes < 1:
        raise InputError("--lanes is too small", got=lanes, expected="1 or more")
    if quantization not in (None, "none", "int8", "nf4"):
        raise InputError("no such quantization", got=f"--quantization {quantization}", expected="none, int8 or nf4")
    listener = bind(host, port)
    try:
        service = _open(registry, adapters or [], data, base, quantization, lanes, settings, state)
        names = ", ".join(served.ref for served in service.fleet.all() if served.public) or "nothing"
        listener.listen()  # whoever reads the next line may call at once
        print(f"serving {names} at {url_of(listener)}", flush=True)
        run(service, listener)
    finally:
        listener.close()


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError:
        raise InputError("not a canary", got=repr(text), expected="NAME=SHARE, such as like=0.1") from None


def _open(
    registry: str, adapters: list[str], data: str | None, base: str | None, quantization: str | None, lanes: int, settings: Any,
    state: Path | None,
) -> Any:  # fmt: skip
    """A started service; its parts in the order in which they can fail soonest."""
    from genre.registry import Registry
    from genre.serving.fleet import default_refs, fitting
    from genre.serving.state import StateFile

    if "://" not in registry and not Path(registry).is_dir():
        raise InputError("no such registry", got=registry, expected="a folder that `genre train` has published into")
    store = Registry(registry)
    refs = list(dict.fromkeys(adapters)) or default_refs(store)
    first = store.resolve(refs[0])
    refs, others = (refs, {}) if adapters else fitting(store, refs, first)
    kept = None if state is None else StateFile(state)
    from genre.engine import Engine
    from genre.jobs.loading import load_base, open_log
    from genre.serving import Service

    log = None if data is None else open_log(data)
    loaded = load_base(first.manifest, base, quantization=quantization)
    service = Service(Engine(loaded, store, lanes=lanes, data=log, batch_tokens=settings.batch_tokens), settings, state=kept)
    for ref, why in others.items():
        service.log.write("not served", level="warning", ref=ref, why=why)
    service.start(refs, found=not adapters)
    return service
