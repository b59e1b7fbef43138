r"""Operating a service: load, unload, promote, roll back, canary, behind a token.

Owns: who may, and what operators may say. Ignores: how versions are loaded. Without a token there are no such routes.

    curl -H "Authorization: Bearer $GENRE_ADMIN_TOKEN" -H "Content-Type: application/json" \
        -d '{"ref": "like@candidate"}' http://127.0.0.1:8000/v1/admin/promote
"""

import hashlib
import hmac
import math
from collections.abc import Callable
from typing import Any

from fastapi import Request as Http
from fastapi import Response as Reply
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from genre.errors import GenreError, RequestError
from genre.registry.names import check_name
from genre.serving.bodies import read_body
from genre.serving.calls import body_of, reply
from genre.serving.problems import Problem, problem_of
from genre.serving.schema import CanaryBody, LoadBody, PromoteBody, RollbackBody
from genre.serving.service import Service


def check_token(service: Service, http: Http) -> None:
    """Compare in constant time, whatever the lengths; a client that guesses has to wait.

    Raises:
        Problem: 401, no token or a wrong one; 429, too many wrong ones.
    """
    client = http.client.host if http.client is not None else ""
    if (seconds := service.guesses.wait_s(client)) > 0:
        error = RequestError("too many wrong admin tokens", todo=f"try again in {math.ceil(seconds)} s")
        raise Problem(429, "too_many_guesses", error, {"Retry-After": str(math.ceil(seconds))})
    token = service.settings.token
    assert token is not None
    kind, _, given = http.headers.get("authorization", "").partition(" ")
    sent, wanted = given.strip().encode("latin-1"), token.get_secret_value().encode()  # headers are decoded as Latin-1
    same = hmac.compare_digest(hashlib.sha256(sent).digest(), hashlib.sha256(wanted).digest())
    if not same or kind.lower() != "bearer":
        service.guesses.wrong(client)
        error = RequestError("this needs the admin token", expected="the header Authorization: Bearer TOKEN")
        raise Problem(401, "unauthorized", error, {"WWW-Authenticate": "Bearer"})
    service.guesses.right(client)


async def act(service: Service, http: Http, name: str) -> Reply:
    """Do what an operator asks, outside of the event loop.

    Raises:
        Problem: They may not, or it cannot be done.
    """
    check_token(service, http)
    model, run = ACTS[name]
    body = read_body(await body_of(http), model)
    try:
        done = await run_in_threadpool(run, service, body)
    except GenreError as error:
        service.log.write(
            "admin refused", level="warning", request_id=http.scope["genre"]["request_id"], act=name, error=str(error)
        )
        raise problem_of(error, hide=service.engine.registry.url) from None
    service.log.write("admin", request_id=http.scope["genre"]["request_id"], act=name, **body.model_dump(exclude_unset=True))
    return reply(done | {"serving": {served.ref: served.version.digest for served in service.fleet.all() if served.public}})


def load(service: Service, body: LoadBody) -> dict[str, Any]:
    """Serve one more reference."""
    digest = service.fleet.add(body.ref).version.digest
    return {"digest": digest, "remembered": service.memory.save()}


def unload(service: Service, body: LoadBody) -> dict[str, Any]:
    """Serve a reference no longer."""
    service.memory.unload(body.ref)
    return {"remembered": service.memory.save()}


def promote(service: Service, body: PromoteBody) -> dict[str, Any]:
    """Let an alias name a version, if it loads here and is good enough."""
    alias = check_name(body.alias, "alias")
    move = service.fleet.promote(body.ref, alias, floor=body.floor, not_worse=body.not_worse)
    service.canaries.sync()
    return {"move": {**vars(move), "checks": list(move.checks)}}


def rollback(service: Service, body: RollbackBody) -> dict[str, Any]:
    """Let an alias name what it named before."""
    move = service.fleet.rollback(check_name(body.name), check_name(body.alias, "alias"))
    service.canaries.sync()
    return {"move": {**vars(move), "checks": list(move.checks)}}


def canary(service: Service, body: CanaryBody) -> dict[str, Any]:
    """Give a name's candidate a share of its traffic; 0 ends it."""
    found = service.canaries.set(check_name(body.name), body.share)
    service.memory.share(body.name, body.share)
    return {"canary": None if found is None else found.describe(), "remembered": service.memory.save()}


ACTS: dict[str, tuple[type[BaseModel], Callable[[Service, Any], dict[str, Any]]]] = {
    "load": (LoadBody, load),
    "unload": (LoadBody, unload),
    "promote": (PromoteBody, promote),
    "rollback": (RollbackBody, rollback),
    "canary": (CanaryBody, canary),
}
